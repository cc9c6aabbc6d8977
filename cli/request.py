"""`efface request`: what is to be forgotten, and how far it has come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from ..registry import BASES, Registry, checks, open_request, requests_of_subject
from . import request_end, request_lengths, request_read, request_steps
from .files import moment
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    DrawSeedOption,
    EntailedOption,
    Format,
    FormatOption,
    FormatRowsOption,
    HeldoutOption,
    RegistryOption,
    RetainLimitOption,
    RetainOption,
    UnrelatedOption,
)
from .output import emit, talk, tell_drawn
from .records import OpenedRecord, request_json

app = typer.Typer(help="Forget requests.", no_args_is_help=True)


@app.command(
    "open",
    epilog="Example: efface request open --forget forget.jsonl --retain retain.jsonl --basis copyright",
)
def open_(
    forget: Annotated[
        str, typer.Option("--forget", metavar="SOURCE", help="Rows to forget: a file, or org/name.")
    ],
    basis: Annotated[str, typer.Option("--basis", help=f"Why: {', '.join(BASES)}.")],
    retain: RetainOption = None,
    neighbours: Annotated[
        list[str] | None,
        typer.Option("--neighbours", metavar="SOURCE", help="Rows to watch but never train on. Repeatable."),
    ] = None,
    heldout: HeldoutOption = None,
    entailed: EntailedOption = None,
    format_rows: FormatRowsOption = None,
    unrelated: UnrelatedOption = None,
    retain_limit: RetainLimitOption = None,
    seed: DrawSeedOption = 0,
    subject_ref: Annotated[
        str | None, typer.Option("--subject-ref", help="Who asks; kept as a keyed hash.")
    ] = None,
    received_at: Annotated[
        str | None, typer.Option("--received-at", help="RFC 3339; now by default.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Open a forget request. The rows go into the encrypted vault; the ledger holds a keyed commitment only.

    SOURCE is a file (JSONL, JSON, CSV, parquet), a folder, or a dataset such as hf://datasets/org/name@main.
    Rows are read and checked, once, before anything is written. A registry that is not there yet is made.
    """
    from ..recipes.data import load_request_data, to_payload

    checks.choice(basis, "basis", BASES)
    checks.actor(actor)
    if subject_ref is not None:
        checks.text(subject_ref, "subject_ref", 500)
    received = _past(received_at)
    data = load_request_data(
        forget,
        retain or [],
        neighbours or [],
        heldout=heldout or [],
        entailed=entailed or [],
        formats=format_rows or [],
        unrelated=unrelated or [],
        retain_limit=retain_limit,
        seed=seed,
        on_read=tell_drawn,
    )
    with Registry.open(registry, create=True) as reg:
        earlier = requests_of_subject(reg, subject_ref) if subject_ref else []
        request = open_request(
            reg,
            basis=basis,
            payload=to_payload(data),
            n_items=len(data.forget),
            subject_ref=subject_ref,
            received_at=received,
            actor=actor,
        )
        record: OpenedRecord = {
            **request_json(request, reg.clock()),
            "earlier_requests": [one.id for one in earlier],
        }
    if earlier:
        talk.print(f"the same subject asked before: {', '.join(record['earlier_requests'])}", soft_wrap=True)
    due = f" · due {request.due_at}" if request.due_at else ""
    emit(
        record,
        format,
        f"{request.id}\n{request.n_items} rows to forget · {request.basis} · {request.state}{due}",
    )


app.command("list", epilog=request_read.LIST_EXAMPLE)(request_read.list_)
app.command("show", epilog=request_read.SHOW_EXAMPLE)(request_read.show)
app.command("lengths", epilog=request_lengths.EXAMPLE)(request_lengths.lengths)
app.command("verify", epilog=request_steps.VERIFY_EXAMPLE)(request_steps.verify)
app.command("accept", epilog=request_steps.ACCEPT_EXAMPLE)(request_steps.accept)
app.command("refuse", epilog=request_steps.REFUSE_EXAMPLE)(request_steps.refuse)
app.command("withdraw", epilog=request_steps.WITHDRAW_EXAMPLE)(request_steps.withdraw)
app.command("extend", epilog=request_steps.EXTEND_EXAMPLE)(request_steps.extend)
app.command("shred", epilog=request_end.SHRED_EXAMPLE)(request_end.shred)
app.command("close", epilog=request_end.CLOSE_EXAMPLE)(request_end.close)
app.command("evidence", epilog=request_end.EVIDENCE_EXAMPLE)(request_end.evidence)


def _past(text: str | None) -> datetime | None:
    if (found := moment(text)) is not None and found > datetime.now(UTC):
        raise typer.BadParameter(f"expected a moment in the past, got {text!r}, which is in the future")
    return found
