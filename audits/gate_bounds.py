"""A gate's figure as a confidence bound: what rows like these would show, not how these came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .bounds import MIN_PAIRS, Side, mean_bound, rate_bound, ratio_bound
from .metrics import FloatArray
from .types import Evaluation, Group, RowScore

Subject = tuple[str | None, Group]


def bounded(
    before: Evaluation,
    after: Evaluation,
    subject: Subject,
    metric: str,
    bound: Literal["at most", "at least"],
    confidence: float,
    *,
    ratio: bool,
) -> tuple[float | None, str]:
    """The one-sided bound of a figure of ``subject`` that a gate looks at, and its name; None and why there is none.

    "at most" is asked of the upper bound, "at least" of the lower: few rows prove little either way.
    """
    side: Side = "upper" if bound == "at most" else "lower"
    old, new = _rows(before, subject), _rows(after, subject)
    name = f"{100 * confidence:g} % {side} bound"
    if not ratio and metric == "mention_rate":
        told = [bool(row.mentioned) for row in new if row.mentioned is not None]
        return rate_bound(sum(told), len(told), confidence, side), f"{name} (Clopper-Pearson)"
    if not ratio:
        return mean_bound([getattr(row, metric) for row in new], confidence, side), f"{name} (Wilson)"
    both = [(_value(a, metric), _value(b, metric)) for a, b in _paired(old, new)]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    of = _geometric if metric == "perplexity" else None
    was, now = [a for a, _ in pairs], [b for _, b in pairs]
    found = ratio_bound(was, now, confidence, side, seed=after.seed, ratio=of)
    if found is None or not math.isfinite(found):
        return (
            None,
            f"{len(pairs)} rows support no {name}: give at least {MIN_PAIRS} with a figure before",
        )
    return found, f"{name} (bootstrap)"


def _rows(evaluation: Evaluation, subject: Subject) -> list[RowScore]:
    return [row for row in evaluation.rows if (row.request, row.group) == subject]


def _paired(old: Sequence[RowScore], new: Sequence[RowScore]) -> list[tuple[RowScore, RowScore]]:
    known = {row.id: row for row in old}
    return [(known[row.id], row) for row in new if row.id in known]


def _value(row: RowScore, metric: str) -> float | None:
    value = row.mentioned if metric == "mention_rate" else getattr(row, metric)
    if value is None:
        return None
    return math.log(value) if metric == "perplexity" else float(value)


def _geometric(old: FloatArray, new: FloatArray) -> FloatArray:
    """The ratio of geometric means, of logarithms."""
    return np.exp(new.mean(axis=1) - old.mean(axis=1))
