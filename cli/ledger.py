"""`efface log` and `efface verify`: what happened, and whether the book still says so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..registry import InvalidInput, Registry
from ..registry import log as read_log
from ..registry import verify as verify_registry
from ..registry.checkpoints import TreeHead, parse_note_text, verify_note
from .failure import BROKEN_REGISTRY
from .files import public_key
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
    witness: Annotated[
        list[Path] | None,
        typer.Option(
            "--witness", metavar="NOTE", help="A checkpoint that you kept. Repeatable; needs --key."
        ),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="PEM", help="Public key of the log, as you were given it. Repeatable."),
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Check hash chain, projections, signatures, blobs and vault. Exit 3 and name each culprit if anything differs.

    Stored checkpoints must be signed by the registry's own keys. A --witness is a note that `checkpoint create` printed
    and somebody outside kept: it holds even against whoever has rewritten the ledger and its keys.

    Blobs that nothing refers to are no damage: --deep lists them, `efface gc` deletes them. It lists other files
    that do not belong there too.
    """
    with Registry.open(registry, any_vault=True) as reg:
        found = verify_registry(reg, deep=deep, witness=_kept(witness or [], key or []))
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
        "vault_checked": found.vault_checked,
        "vault_unchecked": found.vault_unchecked,
    }
    lines = [f"{p['kind']}: {p['where']}: expected {p['expected']}, found {p['found']}" for p in problems]
    lines += [f"extra: {digest}" for digest in found.extras]
    if found.vault_unchecked:
        why = "no vault folder or no master key here" if deep else "--deep opens them"
        lines.append(f"vault entries not checked: {found.vault_unchecked} ({why})")
    opened = f", {found.vault_checked} vault entries opened" if found.vault_checked else ""
    signed = f", {found.checkpoints} checkpoints" if found.checkpoints else ""
    summary = f"{found.events} events, {found.blobs} blobs{signed}{opened}: " + (
        "as written" if not problems else "NOT as written"
    )
    emit(record, format, "\n".join([*lines, summary]))
    if any(name.startswith("sha256:") for name in found.extras):
        talk.print("Extra blobs are leftovers that no event names: `efface gc` deletes them.")
    if any(not name.startswith("sha256:") for name in found.extras):
        talk.print(
            "Extra files belong to nothing in the ledger: look at them, and move or delete them yourself; "
            "`efface vault drop-orphans` destroys vault entries without a request."
        )
    raise typer.Exit(BROKEN_REGISTRY if problems else 0)


def _kept(notes: list[Path], pems: list[Path]) -> list[TreeHead]:
    """The tree heads that an outsider kept, each signed by one of the keys under the name of its log."""
    if notes and not pems:
        raise typer.BadParameter("expected --key PEM with --witness: a note is worth what its signature is")
    heads: list[TreeHead] = []
    for path in notes:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            then = "Pass what `efface checkpoint create` printed."
            raise InvalidInput(f"a checkpoint's note at {path}", type(error).__name__, then) from error
        origin = parse_note_text(text.partition("\n\n")[0] + "\n").origin
        heads.append(verify_note(text, [(origin, public_key(pem)) for pem in pems], origin))
    return heads
