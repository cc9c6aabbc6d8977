"""`efface request`: what is to be forgotten, and how far it has come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from ..registry import BASES, Registry, checks, get_request, list_adapters, list_requests, open_request
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    ModelOption,
    RecipeOption,
    RegistryOption,
    SetOption,
)
from .output import emit, emit_table, talk
from .records import request_json

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
        request = open_request(
            reg,
            basis=basis,
            payload=to_payload(data),
            n_items=len(data.forget),
            subject_ref=subject_ref,
            received_at=moment,
            actor=actor,
        )
    record = request_json(request)
    emit(
        record, format, f"{request.id}\n{request.n_items} rows to forget · {request.basis} · {request.state}"
    )


@app.command("list", epilog="Example: efface request list --format json")
def list_(
    state: Annotated[str | None, typer.Option("--state", help="Only requests in this state.")] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """List forget requests."""
    with Registry.open(registry) as reg:
        records = [request_json(request) for request in list_requests(reg, state)]
    emit_table(
        records, ["id", "basis", "state", "n_items", "received_at", "due_at"], format, "No requests yet."
    )


@app.command("show", epilog="Example: efface request show req-000001")
def show(
    request_id: Annotated[str, typer.Argument(help="Such as req-000001.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Show one request and its adapters."""
    with Registry.open(registry) as reg:
        record = request_json(get_request(reg, request_id))
        record["adapters"] = [adapter.digest for adapter in list_adapters(reg, request_id)]
    lines = [
        f"{key:12} {value if value is not None else '–'}"
        for key, value in record.items()
        if key != "adapters"
    ]
    lines += [f"{'adapter':12} {digest}" for digest in record["adapters"]] or [f"{'adapter':12} –"]
    emit(record, format, "\n".join(lines))


@app.command("lengths", epilog="Example: efface request lengths req-000001 --model ./base")
def lengths(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Such as req-000001.")],
    model: ModelOption,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Tokens per row of each set, and how many rows the recipe's max_length would refuse or cut.

    Loads the tokenizer only. Prints numbers and, as JSON, the ids of rows that are too long; no text.
    """
    from ..adapters import require_context
    from ..recipes.audit import request_data
    from ..recipes.lengths import format_lengths, open_tokenizer, request_lengths
    from ..recipes.recipe import load_recipe

    chosen = load_recipe(recipe, overrides)
    with Registry.open(registry) as reg:
        get_request(reg, request_id)
        data = request_data(reg, [request_id])[request_id]
    tokenizer, config = open_tokenizer(model)
    require_context(config, chosen.max_length)
    method = chosen.method(has_chat_template=bool(tokenizer.chat_template))
    report = request_lengths(
        tokenizer,
        data,
        chat=method.chat,
        max_length=chosen.max_length,
        max_new_tokens=chosen.max_new_tokens,
    )
    emit(report.to_json(), format, format_lengths(report))


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
