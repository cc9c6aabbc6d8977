"""`efface audit compare`: two audits side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..registry import InvalidInput, Registry, get_audit
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit, emit_table, talk
from .record_acts import CompareRecord

EXAMPLE = "Example: efface audit compare before.json after.json"
_LIMIT = 2**28


def compare(
    a: Annotated[
        str, typer.Argument(metavar="A", help="A report's JSON file, or a recorded audit's digest.")
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Compare what two audits measured, with 95 % intervals: of pairs of rows where both measured the same ones.

    Better is less on what is to be forgotten, and more on what is to be kept.
    """
    from ..audits.compare import compare as compared
    from ..audits.compare import read_side

    found = compared(read_side(_document(a, registry), a), read_side(_document(b, registry), b))
    record: CompareRecord = {"a": a, "b": b, "figures": [one.to_json() for one in found]}  # type: ignore[typeddict-item]
    if format is Format.json:
        emit(record, format, "")
        return
    rows = [
        {
            "group": one.group,
            "figure": one.figure,
            "A": f"{one.a:.3f}",
            "B": f"{one.b:.3f}",
            "B - A": f"{one.difference:+.3f} [{one.low:+.3f}, {one.high:+.3f}]",
            "n": f"{one.n_a} pairs" if one.paired else f"{one.n_a}, {one.n_b}",
            "better": one.better,
        }
        for one in found
    ]
    emit_table(rows, ["group", "figure", "A", "B", "B - A", "n", "better"], format, "Nothing to compare.")
    if not all(one.paired for one in found):
        talk.print(
            "Not of pairs: the audits did not measure the same rows, or hashed them under different keys.",
            soft_wrap=True,
        )


def _document(source: str, registry: str) -> bytes:
    path = Path(source)
    if path.is_file():
        if path.stat().st_size > _LIMIT:
            raise InvalidInput("a report of at most 256 MiB", "a larger file", "Give the report's JSON file.")
        return path.read_bytes()
    with Registry.open(registry) as reg:
        return reg.blobs.read(get_audit(reg, source).report)
