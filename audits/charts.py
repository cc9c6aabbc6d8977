"""Before/after pictures: paired lanes on an axis from 0 to 1.

Before is hollow and round, after is solid and angular, before stands above after: hue is never the only
difference, so the pictures survive grey print and colour blindness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .markup import Markup, join
from .svg import box, canvas, circle, diamond, label, line

WIDTH, LEFT, RIGHT = 800, 160, 670
TOP, BOTTOM = 40, 26
MAX_DOTS = 300
# Steps of the golden ratio spread neighbouring dots evenly over the lane, and the same way every time.
_GOLDEN = 0.6180339887


@dataclass(frozen=True, slots=True)
class Strip:
    """One side of a lane: mean, interval and rows, all in [0, 1]."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Lane:
    """One group of rows: its name, a note below the name, both sides, and the figures written at its end."""

    name: str
    note: str
    before: Strip
    after: Strip
    figures: str


def dots_chart(lanes: Sequence[Lane], title: str, description: str) -> Markup:
    """Each row as a small dot, the mean as a large mark with its interval. At most `MAX_DOTS` dots a side."""
    legend = (
        circle(LEFT + 6, 12, 5.5, "mark before"),
        diamond(LEFT + 86, 12, 6.5, "mark after"),
        circle(LEFT + 156, 12, 3, "dot before"),
        label(LEFT + 166, 16, "one row", "small"),
    )
    return _chart(lanes, title, description, 62, join(*legend), _dots)


def bars_chart(lanes: Sequence[Lane], title: str, description: str) -> Markup:
    """A hollow bar before and a solid bar after, each with its interval."""
    legend = (box(LEFT, 6, 12, 12, "bar before"), box(LEFT + 80, 6, 12, 12, "bar after"))
    return _chart(lanes, title, description, 48, join(*legend), _bars)


def thin(values: Sequence[float], most: int = MAX_DOTS) -> list[float]:
    """The values sorted, or `most` >= 2 of them evenly spaced by rank, both ends kept."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[i * (len(ordered) - 1) // (most - 1)] for i in range(most)]


def _chart(
    lanes: Sequence[Lane],
    title: str,
    description: str,
    pitch: int,
    marks: Markup,
    draw: Callable[[Lane, float], Markup],
) -> Markup:
    end = TOP + pitch * len(lanes)
    names = (
        label(LEFT + 18, 16, "before", "small"),
        label(LEFT + 98, 16, "after", "small"),
        line(LEFT + 232, 12, LEFT + 256, 12, "whisker"),
        label(LEFT + 264, 16, "95 % interval of the mean", "small"),
    )
    drawn = [_named(lane, TOP + pitch * (i + 0.5), draw) for i, lane in enumerate(lanes)]
    return canvas(WIDTH, end + BOTTOM, title, description, _axis(end), marks, *names, *drawn)


def _axis(end: float) -> Markup:
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    grid = [line(_x(tick), TOP - 6, _x(tick), end, "grid") for tick in ticks]
    return join(*grid, *(label(_x(tick), end + 18, f"{tick:g}", "small", "middle") for tick in ticks))


def _named(lane: Lane, y: float, draw: Callable[[Lane, float], Markup]) -> Markup:
    return join(
        label(0, y - 2, lane.name, "name"),
        label(0, y + 15, lane.note, "small"),
        draw(lane, y),
        label(RIGHT + 18, y + 5, lane.figures, "figures"),
    )


def _dots(lane: Lane, y: float) -> Markup:
    above, below = y - 13, y + 13
    return join(
        *_swarm(lane.before.values, above, "dot before"),
        *_swarm(lane.after.values, below, "dot after"),
        _whisker(lane.before, above),
        circle(_x(lane.before.mean), above, 5.5, "mark before"),
        _whisker(lane.after, below),
        diamond(_x(lane.after.mean), below, 6.5, "mark after"),
    )


def _swarm(values: Sequence[float], y: float, class_: str) -> list[Markup]:
    return [
        circle(_x(value), y + 14 * ((i * _GOLDEN) % 1 - 0.5), 3, class_)
        for i, value in enumerate(thin(values))
    ]


def _bars(lane: Lane, y: float) -> Markup:
    above, below = y - 15, y + 1
    return join(
        box(LEFT, above, _length(lane.before.mean), 13, "bar before"),
        _whisker(lane.before, above + 6.5),
        box(LEFT, below, _length(lane.after.mean), 13, "bar after"),
        _whisker(lane.after, below + 6.5),
    )


def _whisker(strip: Strip, y: float) -> Markup:
    # The halo keeps the line legible on a bar of its own lightness.
    ends = (_x(strip.low), y, _x(strip.high), y)
    return join(line(*ends, "halo"), line(*ends, "whisker"))


def _length(value: float) -> float:
    """A bar of 0 is still a line: measured and nil, not missing."""
    return max(2.0, _x(value) - LEFT)


def _x(value: float) -> float:
    return LEFT + value * (RIGHT - LEFT)
