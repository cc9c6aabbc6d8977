"""`efface request list | show`: how far requests have come, what is late, and what may be claimed."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import (
    Registry,
    evidence_of,
    get_request,
    list_adapters,
    list_requests,
    supported_claim,
)
from .lookups import releases_of
from .options import (
    DEFAULT_REGISTRY,
    AfterOption,
    Format,
    FormatOption,
    LimitOption,
    RegistryOption,
    RequestArgument,
)
from .output import emit, emit_table
from .records import RequestDetails, RequestRecord, evidence_json, request_json

LIST_EXAMPLE = "Example: efface request list --overdue --format json"
SHOW_EXAMPLE = "Example: efface request show req-000001"


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
