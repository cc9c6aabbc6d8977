"""`efface log` and `efface verify`: what happened, and whether the book still says so."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Registry
from ..registry import log as read_log
from ..registry import verify as verify_registry
from .failure import BROKEN_REGISTRY
from .options import DEFAULT_REGISTRY, Format, FormatOption, RegistryOption
from .output import emit, emit_table, talk
from .record_acts import ProblemRecord, VerifyRecord
from .records import event_json

LOG_EXAMPLE = "Example: efface log --limit 20"
VERIFY_EXAMPLE = "Example: efface verify --deep"


def log(
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the newest events.")] = None,
    after: Annotated[
        int, typer.Option("--after", metavar="SEQ", min=0, help="Only events behind this one.")
    ] = 0,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only of this kind, such as release.active.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Print the ledger: every event with its hash, oldest first."""
    with Registry.open(registry) as reg:
        records = [event_json(event) for event in read_log(reg, limit, after=after, kind=kind)]
    emit_table(records, ["seq", "at", "kind", "subject_id", "actor", "hash"], format, "No events.")


def verify(
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash every blob and open every vault entry too.")
    ] = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Check the hash chain, the projections and the blobs. Exit 3 and name each culprit if anything differs.

    Blobs that nothing refers to are no damage: --deep lists them, `efface gc` deletes them.
    """
    with Registry.open(registry) as reg:
        found = verify_registry(reg, deep=deep)
    problems: list[ProblemRecord] = [
        {"kind": p.kind, "where": p.where, "expected": p.expected, "found": p.found} for p in found.problems
    ]
    record: VerifyRecord = {
        "events": found.events,
        "blobs": found.blobs,
        "deep": deep,
        "checkpoints": found.checkpoints,
        "problems": problems,
        "extras": list(found.extras),
    }
    lines = [f"{p['kind']}: {p['where']}: expected {p['expected']}, found {p['found']}" for p in problems]
    lines += [f"extra: {digest}" for digest in found.extras]
    summary = f"{found.events} events, {found.blobs} blobs: " + (
        "as written" if not problems else "NOT as written"
    )
    emit(record, format, "\n".join([*lines, summary]))
    if found.extras:
        talk.print("Extras are leftovers that no event names: `efface gc` deletes them.")
    raise typer.Exit(BROKEN_REGISTRY if problems else 0)
