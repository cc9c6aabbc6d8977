"""HTML and SVG elements that escape whatever they are given.

Answers of a model are hostile input: the only way to put one on a page is `element`, which escapes every
child and attribute that is not itself the result of `element`.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

# C0 and C1 controls (but tab and newline), surrogates and noncharacters are not allowed in HTML text, and
# surrogates cannot be encoded either. Bidirectional overrides make a text read as what it is not
# (CVE-2021-42574).
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)


@dataclass(frozen=True, slots=True)
class Markup:
    """Text that is already safe HTML."""

    html: str


EMPTY = Markup("")
Child = Markup | str
Attribute = str | int | float | None


def escape(text: str) -> str:
    """HTML-escape text for content or a quoted attribute; what a page must not hold becomes U+FFFD."""
    return html.escape(_FORBIDDEN.sub("\ufffd", text), quote=True)


def element(tag: str, *children: Child, **attributes: Attribute) -> Markup:
    """`<tag attributes>children</tag>`. `class_` and `stroke_width` are written `class` and `stroke-width`.

    Attributes that are None are left out; floats are written with at most two decimals.
    """
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    written = "".join(f' {name}="{_attribute(value)}"' for name, value in names.items() if value is not None)
    return Markup(f"<{tag}{written}>{join(*children).html}</{tag}>")


def join(*children: Child) -> Markup:
    """Children one after the other, strings escaped."""
    return Markup("".join(child.html if isinstance(child, Markup) else escape(child) for child in children))


def number(value: float) -> str:
    """At most two decimals, without trailing zeros: 1, 0.5, 0.25."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _attribute(value: str | int | float) -> str:
    return number(value) if isinstance(value, float) else escape(str(value))
