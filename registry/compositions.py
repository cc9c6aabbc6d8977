"""Compositions: pure values that say which adapters, with which weights, on which base.

Order never matters, and taking an adapter out gives the composition that never had it:
`compose(S - r) == without(compose(S), r)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from . import canon, checks
from .errors import InvalidInput
from .renders import parse_render
from .types import Composition, Part


def compose(
    base: str,
    quantization: str,
    parts: Iterable[Part | tuple[str, str | int | float | Decimal]],
    render: str = "cat",
) -> Composition:
    """The composition of `(adapter digest, weight)` parts; those of weight 0 are left out.

    `render` is one of `renders`; of the bare base there is nothing to render, so that it has one digest.

    Raises InvalidInput for an adapter named twice, a weight that is no finite decimal, or an unknown render.
    """
    weighted = [_part(part) for part in parts]
    parse_render(render)
    if repeated := sorted(
        one for one, times in Counter(part.adapter for part in weighted).items() if times > 1
    ):
        more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        raise InvalidInput("each adapter once", f"{repeated[0]}{more} repeatedly", "Add up its weights.")
    kept = tuple(sorted((p for p in weighted if p.weight != "0"), key=lambda part: part.adapter))
    return Composition(
        base=checks.token(base, "base", 200),
        quantization=checks.token(quantization, "quantization"),
        parts=kept,
        render=render if kept else "cat",
    )


def without(composition: Composition, adapters: Iterable[str]) -> Composition:
    """The composition less these adapters. Raises InvalidInput for one that it does not hold."""
    leaving = set(adapters)
    if missing := [checks.digest(one, "adapter") for one in sorted(leaving - set(composition.adapters))]:
        held = ", ".join(composition.adapters) or "no adapter"
        raise InvalidInput(f"adapters of the composition ({held})", ", ".join(missing), "Name those.")
    kept = [part for part in composition.parts if part.adapter not in leaving]
    return compose(composition.base, composition.quantization, kept, composition.render)


def rendered_as(composition: Composition, render: str | None) -> Composition:
    """The same adapters with another render; the very composition for None. Raises InvalidInput."""
    if render is None:
        return composition
    return compose(composition.base, composition.quantization, composition.parts, render)


def of_record(record: Mapping[str, Any]) -> Composition:
    """The composition in a stored `Composition.record()`."""
    parts = [(part["adapter"], part["weight"]) for part in record["parts"]]
    return compose(record["base"], record["quantization"], parts, record["render"])


def _part(part: Part | tuple[str, str | int | float | Decimal]) -> Part:
    adapter, weight = (part.adapter, part.weight) if isinstance(part, Part) else part
    return Part(checks.digest(adapter, "adapter"), canon.weight(weight))
