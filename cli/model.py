"""`efface model`: bring the demo model, and say what a base is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Format, FormatOption
from .output import emit, talk

app = typer.Typer(help="Base models.", no_args_is_help=True)


@app.command("fetch", epilog="Example: efface model fetch smollm2-135m")
def fetch(
    name: Annotated[str, typer.Argument(help="smollm2-135m")],
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write; the cache by default.")] = None,
    format: FormatOption = Format.text,
) -> None:
    """Bring a small real model (SmolLM2-135M-Instruct, Apache-2.0) into the cache, once."""
    from ..adapters import fetch_model

    path = fetch_model(name, to, progress=talk.print)
    emit({"name": name, "path": str(path)}, format, str(path))


@app.command("show", epilog="Example: efface model show ~/.cache/efface/models/smollm2-135m")
def show(
    path: Annotated[str, typer.Argument(help="A model folder or a Hub id.")],
    format: FormatOption = Format.text,
) -> None:
    """Print the fingerprint of a base: the digests that adapters and audits are bound to."""
    from ..adapters.model import fingerprint, resolve

    folder = resolve(path)
    marks = fingerprint(folder)
    record = {
        "path": str(folder),
        "digest": marks.digest,
        "config": marks.config,
        "tokenizer": marks.tokenizer,
        "weights": marks.weights,
    }
    emit(record, format, "\n".join(f"{key:10} {value}" for key, value in record.items()))
