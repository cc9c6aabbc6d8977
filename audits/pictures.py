"""From two evaluations to the before/after pictures of an audit page."""

from __future__ import annotations

from collections.abc import Sequence

from .aggregate import aggregate
from .charts import MAX_DOTS, Lane, Strip, bars_chart, dots_chart
from .markup import EMPTY, Markup, element
from .tables import request_name
from .types import Aggregate, Evaluation, Interval

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
        _scroll(dots_chart(probability, f"{_PROBABILITY}, before and after", _described(probability))),
        _thinned(pairs),
        *((element("h3", _MENTIONS), _scroll(bars)) if mention else ()),
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


def _note(request: str | None, n: int) -> str:
    name = request_name(request)
    # Ids made one after the other share their beginning; the end tells them apart.
    return f"{name if len(name) <= 14 else name[:4] + '…' + name[-9:]} · n = {n}"


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


def _scroll(chart: Markup) -> Markup:
    return element("div", chart, class_="scroll")
