"""From rows to (request, group) figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .metrics import bootstrap_ci
from .types import GROUPS, Aggregate, Evaluation, Group, Interval, RowScore

Subject = tuple[str | None, Group]


def subject_order(subject: Subject) -> tuple[bool, str, int]:
    """Sort key of a (request, group): requests by name, shared rows last, groups in the order of `GROUPS`."""
    request, group = subject
    return (request is None, request or "", GROUPS.index(group))


def aggregate(evaluation: Evaluation) -> tuple[Aggregate, ...]:
    """One `Aggregate` per (request, group) that has rows, in `subject_order`; intervals use its seed."""
    rows: dict[Subject, list[RowScore]] = {}
    for row in evaluation.rows:
        rows.setdefault((row.request, row.group), []).append(row)
    return tuple(
        _aggregate(subject, rows[subject], evaluation.seed) for subject in sorted(rows, key=subject_order)
    )


def _aggregate(subject: Subject, rows: list[RowScore], seed: int) -> Aggregate:
    request, group = subject
    mentions = [float(row.mentioned) for row in rows if row.mentioned is not None]
    nats = [math.log(row.perplexity) for row in rows if row.perplexity is not None]
    return Aggregate(
        group=group,
        request=request,
        n=len(rows),
        probability=_mean(row.probability for row in rows),
        probability_ci=_interval([row.probability for row in rows], seed),
        extraction_strength=_mean(row.extraction_strength for row in rows),
        extraction_strength_ci=_interval([row.extraction_strength for row in rows], seed),
        exact_memorization=_mean(row.exact_memorization for row in rows),
        rouge_l=_mean(row.rouge_l for row in rows),
        rouge_l_ci=_interval([row.rouge_l for row in rows], seed),
        n_mention=len(mentions),
        mention_rate=_mean(mentions) if mentions else None,
        mention_rate_ci=_interval(mentions, seed) if mentions else None,
        fluency=_mean(row.fluency for row in rows),
        n_perplexity=len(nats),
        perplexity=math.exp(_mean(nats)) if nats else None,
    )


def _mean(values: Iterable[float]) -> float:
    items = [float(value) for value in values]
    return math.fsum(items) / len(items)


def _interval(values: list[float], seed: int) -> Interval:
    return Interval(*bootstrap_ci(values, seed=seed))
