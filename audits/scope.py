"""How far the forgetting reaches, and whether it went too far: both sides of zero.

A model that never saw a fact does not find its answer impossible, it finds it as likely as any that it does not know.
An answer made much *less* likely than that is a mark of its own: it tells an attacker what was removed (GradDiff at
its defaults reaches a Min-K AUC of 2e-5, open-unlearning issue 167), and it was bought with damage. So is an answer
that is no language. What ignorance looks like is taken from, in this order: a reference model that never saw the rows;
comparable rows that the base does not know; chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from .bounds import MIN_PAIRS
from .errors import IncomparableError, MetricError
from .gate_bounds import Asked, percent, rate, side_of, unsupported
from .gibberish import MAX_PERPLEXITY
from .metrics import bootstrap_ci
from .types import Evaluation, Finding, Group, Outcome, RowScore

MIN_ROWS = 5
"""So few rows that the base does not know say nothing about ignorance."""
COMPARABLE: tuple[Group, ...] = ("neighbour", "heldout", "unrelated", "retain")
BEYOND: tuple[Group, ...] = ("heldout", "entailed", "format")
_LEAST = 1e-300
Bound = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Levels = Callable[[str, int], float | None]


def _figures(_gate: str, _rows: int) -> None:
    """`Levels` of which none asks for a bound."""


class ScopeBounds(BaseModel):
    """What counts as too far; None leaves a bound out. The names are those of the gates in `Thresholds`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_ignorance_ratio: Bound | None = Field(
        0.1,
        description="forget answers' probability over what a model gives that does not know, geometric means",
    )
    max_ignorance_ratio: Bound | None = Field(
        2.0, description="the same from above: still known; only against a reference model, on the same rows"
    )
    max_gibberish_share: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        0.2, description="answers to forget questions that are no language"
    )


@dataclass(frozen=True, slots=True)
class Ignorance:
    """What a model that does not know gives an answer: a geometric mean of ``n`` rows' probabilities, and whence."""

    probability: float
    n: int
    source: str
    same_rows: bool = False
    by_row: tuple[float, ...] = ()
    """The probability of each row, where they are the same."""


def over_unlearned(
    before: Evaluation,
    after: Evaluation,
    bounds: ScopeBounds | None = None,
    *,
    reference: Evaluation | None = None,
    chance: float | None = None,
    levels: Levels = _figures,
) -> tuple[Finding, ...]:
    """Whether the forget rows of each active request were pushed below ignorance, or into gibberish.

    ``reference``: the same rows under a model that never saw them; it is judged on both sides then. ``chance``: the
    probability of a token drawn blindly, one over the size of the vocabulary, where nothing better is to be had.
    ``levels``: the confidence of the bound that a bound of ``bounds`` is judged by, by its name and the number of rows.

    Raises `IncomparableError` for a reference without these rows, `MetricError` for a ``chance`` outside (0, 1].
    """
    bounds = bounds or ScopeBounds.model_validate({})
    found: list[Finding] = []
    for request in active_requests(after):
        rows = _of(after, request)
        ignorant = ignorance(before, rows, reference=reference, chance=chance)
        found += _judged(request, rows, ignorant, bounds, levels, after.seed)
        found += _gibberish(request, rows, bounds, levels)
    return tuple(found)


def ignorance(
    before: Evaluation,
    rows: Sequence[RowScore],
    *,
    reference: Evaluation | None = None,
    chance: float | None = None,
) -> Ignorance | None:
    """What to hold ``rows`` against; None where there is nothing. Raises as `over_unlearned` does."""
    if reference is not None:
        known = {row.key: row for row in reference.rows}
        if lacking := [row.id for row in rows if row.key not in known]:
            raise IncomparableError(
                f"expected {reference.label!r} to have measured the forget rows, got none of {', '.join(lacking[:3])}: "
                "evaluate the reference model on the same rows"
            )
        same = [known[row.key].probability for row in rows]
        source = "a model that never saw these rows"
        return Ignorance(geometric_mean(same), len(same), source, same_rows=True, by_row=tuple(same))
    unknown = [row.probability for row in before.rows if row.group in COMPARABLE and row.mentioned is False]
    if len(unknown) >= MIN_ROWS:
        return Ignorance(
            geometric_mean(unknown), len(unknown), f"{len(unknown)} rows that the base does not know"
        )
    if chance is None:
        return None
    if not 0.0 < chance <= 1.0:
        raise MetricError(f"chance: expected a probability in (0, 1], got {chance}: give 1 / vocabulary size")
    return Ignorance(chance, len(rows), "chance")


def geometric_mean(probabilities: Sequence[float]) -> float:
    """exp of the mean logarithm; one impossible answer does not hide behind likely ones. 0 counts as 1e-300.

    Raises `MetricError` for no values or values outside [0, 1].
    """
    if not probabilities or not all(0.0 <= p <= 1.0 for p in probabilities):
        raise MetricError(
            f"geometric_mean: expected probabilities in [0, 1], got {len(probabilities)} values"
        )
    return math.exp(math.fsum(math.log(max(p, _LEAST)) for p in probabilities) / len(probabilities))


def gibberish_share(rows: Sequence[RowScore]) -> float:
    """Share of ``rows`` whose answer is no language: `MAX_PERPLEXITY` under the bare base, and odder.

    By its figure alone, since rows that were measured earlier have no text (`is_gibberish` also sees loops, which the
    fluency gates catch here). Raises `MetricError` for no rows.
    """
    if not rows:
        raise MetricError("gibberish_share: expected at least one row, got none")
    return sum(row.perplexity is not None and row.perplexity > MAX_PERPLEXITY for row in rows) / len(rows)


def unmeasured(after: Evaluation) -> tuple[Finding, ...]:
    """One finding for each active request and kind of row beyond the trained ones that nobody gave."""
    there = {(row.request, row.group) for row in after.rows}
    return tuple(
        Finding(
            "scope", group, request, None, 0.0, "not measured", f"scope not measured: no {group} rows given"
        )
        for request in active_requests(after)
        for group in BEYOND
        if (request, group) not in there
    )


def active_requests(after: Evaluation) -> list[str | None]:
    """The active requests with forget rows, in order; None for rows of no request."""
    present = {row.request for row in after.rows if row.group == "forget"}
    kept = present if after.active is None else present & {*after.active, None}
    return sorted(kept, key=lambda request: (request is None, request or ""))


def _of(after: Evaluation, request: str | None) -> list[RowScore]:
    return [row for row in after.rows if row.group == "forget" and row.request == request]


def _judged(
    request: str | None,
    rows: Sequence[RowScore],
    ignorant: Ignorance | None,
    bounds: ScopeBounds,
    levels: Levels,
    seed: int,
) -> list[Finding]:
    low, high = bounds.min_ignorance_ratio, bounds.max_ignorance_ratio
    if ignorant is None:
        why = (
            "over-unlearning not measured: no reference model, and fewer than "
            f"{MIN_ROWS} rows with keywords that the base does not know"
        )
        return (
            [] if low is None else [_finding("min_ignorance_ratio", request, None, low, "not measured", why)]
        )
    value = geometric_mean([row.probability for row in rows]) / ignorant.probability
    text = (
        f"answers to forget are {value:.3g} times as probable as one not known "
        f"({ignorant.probability:.3g}, by {ignorant.source}; n = {len(rows)})"
    )
    asked: list[tuple[str, Asked, float, str, str]] = []
    if low is not None:
        asked.append(("min_ignorance_ratio", "at least", low, "not over-unlearned", "over-unlearned"))
    if high is not None and ignorant.same_rows:
        asked.append(("max_ignorance_ratio", "at most", high, "forgotten", "under-unlearned"))
    return [_ratio(request, rows, ignorant, value, text, one, levels, seed) for one in asked]


def _ratio(
    request: str | None,
    rows: Sequence[RowScore],
    ignorant: Ignorance,
    value: float,
    text: str,
    asked: tuple[str, Asked, float, str, str],
    levels: Levels,
    seed: int,
) -> Finding:
    """One of the two sides of zero, by its figure or by its bound."""
    gate, side, threshold, good, bad = asked

    def holds(figure: float) -> bool:
        return figure >= threshold if side == "at least" else figure <= threshold

    end = f", {side} {threshold:g}"
    level = levels(gate, len(rows))
    if level is None or not holds(value):
        word = good if holds(value) else bad
        outcome = "passed" if holds(value) else "failed"
        return _finding(gate, request, value, threshold, outcome, f"{word}: {text}{end}")
    if len(rows) < MIN_PAIRS:
        why = f"not shown: {text}; {unsupported(len(rows), side, level).name}{end}"
        return _finding(gate, request, None, threshold, "not measured", why)
    edge = _edge(rows, ignorant, side, level, seed)
    edge = min(edge, value) if side == "at least" else max(edge, value)
    named = f"{percent(level)} {side_of(side)} bound (bootstrap) {edge:.3g}"
    word, outcome = (good, "passed") if holds(edge) else (f"not shown to be {good}", "failed")
    return _finding(gate, request, edge, threshold, outcome, f"{word}: {text}; {named}{end}")


def _edge(rows: Sequence[RowScore], ignorant: Ignorance, side: Asked, level: float, seed: int) -> float:
    """The bootstrap bound of the ratio: over pairs where the reference was measured on these rows, else over the rows,
    with ignorance as it was measured."""
    theirs = ignorant.by_row or (ignorant.probability,) * len(rows)
    gaps = [
        math.log(max(row.probability, _LEAST)) - math.log(max(p, _LEAST))
        for row, p in zip(rows, theirs, strict=True)
    ]
    ends = bootstrap_ci(gaps, seed=seed, level=2 * level - 1)
    return math.exp(ends[1] if side == "at most" else ends[0])


def _gibberish(
    request: str | None, rows: Sequence[RowScore], bounds: ScopeBounds, levels: Levels
) -> list[Finding]:
    gate, most = "max_gibberish_share", bounds.max_gibberish_share
    if most is None:
        return []
    value = gibberish_share(rows)
    odd, level = round(value * len(rows)), levels(gate, len(rows))
    shown, by = value, ""
    if level is not None and value <= most:
        bound = rate(odd, len(rows), level, most, "are no language")
        shown, by = bound.value or 0.0, f"; {bound.name}: {bound.words}"
    outcome = "passed" if shown <= most else "failed"
    word = "over-unlearned: " if value > most else ""
    text = f"{word}{value:.0%} of the answers to forget questions are no language{by}, at most {most:.0%} "
    return [_finding(gate, request, shown, most, outcome, f"{text}(n = {len(rows)})")]


def _finding(
    gate: str, request: str | None, value: float | None, threshold: float, outcome: Outcome, text: str
) -> Finding:
    return Finding(gate, "forget", request, value, threshold, outcome, text)
