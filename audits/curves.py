"""Curves of attacks over a scale (steps, weight), and compositions in the plane of forgetting and keeping.

Lines differ in colour, dash and mark, so that each can be told without the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .charts import TICKS, anchor_at, figure
from .markup import EMPTY, Markup, element, join
from .svg import Marker, canvas, circle, diamond, label, line, square, swatch, triangle

MOST_SERIES = 6
"""As many as there are distinct lines: colours, dashes and marks."""
HEIGHT, TOP, BELOW = 240, 14, 44
_NEAR, _BUBBLE = 0.06, 20
"""Two numbers are told apart from this share of the width, and this many pixels, on."""
_MARKS: tuple[Marker, ...] = (triangle, circle, square, diamond, triangle, circle)


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a curve: `y` in [0, 1] at `x`, with its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, and its points by rising `x`."""

    name: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True, slots=True)
class Cross:
    """A composition in the plane: (x, y) in [0, 1] with the interval of each; `name` stands in the legend."""

    name: str
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float


def curves_chart(
    series: Sequence[Series], known: float, suppressed: float, x_label: str, title: str, description: str
) -> Markup:
    """At most `MOST_SERIES` lines over one scale, with what was known and what was left as level lines."""
    xs = [spot.x for one in series for spot in one.spots]
    low, high = min(xs), max(xs)
    legend = [
        *((one.name, _line_swatch(i)) for i, one in enumerate(series)),
        ("base: all that was known", swatch(line(0, 7, 1, 7, "level known"))),
        ("suppressed, no attack", swatch(line(0, 7, 1, 7, "level left"))),
    ]
    shapes = [
        _frame(x_label, _ticks(low, high), low, high),
        line(0, _y(known), 1, _y(known), "level known"),
        line(0, _y(suppressed), 1, _y(suppressed), "level left"),
        *(_drawn(i, one, low, high) for i, one in enumerate(series)),
    ]
    return figure(legend, canvas(TOP + HEIGHT + BELOW, title, description, *shapes))


def plane_chart(crosses: Sequence[Cross], x_label: str, title: str, description: str) -> Markup:
    """Compositions as numbered marks with the intervals of both figures; good is up and to the left."""
    legend = [(one.name, swatch(_numbered(i, 0.5, 7, 8))) for i, one in enumerate(crosses, 1)]
    away = _apart(crosses)
    shapes = [
        _frame(x_label, TICKS, 0.0, 1.0),
        *(_cross(one, down) for one, down in zip(crosses, away, strict=True)),
        *(
            _numbered(i, _x(crosses[i - 1].x), _y(crosses[i - 1].y) + down, 9)
            for i, down in enumerate(away, 1)
        ),
    ]
    return figure(legend, canvas(TOP + HEIGHT + BELOW, title, description, *shapes))


def _cross(one: Cross, away: int) -> Markup:
    """Both intervals where they are, and a line down to its number where that stands `away` pixels below others."""
    x, y = _x(one.x), _y(one.y)
    return join(
        line(_x(one.x_low), y, _x(one.x_high), y, "whisker"),
        line(x, _y(one.y_low), x, _y(one.y_high), "whisker"),
        line(x, y, x, y + away, "leader") if away else EMPTY,
    )


def _apart(crosses: Sequence[Cross]) -> list[int]:
    """How far down each number goes, so that none hides another: those that lie together stand in a column."""
    placed: list[tuple[float, float]] = []
    moved: list[int] = []
    for one in crosses:
        away = 0
        while any(abs(_x(one.x) - x) < _NEAR and abs(_y(one.y) + away - y) < _BUBBLE for x, y in placed):
            away += _BUBBLE
        placed.append((_x(one.x), _y(one.y) + away))
        moved.append(away)
    return moved


def _numbered(number: int, x: float, y: float, radius: float) -> Markup:
    return join(circle(x, y, radius, "number-mark"), label(x, y + 4, str(number), "number", "middle"))


def _frame(x_label: str, ticks: Sequence[float], low: float, high: float) -> Markup:
    """Level lines with their figures at the left, names of the scale below."""
    end = TOP + HEIGHT
    levels = [join(line(0, _y(t), 1, _y(t), "grid"), label(0, _y(t) - 3, f"{t:g}", "small")) for t in TICKS]
    marks = [
        join(
            line(_x(t, low, high), end, _x(t, low, high), end + 5, "grid"),
            label(_x(t, low, high), end + 19, f"{t:g}", "small", anchor_at(_x(t, low, high))),
        )
        for t in ticks
    ]
    return join(*levels, *marks, label(0.5, end + 37, x_label, "small", "middle"))


def _drawn(index: int, one: Series, low: float, high: float) -> Markup:
    spots = sorted(one.spots, key=lambda spot: spot.x)
    at = [(_x(spot.x, low, high), _y(spot.y)) for spot in spots]
    segments = [line(*a, *b, f"curve s{index + 1}") for a, b in pairwise(at)]
    bars = [
        line(x, _y(spot.low), x, _y(spot.high), f"error s{index + 1}")
        for spot, (x, _) in zip(spots, at, strict=True)
        if spot.low is not None and spot.high is not None
    ]
    marks = [_MARKS[index](x, y, 4.5, f"point s{index + 1}") for x, y in at]
    return element("g", *bars, *segments, *marks)


def _line_swatch(index: int) -> Markup:
    name = f"s{index + 1}"
    return swatch(line(0, 7, 1, 7, f"curve {name}"), _MARKS[index](0.5, 7, 4.5, f"point {name}"), width=34)


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` and a few."""
    if high <= low:
        return [low]
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def _x(value: float, low: float = 0.0, high: float = 1.0) -> float:
    """From 5 % to 97 % of the width: the figures of the levels stand at the left."""
    return 0.5 if high <= low else 0.05 + 0.92 * (value - low) / (high - low)


def _y(share: float) -> float:
    return TOP + (1 - share) * HEIGHT
