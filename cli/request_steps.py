"""`efface request verify | accept | refuse | withdraw | extend`: what people decide about a request."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Conflict, ForgetRequest, Registry, extend_request, get_request, step_request
from .lookups import releases_of
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    ReasonOption,
    RegistryOption,
    RequestArgument,
)
from .output import emit
from .records import request_json

VERIFY_EXAMPLE = "Example: efface request verify req-000001 --reason 'passport seen'"
ACCEPT_EXAMPLE = "Example: efface request accept req-000001"
REFUSE_EXAMPLE = "Example: efface request refuse req-000001 --reason 'Art. 17(3)(a): freedom of information'"
WITHDRAW_EXAMPLE = "Example: efface request withdraw req-000001 --reason 'taken back by the subject'"
EXTEND_EXAMPLE = "Example: efface request extend req-000001 --months 2 --reason 'eleven requests at once'"
MaybeReason = Annotated[
    str | None, typer.Option("--reason", help="For the ledger, for good: no personal data.")
]


def verify(
    request_id: RequestArgument,
    reason: MaybeReason = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Record that the request is from who it says: RECEIVED becomes VERIFIED."""
    _step(registry, request_id, "VERIFIED", reason, actor, format)


def accept(
    request_id: RequestArgument,
    reason: MaybeReason = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Record that it will be answered by forgetting: VERIFIED becomes ACCEPTED."""
    _step(registry, request_id, "ACCEPTED", reason, actor, format)


def refuse(
    request_id: RequestArgument,
    reason: ReasonOption,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Refuse a request, for good. Its rows can then be shredded."""
    _step(registry, request_id, "REFUSED", reason, actor, format)


def withdraw(
    request_id: RequestArgument,
    reason: ReasonOption,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Record that the request was taken back, for good. One in an active release is rolled back first."""
    _step(registry, request_id, "WITHDRAWN", reason, actor, format)


def extend(
    request_id: RequestArgument,
    months: Annotated[int, typer.Option("--months", min=1, max=2, help="1 or 2 more months.")],
    reason: ReasonOption,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Put off the deadline: once, within the first month, and the subject is told why (GDPR Art. 12(3))."""
    with Registry.open(registry) as reg:
        _say(reg, extend_request(reg, request_id, months=months, reason=reason, actor=actor), format)


def _step(registry: str, request_id: str, to: str, reason: str | None, actor: str, format: Format) -> None:
    with Registry.open(registry) as reg:
        if to in ("REFUSED", "WITHDRAWN"):
            _not_served(reg, get_request(reg, request_id).id)
        _say(reg, step_request(reg, request_id, to, actor=actor, reason=reason), format)


def _not_served(reg: Registry, request_id: str) -> None:
    holding = releases_of(reg, request_id)
    if holding:
        came = f"one in {', '.join(f'{release.channel}@{release.version}' for release in holding)}"
        then = (
            f"Roll it back first: efface release rollback {holding[0].channel} --remove {request_id} "
            "--reason TEXT --model BASE"
        )
        raise Conflict(f"{request_id} in no active release", came, then)


def _say(reg: Registry, request: ForgetRequest, format: Format) -> None:
    record = request_json(request, reg.clock())
    due = f"  due {record['effective_due_at']}" if record["effective_due_at"] else ""
    emit(record, format, f"{request.id}  {request.state}{due}")
