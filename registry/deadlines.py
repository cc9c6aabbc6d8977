"""When a request is due, and by how much that may be put off. Calendar months, as the regulation counts them.

GDPR Art. 12(3): an answer within one month of receipt, extended by two further months where necessary, the subject
being told of the extension and its reasons within the first month. The UK GDPR is the same; the CCPA's 45 days are
never earlier than a month, so a month holds for it too. Art. 12(3) counts from receipt; when the day does not exist
in the later month, its last day is meant (Regulation 1182/71, Art. 3(2)(c)).

The same moment can be another day in another zone: 23:00 on 28 February in New York is 1 March in UTC, due on
28 March or on 1 April. Months are counted in the zone that receipt is stated in and in UTC; the earlier day holds.
"""

from __future__ import annotations

from datetime import UTC, datetime

from .canon import months_later, parse_timestamp, timestamp
from .errors import Conflict
from .types import ForgetRequest

PRIVACY_BASES = ("gdpr17", "uk_gdpr", "ccpa")
"""These fall due one calendar month after receipt."""
ANSWERED = ("RELEASED", "SHREDDED", "CLOSED", "REFUSED", "WITHDRAWN")
"""States in which nothing is due any more."""


def due(basis: str, received: datetime) -> str | None:
    """The moment by which a request on this basis is to be answered; None for bases without a deadline."""
    if basis not in PRIVACY_BASES:
        return None
    as_said = months_later(received.replace(tzinfo=UTC), 1).replace(tzinfo=received.tzinfo)
    return timestamp(min(months_later(received, 1), as_said))


def effective(request: ForgetRequest) -> str | None:
    """The moment it is due, extension included; None without a deadline."""
    return request.extended_to or request.due_at


def overdue(request: ForgetRequest, now: str) -> bool:
    """Whether it should have been answered before `now` (RFC 3339) and is not."""
    moment = effective(request)
    return moment is not None and request.state not in ANSWERED and now > moment


def extension(request: ForgetRequest, months: int, now: str) -> str:
    """The new moment, `months` after the first one, counted from receipt (from the first one where that
    was counted in a zone of its own: never later than that zone's). Raises Conflict where none is allowed."""
    if request.due_at is None:
        came = f"{request.id}, which has none on basis {request.basis}"
        raise Conflict("a request with a due date", came, "There is nothing to extend.")
    if request.extended_to is not None:
        came = f"{request.id}, extended to {request.extended_to}"
        raise Conflict("a request that is not extended yet", came, "Answer it: it can be extended once.")
    if request.state in ANSWERED:
        raise Conflict(f"{request.id} unanswered", request.state, "There is nothing to extend.")
    if now > request.due_at:
        came = f"{now}, past {request.due_at}"
        raise Conflict("an extension within the first month", came, "Answer it: it is overdue.")
    received = parse_timestamp(request.received_at)
    if (
        timestamp(months_later(received, 1)) != request.due_at
    ):  # counted in another zone, which is not known here
        return timestamp(months_later(parse_timestamp(request.due_at), months))
    return timestamp(months_later(received, 1 + months))
