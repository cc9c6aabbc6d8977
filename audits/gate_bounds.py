"""A gate's figure as a confidence bound: what rows like these would show, not how these came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .bounds import MIN_PAIRS, Side, mean_bound, rate_bound, ratio_bound, rows_to_show
from .metrics import FloatArray
from .types import Evaluation, Group, RowScore

Subject = tuple[str | None, Group]
Asked = Literal["at most", "at least"]
Level = Callable[[int], float | None]
"""`Thresholds.level`: the confidence at which a figure over so many rows is judged, None for the figure itself."""
FEW_CONFIDENCE = 0.95
"""Of the bound that few rows are judged by where nobody sets another."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A one-sided bound, its ``name``, and ``words`` for a reader; ``value`` is None where the rows support none."""

    value: float | None
    name: str
    words: str


def figure_itself(_rows: int) -> None:
    """A `Level` that never asks for a bound."""


def bounded(
    before: Evaluation,
    after: Evaluation,
    subject: Subject,
    metric: str,
    asked: Asked,
    confidence: float,
    *,
    ratio: bool,
    threshold: float,
) -> Bound:
    """The one-sided bound of a figure of ``subject`` that a gate looks at.

    "at most" is asked of the upper bound, "at least" of the lower: few rows prove little either way.
    """
    old, new = _rows(before, subject), _rows(after, subject)
    if ratio:
        return _ratio(old, new, metric, asked, confidence, after.seed)
    if metric == "mention_rate":
        told = [bool(row.mentioned) for row in new if row.mentioned is not None]
        return rate(sum(told), len(told), confidence, threshold, "told")
    return mean([getattr(row, metric) for row in new], confidence, threshold)


def rate(hits: int, n: int, confidence: float, threshold: float, what: str) -> Bound:
    """The upper bound of a rate: ``hits`` of ``n`` rows did ``what``."""
    value = rate_bound(hits, n, confidence, "upper")
    words = f"{hits} of {n} {what}, up to {value:.0%} at {percent(confidence)} confidence"
    if value > threshold and (enough := rows_to_show(hits / n, threshold, confidence, exact=True)):
        words += f"; at least {enough} rows would show {threshold:.0%}"
    return Bound(value, f"{percent(confidence)} upper bound (Clopper-Pearson)", words)


def mean(values: Sequence[float], confidence: float, threshold: float) -> Bound:
    """The upper bound of a mean of figures in [0, 1]."""
    value, shown = mean_bound(values, confidence, "upper"), sum(values) / len(values)
    words = f"{len(values)}, up to {value:.2g} at {percent(confidence)} confidence"
    if value > threshold and (enough := rows_to_show(shown, threshold, confidence, exact=False)):
        words += f"; at least {enough} rows like these would show {threshold:.2g}"
    return Bound(value, f"{percent(confidence)} upper bound (Wilson)", words)


def ratio_words(value: float, n: int, asked: Asked, confidence: float) -> str:
    """What ``n`` rows say of a ratio, in words."""
    edge = "up to" if asked == "at most" else "down to"
    return f"{n}, ratio {edge} {value:.3g} at {percent(confidence)} confidence; more rows would narrow it"


def side_of(asked: Asked) -> Side:
    """The bound that a gate fears."""
    return "upper" if asked == "at most" else "lower"


def unsupported(pairs: int, asked: Asked, confidence: float) -> Bound:
    """Too few rows for the bound of a ratio."""
    name = f"{percent(confidence)} {side_of(asked)} bound"
    why = f"{pairs} rows support no {name}: give at least {MIN_PAIRS} with a figure before"
    return Bound(None, why, why)


def _ratio(
    old: Sequence[RowScore],
    new: Sequence[RowScore],
    metric: str,
    asked: Asked,
    confidence: float,
    seed: int,
) -> Bound:
    both = [(_value(a, metric), _value(b, metric)) for a, b in _paired(old, new)]
    pairs = [(a, b) for a, b in both if a is not None and b is not None]
    was, now = [a for a, _ in pairs], [b for _, b in pairs]
    of = _geometric if metric == "perplexity" else None
    value = ratio_bound(was, now, confidence, side_of(asked), seed=seed, ratio=of)
    if value is None or not math.isfinite(value):
        return unsupported(len(pairs), asked, confidence)
    name = f"{percent(confidence)} {side_of(asked)} bound (bootstrap)"
    return Bound(value, name, ratio_words(value, len(pairs), asked, confidence))


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


def percent(confidence: float) -> str:
    """``95 %``."""
    return f"{100 * confidence:g} %"
