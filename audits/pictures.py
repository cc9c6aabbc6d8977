"""From two evaluations to the before/after pictures of an audit page."""

from __future__ import annotations

from collections.abc import Sequence

from .aggregate import aggregate
from .charts import MAX_DOTS, Lane, Strip, bars_chart, dots_chart
from .curves import Cross, plane_chart
from .markup import EMPTY, Markup, element
from .metrics import bootstrap_ci
from .names import short_name
from .types import Aggregate, Evaluation, Group, Interval

_PROBABILITY = "Probability of the reference answer"
_MENTIONS = "Share of answers that name a keyword"


def pictures(before: Evaluation, after: Evaluation) -> Markup:
    """A section with the answer probability of every group and the mention rate of those with keywords."""
    old = {(item.request, item.group): item for item in aggregate(before)}
    pairs = [(old[key], new) for new in aggregate(after) if (key := (new.request, new.group)) in old]
    probability = [_probability_lane(was, now, before, after) for was, now in pairs]
    mention = [lane for was, now in pairs for lane in _mention_lane(was, now)]
    bars = bars_chart(mention, f"{_MENTIONS}, before and after", _described(mention))
    return element(
        "section",
        element("h2", "Before and after"),
        element("h3", _PROBABILITY),
        dots_chart(probability, f"{_PROBABILITY}, before and after", _described(probability)),
        _thinned(pairs),
        *((element("h3", _MENTIONS), bars) if mention else ()),
    )


def _probability_lane(was: Aggregate, now: Aggregate, before: Evaluation, after: Evaluation) -> Lane:
    return Lane(
        name=now.group,
        note=_note(now.request, now.n),
        before=_strip(was.probability, was.probability_ci, _values(before, now)),
        after=_strip(now.probability, now.probability_ci, _values(after, now)),
        figures=f"{was.probability:.2f} → {now.probability:.2f}",
    )


def _mention_lane(was: Aggregate, now: Aggregate) -> list[Lane]:
    """One lane, or none for a group without keywords."""
    if was.mention_rate is None or now.mention_rate is None:
        return []
    if was.mention_rate_ci is None or now.mention_rate_ci is None:
        return []
    lane = Lane(
        name=now.group,
        note=_note(now.request, now.n_mention),
        before=_strip(was.mention_rate, was.mention_rate_ci),
        after=_strip(now.mention_rate, now.mention_rate_ci),
        figures=f"{was.mention_rate:.0%} → {now.mention_rate:.0%}",
    )
    return [lane]


def trade_off(evaluations: Sequence[Evaluation], active: Sequence[str] | None) -> Markup:
    """Every evaluation in the plane of what is still known of the forgotten and what is kept of the rest.

    `active` are the requests whose forget rows count; None: all. Nothing where no two evaluations can be compared.
    """
    crosses = [cross for one in evaluations for cross in _cross(one, active)]
    if len(crosses) < 2:
        return EMPTY
    heading = "Forgetting against keeping"
    described = "; ".join(f"{c.name}: forget {c.x:.2f}, retain {c.y:.2f}" for c in crosses)
    note = (
        "Up: answer probability on retain rows. Right: on the rows to be forgotten. The upper left corner is the "
        "aim: forgotten, and the rest kept. Lines are 95 % intervals of the means."
    )
    return element(
        "section",
        element("h2", heading),
        element("p", note, class_="muted"),
        plane_chart(crosses, "answer probability, forget rows", heading, described),
    )


def _cross(evaluation: Evaluation, active: Sequence[str] | None) -> list[Cross]:
    """One point, or none for an evaluation without forget or retain rows."""
    wanted = None if active is None else {*active, None}
    forget = _group(evaluation, "forget", wanted)
    retain = _group(evaluation, "retain", None)
    if not forget or not retain:
        return []
    (x, x_low, x_high), (y, y_low, y_high) = (_mean(some, evaluation.seed) for some in (forget, retain))
    return [Cross(evaluation.label, x, y, x_low, x_high, y_low, y_high)]


def _group(evaluation: Evaluation, group: Group, requests: set[str | None] | None) -> list[float]:
    return [
        row.probability
        for row in evaluation.rows
        if row.group == group and (requests is None or row.request in requests)
    ]


def _mean(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    return (sum(values) / len(values), *bootstrap_ci(values, seed=seed))


def _note(request: str | None, n: int) -> str:
    return f"{short_name(request)} · n = {n}"


def _strip(mean: float, interval: Interval, values: tuple[float, ...] = ()) -> Strip:
    return Strip(mean, interval.low, interval.high, values)


def _values(evaluation: Evaluation, item: Aggregate) -> tuple[float, ...]:
    return tuple(r.probability for r in evaluation.rows if (r.request, r.group) == (item.request, item.group))


def _thinned(pairs: Sequence[tuple[Aggregate, Aggregate]]) -> Markup:
    if all(now.n <= MAX_DOTS for _, now in pairs):
        return EMPTY
    note = f"At most {MAX_DOTS} rows a lane are drawn, evenly spaced by rank; means and intervals use all."
    return element("p", note, class_="muted")


def _described(lanes: Sequence[Lane]) -> str:
    return "; ".join(f"{lane.name}, {lane.note}: {lane.figures}" for lane in lanes)
