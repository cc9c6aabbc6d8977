"""Shapes as inline SVG: pure functions, colours from the page's CSS classes.

Across a drawing goes a share in [0, 1], written as a percentage, down it pixels: a drawing is as wide as the page and
its text stays as large as the page's, on a telephone, a screen or paper, without a script.
"""

from __future__ import annotations

from collections.abc import Callable

from .markup import Markup, element

Marker = Callable[[float, float, float, str], Markup]
"""Draws a mark around (share, pixels) of a radius in pixels with a class."""


def canvas(height: float, title: str, description: str, *shapes: Markup) -> Markup:
    """A drawing as wide as what holds it; screen readers read the title and the description."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *shapes,
        width="100%",
        height=float(height),
        role="img",
        class_="chart",
    )


def swatch(*shapes: Markup, width: int = 26) -> Markup:
    """A small drawing for a legend, 14 pixels high; what it means stands beside it."""
    return element("svg", *shapes, width=width, height=14, aria_hidden="true", class_="swatch")


def circle(x: float, y: float, radius: float, class_: str) -> Markup:
    """A circle around (x, y)."""
    return element("circle", cx=percent(x), cy=float(y), r=float(radius), class_=class_)


def diamond(x: float, y: float, radius: float, class_: str) -> Markup:
    """A square standing on its corner, centred on (x, y)."""
    return polygon(x, y, ((0, -radius), (radius, 0), (0, radius), (-radius, 0)), class_)


def square(x: float, y: float, radius: float, class_: str) -> Markup:
    """A square centred on (x, y)."""
    side = radius * 0.85
    return polygon(x, y, ((-side, -side), (side, -side), (side, side), (-side, side)), class_)


def triangle(x: float, y: float, radius: float, class_: str) -> Markup:
    """A triangle that points up, centred on (x, y)."""
    return polygon(x, y, ((0, -radius), (radius, radius * 0.8), (-radius, radius * 0.8)), class_)


def polygon(x: float, y: float, corners: tuple[tuple[float, float], ...], class_: str) -> Markup:
    """A shape by its corners in pixels from (x, y). SVG takes no percentages in a list of points, so the shape has a
    coordinate system of its own, which is put at x."""
    points = " ".join(f"{a:.2f},{b:.2f}" for a, b in corners)
    return element(
        "svg", element("polygon", points=points, class_=class_), x=percent(x), y=float(y), class_="at"
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=percent(x1), y1=float(y1), x2=percent(x2), y2=float(y2), class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A rectangle with its upper left corner at (x, y)."""
    return element(
        "rect", x=percent(x), y=float(y), width=percent(width), height=float(height), class_=class_
    )


def label(x: float, y: float, text: str, class_: str, anchor: str = "start", dx: float = 0.0) -> Markup:
    """Text whose baseline starts, is centred or ends ("start", "middle", "end") at (x, y), moved by ``dx`` pixels."""
    return element("text", text, x=percent(x), y=float(y), dx=dx or None, class_=class_, text_anchor=anchor)


def percent(share: float) -> str:
    """0.123 as "12.3%", to a hundredth: less than a tenth of a pixel on any screen."""
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    return ("0" if text == "-0" else text) + "%"
