"""`efface request`: what is to be forgotten, and how far it has come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..registry import (
    BASES,
    Registry,
    checks,
    evidence_of,
    get_request,
    list_adapters,
    list_requests,
    open_request,
    requests_of_subject,
    supported_claim,
)
from . import request_end, request_lengths, request_steps
from .lookups import releases_of
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    AfterOption,
    Format,
    FormatOption,
    LimitOption,
    RegistryOption,
    RequestArgument,
)
from .output import emit, emit_table, talk
from .records import OpenedRecord, RequestDetails, RequestRecord, evidence_json, request_json

if TYPE_CHECKING:
    from ..recipes.data import Drawn

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
    retain: Annotated[
        list[str] | None, typer.Option("--retain", metavar="SOURCE", help="Rows to keep. Repeatable.")
    ] = None,
    neighbours: Annotated[
        list[str] | None,
        typer.Option("--neighbours", metavar="SOURCE", help="Rows to watch but never train on. Repeatable."),
    ] = None,
    retain_limit: Annotated[
        int | None,
        typer.Option("--retain-limit", min=1, help="Draw so many rows of each --retain; all by default."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of that draw.")] = 0,
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
    moment = _moment(received_at)
    data = load_request_data(
        forget, retain or [], neighbours or [], retain_limit=retain_limit, seed=seed, on_read=_tell
    )
    with Registry.open(registry, create=True) as reg:
        earlier = requests_of_subject(reg, subject_ref) if subject_ref else []
        request = open_request(
            reg,
            basis=basis,
            payload=to_payload(data),
            n_items=len(data.forget),
            subject_ref=subject_ref,
            received_at=moment,
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


@app.command("list", epilog="Example: efface request list --overdue --format json")
def list_(
    state: Annotated[str | None, typer.Option("--state", help="Only requests in this state.")] = None,
    late: Annotated[
        bool, typer.Option("--overdue", help="Only those that should be answered by now.")
    ] = False,
    after: AfterOption = None,
    limit: LimitOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """List forget requests in order of receipt, with the day each is due (extensions counted)."""
    wanted = state.upper() if state else None
    with Registry.open(registry) as reg:
        found = list_requests(reg, wanted, overdue=late, after=after, limit=limit)
        records = [request_json(request, reg.clock()) for request in found]
    columns = ["id", "basis", "state", "n_items", "received_at", "due", "late"]
    emit_table(
        [_row(r) for r in records] if format is Format.text else records, columns, format, "No requests."
    )


@app.command("show", epilog="Example: efface request show req-000001")
def show(
    request_id: RequestArgument,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Show one request: its deadline, its adapters, the releases that hold it, and what may be claimed of it."""
    with Registry.open(registry) as reg:
        record: RequestDetails = {
            **request_json(get_request(reg, request_id), reg.clock()),
            "adapters": [adapter.digest for adapter in list_adapters(reg, request_id)],
            "releases": [
                {"channel": release.channel, "version": release.version}
                for release in releases_of(reg, request_id)
            ],
            "evidence": evidence_json(evidence_of(reg, request_id)),
            "supported_claim": supported_claim(reg, request_id),
        }
    emit(record, format, "\n".join(_lines(record)))


app.command("lengths", epilog=request_lengths.EXAMPLE)(request_lengths.lengths)
app.command("verify", epilog=request_steps.VERIFY_EXAMPLE)(request_steps.verify)
app.command("accept", epilog=request_steps.ACCEPT_EXAMPLE)(request_steps.accept)
app.command("refuse", epilog=request_steps.REFUSE_EXAMPLE)(request_steps.refuse)
app.command("withdraw", epilog=request_steps.WITHDRAW_EXAMPLE)(request_steps.withdraw)
app.command("extend", epilog=request_steps.EXTEND_EXAMPLE)(request_steps.extend)
app.command("shred", epilog=request_end.SHRED_EXAMPLE)(request_end.shred)
app.command("close", epilog=request_end.CLOSE_EXAMPLE)(request_end.close)
app.command("evidence", epilog=request_end.EVIDENCE_EXAMPLE)(request_end.evidence)


def _row(record: RequestRecord) -> dict[str, object]:
    return {**record, "due": record["effective_due_at"], "late": "OVERDUE" if record["overdue"] else ""}


def _lines(record: RequestDetails) -> list[str]:
    listed = ("adapters", "releases", "evidence")
    lines = [f"{key:16} {_said(value)}" for key, value in record.items() if key not in listed]
    lines += [f"{'adapter':16} {digest}" for digest in record["adapters"] or ["–"]]
    names = [f"{release['channel']}@{release['version']}" for release in record["releases"]]
    lines += [f"{'served by':16} {name}" for name in names or ["–"]]
    lines += [
        f"{'evidence':16} {one['level']} by {one['method']}: {one['statement']}" for one in record["evidence"]
    ]
    return lines


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def _tell(drawn: Drawn) -> None:
    if len(drawn.rows) < drawn.seen:
        talk.print(escape(f"{drawn.source}: {len(drawn.rows)} of {drawn.seen} rows drawn"), soft_wrap=True)


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected RFC 3339 such as 2026-11-22T09:00:00Z, got {text!r}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise typer.BadParameter(f"expected a moment in the past, got {text!r}, which is in the future")
    return moment
