"""`efface bundle`: evidence in one file, and checking it anywhere."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..registry import Registry, bundle, bundle_verify
from ..registry.bundle_summary import deadline
from ..registry.bundle_verify import BundleVerification
from .failure import CHECK_FAILED
from .files import KeyOption, private_key_at_hand, public_key
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit, talk

app = typer.Typer(help="Evidence bundles.", no_args_is_help=True)
_REQUEST = re.compile(r"req-[0-9]{6,}")


@app.command("export", epilog="Example: efface bundle export req-000001 --out req-000001.efface.zip")
def export(
    about: Annotated[str, typer.Argument(metavar="REQUEST|CHANNEL", help="Such as req-000001, or prod.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file, NAME.efface.zip.")],
    key: KeyOption = None,
    origin: Annotated[
        str | None, typer.Option("--origin", help="Name of the log, for its first checkpoint.")
    ] = None,
    with_subject: Annotated[
        bool, typer.Option("--with-subject", help="Put in the keyed reference to who asked.")
    ] = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Write what the ledger shows of a request or a channel: no rows, no weights, nothing of who asked.

    With the log's key, events that no checkpoint covers yet are signed; without one the bundle says that nobody did.
    """
    private = private_key_at_hand(key)
    request = about if _REQUEST.fullmatch(about) else None
    with Registry.open(registry) as reg:
        made = bundle.export_bundle(
            reg,
            out,
            request=request,
            channel=None if request else about,
            private=private,
            origin=origin,
            with_subject=with_subject,
        )
    if made.signed_size != made.tree_size:
        talk.print(escape(bundle_verify.UNSIGNED), soft_wrap=True)
    record = {**asdict(made), "path": str(made.path)}
    emit(record, format, f"{made.path}\n{made.digest}\n{made.events} events, {made.size} bytes")


@app.command("verify", epilog="Example: efface bundle verify req-000001.efface.zip --key log.pub")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `efface bundle export` wrote.")],
    keys: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="PEM", help="Public key of the log, as you were given it. Repeatable."),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Check a bundle offline: no registry, no network. Exit 1 when anything is not as it was written or signed."""
    trusted = [public_key(path) for path in keys] if keys else None
    found = bundle_verify.verify_bundle(file, trusted_keys=trusted)
    for warning in found.warnings:
        talk.print(f"[yellow]warning:[/yellow] {escape(warning)}", soft_wrap=True)
    emit(_record(found), format, "\n".join(_lines(found)))
    raise typer.Exit(0 if found.ok else CHECK_FAILED)


def _record(found: BundleVerification) -> dict[str, Any]:
    """Facts are left out where something is wrong: they may be anybody's."""
    record = {name: value for name, value in asdict(found).items() if name != "facts"}
    return {"ok": found.ok, **record, "facts": dict(found.facts) if found.ok else None}


def _lines(found: BundleVerification) -> list[str]:
    problems = [f"{p.where}: expected {p.expected}, found {p.found}" for p in found.problems]
    if problems:
        return [*problems, "NOT as written"]
    requests = [
        f"{row['id']}  {row['state']}  {row['claim'] or row['supported'] or 'nothing claimed'}  {deadline(row)}"
        for row in found.facts["requests"]
    ]
    signers = [f"signed by {one.name} {one.key_id}: {', '.join(one.signed)}" for one in found.signers]
    signed = "no" if found.signed_size is None else str(found.signed_size)
    counts = f"{found.events} events of {found.tree_size}, {signed} signed: as written"
    return [f"{found.kind} {found.id}", *requests, *signers, counts]
