"""Before/after pictures: lanes on an axis from 0 to 1, each with its name and figures above it.

Before is hollow and round, after is solid and angular, before stands above after, an attack is a third shape below:
hue is never the only difference, so the pictures survive grey print and colour blindness.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .markup import EMPTY, Markup, element, join
from .svg import box, canvas, circle, diamond, label, line, swatch, triangle

MAX_DOTS = 300
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
BOTTOM = 24
_HEAD = 20
_LONGEST = 36
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
    """One group of rows: its name, a note behind the name, both sides, and the figures written at its end."""

    name: str
    note: str
    before: Strip
    after: Strip
    figures: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """One attack: what the base knew, what was left, and what the attacker has, all in [0, 1]."""

    name: str
    note: str
    known: float
    suppressed: float
    attacked: Strip
    figures: str


def dots_chart(lanes: Sequence[Lane], title: str, description: str) -> Markup:
    """Each row as a small dot, the mean as a large mark with its interval. At most `MAX_DOTS` dots a side."""
    legend = (
        ("before, mean", swatch(circle(0.5, 7, 5, "mark before"))),
        ("after, mean", swatch(diamond(0.5, 7, 6, "mark after"))),
        ("one row", swatch(circle(0.3, 7, 3, "dot before"), circle(0.7, 7, 3, "dot after"))),
        _INTERVAL,
    )
    slots = [_Slot(x.name, x.note, x.figures, partial(_dots, x)) for x in lanes]
    return figure(legend, _chart(slots, title, description, 72))


def bars_chart(lanes: Sequence[Lane], title: str, description: str) -> Markup:
    """A hollow bar before and a solid bar after, each with its interval."""
    legend = (
        ("before", swatch(box(0.05, 1, 0.9, 12, "bar before"))),
        ("after", swatch(box(0.05, 1, 0.9, 12, "bar after"))),
        _INTERVAL,
    )
    slots = [_Slot(x.name, x.note, x.figures, partial(_bars, x)) for x in lanes]
    return figure(legend, _chart(slots, title, description, 60))


def recovery_chart(lanes: Sequence[Recovery], title: str, description: str) -> Markup:
    """From what the suppression left to what an attacker has, with what the base knew as the far end."""
    legend = (
        ("base: all that was known", swatch(circle(0.5, 7, 5, "mark before"))),
        ("suppressed, no attack", swatch(diamond(0.5, 7, 6, "mark after"))),
        ("attacked", swatch(triangle(0.5, 8, 6, "mark attack"))),
        ("95 % interval", _INTERVAL[1]),
    )
    slots = [_Slot(x.name, x.note, x.figures, partial(_recovery, x), below=True) for x in lanes]
    return figure(legend, _chart(slots, title, description, 66))


def figure(legend: Sequence[tuple[str, Markup]], chart: Markup) -> Markup:
    """A drawing below its legend, which wraps on narrow screens."""
    items = [element("span", picture, " ", text) for text, picture in legend]
    return element("div", element("p", *items, class_="legend"), chart, class_="figure")


def thin(values: Sequence[float], most: int = MAX_DOTS) -> list[float]:
    """The values sorted, or `most` >= 2 of them evenly spaced by rank, both ends kept."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[i * (len(ordered) - 1) // (most - 1)] for i in range(most)]


_INTERVAL = ("95 % interval of the mean", swatch(line(0.05, 7, 0.95, 7, "whisker")))


@dataclass(frozen=True, slots=True)
class _Slot:
    """A lane to draw: what stands above it, and the drawing below, from its upper edge on."""

    name: str
    note: str
    figures: str
    draw: Callable[[float], Markup]
    below: bool = False
    """The note stands below the name, where both may be long."""


def _chart(slots: Sequence[_Slot], title: str, description: str, pitch: int) -> Markup:
    end = pitch * len(slots)
    drawn = [_named(slot, pitch * i) for i, slot in enumerate(slots)]
    return canvas(end + BOTTOM, title, description, _axis(end), *drawn)


def _axis(end: float) -> Markup:
    grid = [line(tick, 4, tick, end, "grid") for tick in TICKS]
    names = [label(t, end + 17, f"{t:g}", "small", anchor_at(t)) for t in TICKS]
    return join(*grid, *names)


def anchor_at(share: float) -> str:
    """Text at an end of the axis stays inside the drawing."""
    return "start" if share == 0 else "end" if share == 1 else "middle"


def _named(slot: _Slot, top: float) -> Markup:
    name = slot.name if len(slot.name) <= _LONGEST else slot.name[: _LONGEST - 1] + "…"
    beside = element("tspan", slot.note, dx=8, class_="small") if slot.note and not slot.below else EMPTY
    return join(
        line(0, top, 1, top, "grid") if top else EMPTY,
        element("text", name, beside, x="0", y=float(top + 15), class_="name"),
        label(0, top + 31, slot.note, "small") if slot.below else EMPTY,
        label(1, top + 15, slot.figures, "figures", "end"),
        slot.draw(top + _HEAD),
    )


def _dots(lane: Lane, top: float) -> Markup:
    above, below = top + 12, top + 35
    return join(
        *_swarm(lane.before.values, above, "dot before"),
        *_swarm(lane.after.values, below, "dot after"),
        _whisker(lane.before, above),
        circle(lane.before.mean, above, 5.5, "mark before"),
        _whisker(lane.after, below),
        diamond(lane.after.mean, below, 6.5, "mark after"),
    )


def _swarm(values: Sequence[float], y: float, class_: str) -> list[Markup]:
    return [
        circle(value, y + 14 * ((i * _GOLDEN) % 1 - 0.5), 3, class_) for i, value in enumerate(thin(values))
    ]


def _bars(lane: Lane, top: float) -> Markup:
    above, below = top + 3, top + 19
    return join(
        box(0, above, _length(lane.before.mean), 13, "bar before"),
        _whisker(lane.before, above + 6.5),
        box(0, below, _length(lane.after.mean), 13, "bar after"),
        _whisker(lane.after, below + 6.5),
    )


def _recovery(lane: Recovery, top: float) -> Markup:
    y, strip = top + 30, lane.attacked
    return join(
        line(min(lane.suppressed, lane.known), y, max(lane.suppressed, lane.known), y, "span"),
        line(lane.suppressed, y, strip.mean, y, "gained"),
        line(strip.low, y, strip.high, y, "whisker"),
        circle(lane.known, y, 5.5, "mark before"),
        diamond(lane.suppressed, y, 6.5, "mark after"),
        triangle(strip.mean, y, 6.5, "mark attack"),
    )


def _whisker(strip: Strip, y: float) -> Markup:
    # The halo keeps the line legible on a bar of its own lightness.
    ends = (strip.low, y, strip.high, y)
    return join(line(*ends, "halo"), line(*ends, "whisker"))


def _length(value: float) -> float:
    """A bar of 0 is still a line: measured and nil, not missing."""
    return max(0.004, value)
