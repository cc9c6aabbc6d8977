"""`efface checkpoint`: sign what the ledger is now, and prove what is in it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..registry import Registry, checks, log_checkpoints
from ..registry.log_checkpoints import SignedCheckpoint
from .files import KeyOption, private_key
from .options import DEFAULT_ACTOR, DEFAULT_REGISTRY, ActorOption, Format, FormatOption, RegistryOption
from .output import emit, emit_table

app = typer.Typer(help="Signed checkpoints of the ledger, and proofs.", no_args_is_help=True)


@app.command("create", epilog="Example: efface checkpoint create --key log.key --origin example.com/efface")
def create(
    key: KeyOption = None,
    origin: Annotated[
        str | None, typer.Option("--origin", help="Name of the log; that of the last checkpoint by default.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Sign the Merkle root of all events with a key of the role `log`, and print the signed note.

    Keep the note where the registry's administrators cannot reach it: it shows any later rewriting.
    """
    private = private_key(key)
    with Registry.open(registry) as reg:
        made = log_checkpoints.make_checkpoint(reg, private, origin=_origin(reg, origin), actor=actor)
    emit(_record(made), format, made.note)


@app.command("list", epilog="Example: efface checkpoint list --format json")
def list_(registry: RegistryOption = DEFAULT_REGISTRY, format: FormatOption = Format.text) -> None:
    """List the stored checkpoints, oldest first. `efface verify` checks them."""
    with Registry.open(registry) as reg:
        records = [_record(one) for one in log_checkpoints.list_checkpoints(reg)]
    columns = ["tree_size", "at", "root", "origin"]
    emit_table(records, columns, format, "No checkpoints yet: efface checkpoint create")


@app.command("prove", epilog="Example: efface checkpoint prove --event 7 --size 120")
def prove(
    event: Annotated[
        int | None, typer.Option("--event", min=1, help="Prove that this event is in the tree.")
    ] = None,
    first: Annotated[
        int | None, typer.Option("--from", min=0, help="Prove that a tree of this size is its beginning.")
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Events of the tree; all by default.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Print an inclusion or a consistency proof (RFC 6962), for a root that somebody holds."""
    if (event is None) == (first is None):
        raise typer.BadParameter("expected --event or --from, and one of them only")
    with Registry.open(registry) as reg:
        if event is not None:
            proof = log_checkpoints.inclusion(reg, event, size)
        else:
            proof = log_checkpoints.consistency(reg, checks.count(first or 0, "first size", 0), size)
    record = proof.record()
    lines = [f"{name:12} {value}" for name, value in record.items() if name != "path"]
    emit(record, format, "\n".join([*lines, *(f"{'path':12} {node}" for node in proof.path)]))


def _origin(reg: Registry, origin: str | None) -> str:
    if origin is not None:
        return origin
    if not (stored := log_checkpoints.list_checkpoints(reg)):
        raise typer.BadParameter("expected --origin for the first checkpoint, such as example.com/efface")
    return stored[-1].checkpoint.origin


def _record(made: SignedCheckpoint) -> dict[str, Any]:
    """A checkpoint with its two signed forms."""
    return {**made.checkpoint.record(), "keys": list(made.keys), "envelope": made.envelope, "note": made.note}
