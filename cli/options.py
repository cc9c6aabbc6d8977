"""The options that many commands share, declared once."""

from __future__ import annotations

import getpass
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What stands on stdout."""

    text = "text"
    json = "json"


def default_actor() -> str:
    """Who the ledger names when nobody says: the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def writable(path: Path | None) -> Path | None:
    """``path`` if a file can be made there. A report comes last, after minutes: its place is checked first."""
    folder = path.parent if path else None
    if path and folder and (path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK)):
        raise typer.BadParameter(f"expected a file in a folder that can be written to, got {path}")
    return path


RegistryOption = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="EFFACE_REGISTRY",
        help="A folder, sqlite:///folder or postgresql://host/database.",
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Data on stdout as text or JSON.")]
ActorOption = Annotated[
    str,
    typer.Option("--actor", envvar="EFFACE_ACTOR", help="Who does this, for the ledger.", show_default=False),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", envvar="EFFACE_MODEL", help="Base model: a folder or a Hub id.")
]
RetainOption = Annotated[
    list[str] | None, typer.Option("--retain", metavar="SOURCE", help="Rows to keep. Repeatable.")
]
RetainLimitOption = Annotated[
    int | None,
    typer.Option("--retain-limit", min=1, help="Draw so many rows of each --retain; all by default."),
]
DrawSeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of that draw.")]
HeldoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--heldout", metavar="SOURCE", help="Rows of what must go that are not trained on. Repeatable."
    ),
]
EntailedOption = Annotated[
    list[str] | None,
    typer.Option("--entailed", metavar="SOURCE", help="Rows that follow from what must go. Repeatable."),
]
FormatRowsOption = Annotated[
    list[str] | None,
    typer.Option("--format-rows", metavar="SOURCE", help="Translations and other formats of it. Repeatable."),
]
UnrelatedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--unrelated", metavar="SOURCE", help="Rows far away to watch, never trained on. Repeatable."
    ),
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A shipped recipe's name or a YAML file.")]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key. Repeatable.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the ledger.")]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", help="Write the audit report as one HTML page.", callback=writable),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the audit report as JSON.", callback=writable)
]
RenderOption = Annotated[
    str | None,
    typer.Option(
        "--render",
        help="How it is served: cat (exact), live, svd:RANK, error:E, ties|dare|knots:DENSITY:RANK. "
        "By default as the release that it is made from, or cat.",
    ),
]
SlotOption = Annotated[
    int | None, typer.Option("--max-lora-rank", min=1, help="What the server takes; vLLM's 512 by default.")
]
RevealOption = Annotated[
    bool,
    typer.Option(
        "--reveal", help="Put prompts and answers into the report. It then shows the forgotten text."
    ),
]
RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="Such as req-000001.")]
ChannelArgument = Annotated[str, typer.Argument(metavar="CHANNEL", help="Such as prod.")]
VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Its number.")]
AdapterArgument = Annotated[
    str, typer.Argument(metavar="REF", help="An adapter's digest, or 6 or more hex digits of it.")
]
AfterOption = Annotated[
    str | None,
    typer.Option("--after", metavar="ID", help="Go on behind this one: the last of the page before."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Do it. Without this the plan is shown and nothing is changed.")
]
DEFAULT_REGISTRY = ".efface"
DEFAULT_ACTOR = default_actor()
