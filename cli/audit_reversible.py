"""`efface audit reversible`: that what a channel serves can be taken back, path by path."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..registry import Registry, durable
from .options import (
    DEFAULT_REGISTRY,
    ChannelArgument,
    Format,
    FormatOption,
    ModelOption,
    RegistryOption,
    writable,
)
from .output import emit, progress, talk

if TYPE_CHECKING:
    from ..recipes.reversible_record import Reversibility

EXAMPLE = "Example: efface audit reversible prod --model ./base --json reversible.json"
_MARKS = {"passed": "[green]✓[/green]", "failed": "[red]✗[/red]", "refused": "[yellow]–[/yellow]"}
_FILE_MODE = 0o644


def reversible(
    channel: ChannelArgument,
    model: ModelOption,
    served: Annotated[
        Path | None, typer.Option("--served", metavar="DIR", help="A folder that a server has loaded for it.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="A vLLM whose list of models is checked, such as http://host:8000."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The adapter's name there; by default CHANNEL@VERSION.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Write the report as JSON, for `efface audit sign`.", callback=writable),
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Prove that the base is untouched, that every way back composes, and that what is served is on record.

    Changes nothing. Exit 1 if any check fails. A way back that the registry refuses (another adapter was trained on
    what would go) is named with its reason and the plan that works.
    """
    from ..recipes.reversible import reversibility

    with Registry.open(registry) as reg, progress() as bars:
        found = reversibility(reg, channel, model, served=served, url=url, name=name, progress=bars)
    document: dict[str, Any] = dict(found.to_json())
    if json:
        text = json_module.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        with durable.disk_errors(json):
            durable.write_file(json, text.encode(), _FILE_MODE)
    talk.print(_told(found), soft_wrap=True)
    emit(document, format, f"{found.verdict} {found.composition}")
    raise typer.Exit(0 if found.verdict == "pass" else 1)


def _told(found: Reversibility) -> str:
    lines = [
        f"  {_MARKS[one.outcome]} {escape(f'{one.check}, {one.path}: {one.text}')}" for one in found.findings
    ]
    verdict = "[green]passed[/green]" if found.verdict == "pass" else "[red]FAILED[/red]"
    return "\n".join([f"Reversibility of {escape(found.channel)}@{found.version} {verdict}", *lines])
