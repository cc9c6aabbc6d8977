"""Shapes as inline SVG: pure functions, coordinates in user units, colours from the page's CSS classes."""

from __future__ import annotations

from .markup import Markup, element


def canvas(width: int, height: int, title: str, description: str, *shapes: Markup) -> Markup:
    """A drawing that scales with the page; screen readers read the title and the description."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *shapes,
        viewBox=f"0 0 {width} {height}",
        role="img",
        class_="chart",
    )


def circle(x: float, y: float, radius: float, class_: str) -> Markup:
    """A circle around (x, y)."""
    return element("circle", cx=float(x), cy=float(y), r=float(radius), class_=class_)


def diamond(x: float, y: float, radius: float, class_: str) -> Markup:
    """A square standing on its corner, centred on (x, y)."""
    corners = ((x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y))
    return element("polygon", points=" ".join(f"{a:.2f},{b:.2f}" for a, b in corners), class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def box(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """A rectangle with its upper left corner at (x, y)."""
    return element("rect", x=float(x), y=float(y), width=float(width), height=float(height), class_=class_)


def label(x: float, y: float, text: str, class_: str, anchor: str = "start") -> Markup:
    """Text whose baseline starts, is centred or ends ("start", "middle", "end") at (x, y)."""
    return element("text", text, x=float(x), y=float(y), class_=class_, text_anchor=anchor)
