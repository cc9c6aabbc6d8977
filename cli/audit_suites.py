"""`efface audit suites`: what an audit can run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .options import Format, FormatOption
from .output import emit, emit_table
from .record_acts import SuiteRecord

if TYPE_CHECKING:
    from ..audits.suites import Suite

EXAMPLE = "Example: efface audit suites standard"


def suites(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="One suite; without it, those that ship.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """List the suites that ship with efface, or show one: its parts, its attacks, and what it must be given."""
    from ..audits.suites import load_suite, shipped_suites

    if name is None:
        records = [_record(load_suite(one)) for one in shipped_suites()]
        lines = [{**one, "parts": " ".join(one["parts"]), "attacks": len(one["attacks"])} for one in records]
        lines = [
            {**one, "needs": " ".join(record["needs"])} for one, record in zip(lines, records, strict=True)
        ]
        shown = records if format is Format.json else lines
        emit_table(shown, ["name", "version", "parts", "attacks", "needs"], format, "No suites.")
        return
    suite = load_suite(name)
    emit(_record(suite), format, _text(suite))


def _record(suite: Suite) -> SuiteRecord:
    values = suite.model_dump(mode="json")
    return {**values, "needs": list(suite.needs), "digest": suite.digest}  # type: ignore[typeddict-item]


def _text(suite: Suite) -> str:
    from ..audits.attacks import ATTACKS
    from ..audits.suites import GIVEN, PARTS

    lines = [f"{suite.title}  {suite.digest}", suite.description, "", "parts"]
    lines += [f"  {part:12} {PARTS[part]}" for part in suite.parts]
    lines += ["attacks"] if suite.attacks else []
    lines += [f"  {name:22} {ATTACKS[name].what} ({ATTACKS[name].cost})" for name in suite.attacks]
    lines += [f"needs --give {name}=…  {GIVEN[name]}" for name in suite.needs]
    lines += [f"takes --give {name}=…  {GIVEN[name]}" for name in suite.takes]
    return "\n".join(lines)
