"""`efface adapter overlap`: how much adapters get in each other's way, from their files alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ..registry import (
    Adapter,
    InvalidInput,
    Registry,
    active_release,
    adapter_folder,
    adapter_for_request,
    channels,
    get_adapter,
)
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit_table
from .records import OverlapRecord

EXAMPLE = "Example: efface adapter overlap prod req-000004"


def overlap(
    references: Annotated[
        list[str],
        typer.Argument(
            metavar="REF...", help="Adapters by digest, request (its newest one) or channel (all it serves)."
        ),
    ],
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Compare adapters pairwise before they are stacked; the worst pair comes first.

    cosine of the changes; what each adds along the other (below 0 it undoes part of it); how much of their input and
    output directions they share. The forecast is no measurement: whether a request rebounds, the audit of the stack
    says.
    """
    with Registry.open(registry) as reg:
        found = _adapters(reg, references)
        if len(found) < 2:
            raise InvalidInput("at least two different adapters", str(len(found)), "Name more of them.")
        _require_one_base([adapter for adapter, _ in found])
        records = _compared(reg, found)
    rows = [_row(record) for record in records] if format is Format.text else records
    columns = ["forecast", "requests", "cosine", "adds", "inputs", "outputs", "first", "second"]
    emit_table(rows, columns, format, "")


def _adapters(reg: Registry, references: Sequence[str]) -> list[tuple[Adapter, str]]:
    """Each once, with its weight: that of the channel which names it, else 1."""
    served = channels(reg)
    found: dict[str, tuple[Adapter, str]] = {}
    for name in references:
        if name in served:
            parts = [
                (get_adapter(reg, part.adapter), part.weight)
                for part in active_release(reg, name).composition.parts
            ]
        elif name.startswith("req-"):
            parts = [(adapter_for_request(reg, name), "1")]
        else:
            parts = [(get_adapter(reg, name), "1")]
        for adapter, weight in parts:
            found.setdefault(adapter.digest, (adapter, weight))
    return list(found.values())


def _require_one_base(adapters: Sequence[Adapter]) -> None:
    first = adapters[0]
    for other in adapters[1:]:
        if (first.base, first.quantization) != (other.base, other.quantization):
            came = f"{other.digest} on {other.base} at {other.quantization}"
            expected = f"adapters on one base, as {first.digest} is on {first.base} at {first.quantization}"
            raise InvalidInput(expected, came, "An adapter means nothing on another base: leave one out.")


def _compared(reg: Registry, found: Sequence[tuple[Adapter, str]]) -> list[OverlapRecord]:
    # Torch comes with these: after everything that can fail without it.
    from ..adapters import Part
    from ..adapters.overlap import overlaps

    parts = [Part(adapter_folder(reg, adapter.digest), weight, adapter.base) for adapter, weight in found]
    named = {part.folder: adapter for part, (adapter, _) in zip(parts, found, strict=True)}
    pairs = sorted(overlaps(parts), key=lambda pair: pair.worst)
    return [
        {
            "first": named[pair.folders[0]].digest,
            "second": named[pair.folders[1]].digest,
            "first_requests": list(named[pair.folders[0]].requests),
            "second_requests": list(named[pair.folders[1]].requests),
            "forecast": pair.forecast,
            "cosine": pair.cosine,
            "projection": pair.projection,
            "projection_back": pair.projection_back,
            "inputs": pair.inputs,
            "outputs": pair.outputs,
        }
        for pair in pairs
    ]


def _row(record: OverlapRecord) -> dict[str, Any]:
    figures = {name: f"{record[name]:.3f}" for name in ("cosine", "inputs", "outputs")}
    both = (", ".join(record["first_requests"]), ", ".join(record["second_requests"]))
    adds = f"{record['projection']:+.3f} {record['projection_back']:+.3f}"
    return {**record, **figures, "requests": " · ".join(both), "adds": adds}
