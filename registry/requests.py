"""Forget requests: opening one, its life, and its rows in the vault."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any, get_args

from . import checks, deadlines, durable, ledger, states, vault_binding
from .canon import JSON, timestamp
from .errors import BrokenRegistry, Conflict, InvalidInput, NotFound
from .registry import Registry, Writer
from .tables import Row, Tables
from .types import Basis, ForgetRequest

BASES: tuple[Basis, ...] = get_args(Basis)
STEPS_BY_HAND = ("VERIFIED", "ACCEPTED", "REFUSED", "WITHDRAWN", "AUDITED")
"""What a person decides. TRAINED, RELEASED and REOPENED follow from sealing and releasing; SHREDDED and CLOSED have
calls of their own (`shred_request`, `close_request`)."""
LEGAL_BASES: tuple[Basis, ...] = (*deadlines.PRIVACY_BASES, "copyright")
"""Bases on which somebody has a right to an answer: who asks is verified, and the request accepted, by a person."""
_NEEDS_REASON = ("REFUSED", "WITHDRAWN")


def open_request(
    reg: Registry,
    *,
    basis: str,
    payload: bytes,
    n_items: int,
    subject_ref: str | None = None,
    received_at: datetime | None = None,
    actor: str,
) -> ForgetRequest:
    """Record a request to forget. `payload`, opaque bytes with the rows, goes encrypted into the vault only.

    The ledger holds a keyed commitment to the payload and, for `subject_ref` (who asked), a keyed hash by
    which a repeat request is found. `received_at` defaults to now. On InvalidInput, and on Conflict where the vault
    here is not the registry's (`vault_binding`), nothing is written.

    Under a ledger older than the vault, an entry with the new request's id is kept aside (`Vault.leftover`).
    """
    body = _opening(reg, basis, payload, n_items, subject_ref, received_at)
    with reg.write(actor) as tx:
        vault = vault_binding.prepare(tx.db, reg.vault)
        request_id = f"req-{tx.db.count('forget_request') + 1:06d}"
        subject = None if subject_ref is None else reg.vault.subject(subject_ref)
        found = reg.vault.leftover(request_id, payload)
        try:
            commitment = found or reg.vault.put(request_id, payload)
            ledger.append(
                tx, "request.received", request_id, {**body, "commitment": commitment, "vault": vault}
            )
            if subject is not None:
                # An event of its own, so that evidence can be shown without it.
                ledger.append(tx, "request.identified", request_id, {"subject_ref": subject})
            return load(tx.db, request_id)
        except BaseException:
            if found is None:
                reg.vault.discard(request_id)
            raise


def get_request(reg: Registry, request_id: str) -> ForgetRequest:
    """The request with this id. Raises NotFound."""
    with reg.read() as db:
        return load(db, request_id)


def list_requests(
    reg: Registry,
    state: str | None = None,
    *,
    overdue: bool = False,
    after: str | None = None,
    limit: int | None = None,
) -> list[ForgetRequest]:
    """Requests in order of receipt: all or a page (`after` an id, at most `limit`), in one state, overdue now."""
    where: dict[str, Any] = (
        {} if state is None else {"state": checks.choice(state, "state", tuple(states.REQUEST))}
    )
    count = None if limit is None else checks.count(limit, "limit", 1)
    now = timestamp(reg.clock())
    with reg.read() as db:
        start = None if after is None else _row(db, after)["seq"]
        if not overdue:
            rows = db.find("forget_request", order="seq", after=start, limit=count, **where)
            return [request_of(row) for row in rows]
        found = [request_of(row) for row in db.find("forget_request", order="seq", after=start, **where)]
    late = [request for request in found if deadlines.overdue(request, now)]
    return late if count is None else late[:count]


def requests_of_subject(reg: Registry, subject_ref: str) -> list[ForgetRequest]:
    """Earlier requests of the same subject, named as in `open_request`.

    Raises BrokenRegistry when there are requests with a subject, and the key that finds them is lost.
    """
    checks.text(subject_ref, "subject_ref", 500)
    if not reg.vault.keys.complete():
        with reg.read() as db:
            if all(row["subject_ref"] is None for row in db.find("forget_request")):
                return []
    reference = reg.vault.subject(subject_ref)
    with reg.read() as db:
        return [request_of(row) for row in db.find("forget_request", order="seq", subject_ref=reference)]


def read_payload(reg: Registry, request_id: str) -> bytes:
    """The request's rows, decrypted. Raises NotFound after shredding, BrokenRegistry unless they are those the
    ledger commits to."""
    request = get_request(reg, request_id)
    with durable.disk_errors(reg.vault.folder):
        payload, commitment = reg.vault.read(request.id)
    if not hmac.compare_digest(commitment, request.commitment):
        came = "a vault entry of another payload"
        raise BrokenRegistry(f"the payload that {request.id} commits to", came, "Restore the vault.")
    return payload


def row_key(reg: Registry, request_id: str | None) -> bytes:
    """32 bytes to hash single rows under, so that two audits can tell that they measured the same ones.

    A request's dies with its data; None: that of rows which nobody asks to forget. Raises as `read_payload`.
    """
    with durable.disk_errors(reg.vault.folder):
        if request_id is None:
            return reg.vault.shared_row_key()
        return reg.vault.row_key(get_request(reg, request_id).id)


def step_request(
    reg: Registry, request_id: str, to: str, *, actor: str, reason: str | None = None
) -> ForgetRequest:
    """Record a decision on a request (`STEPS_BY_HAND`); refusing and withdrawing need a reason.

    Raises Conflict when the request's state does not allow it.
    """
    checks.choice(to, "a decision", STEPS_BY_HAND)
    if reason is None and to in _NEEDS_REASON:
        raise InvalidInput(f"a reason for {to}", "none", "Say why with --reason.")
    body: dict[str, JSON] = {} if reason is None else {"reason": checks.reason(reason)}
    with reg.write(actor) as tx:
        states.step("request", load(tx.db, request_id).state, to)
        ledger.append(tx, f"request.{to.lower()}", request_id, body)
        return load(tx.db, request_id)


def extend_request(reg: Registry, request_id: str, *, months: int, reason: str, actor: str) -> ForgetRequest:
    """Put off the day it is due: GDPR Art. 12(3), by at most two months, once, told within the first month.

    Raises InvalidInput for other months or no reason, Conflict for a request without a due date, one that is
    extended or answered already, or when the first month is over.
    """
    checks.reason(reason)
    if months not in (1, 2):
        raise InvalidInput("an extension of 1 or 2 months", "another number", "Art. 12(3) allows no more.")
    with reg.write(actor) as tx:
        request = load(tx.db, request_id)
        until = deadlines.extension(request, months, tx.at)
        ledger.append(tx, "request.extended", request_id, {"until": until, "reason": reason})
        return load(tx.db, request_id)


def advance(tx: Writer, request_id: str, to: str, body: Mapping[str, JSON]) -> None:
    """Append every step from a request's state to `to`; none when it is there.

    Raises Conflict, also where a step is for a person to take (`check_accepted`).
    """
    request = load(tx.db, request_id)
    check_accepted(request)
    for state in states.path("request", request.state, to):
        ledger.append(tx, f"request.{state.lower()}", request_id, body)


def check_accepted(request: ForgetRequest) -> None:
    """Raise Conflict for a request on a legal basis (`LEGAL_BASES`) that nobody has verified and accepted yet.

    A `safety` or `test` request is the operator's own: training and releasing walk it through those states.
    """
    if request.basis not in LEGAL_BASES or request.state not in ("RECEIVED", "VERIFIED"):
        return
    commands = [f"efface request {verb} {request.id}" for verb in ("verify", "accept")]
    then = f"Decide on it first: {' && '.join(commands[request.state == 'VERIFIED' :])}"
    raise Conflict(f"{request.id} ({request.basis}) verified and accepted by a person", request.state, then)


def load(db: Tables, request_id: str) -> ForgetRequest:
    """The request with this id, inside a transaction. Raises NotFound."""
    return request_of(_row(db, request_id))


def request_of(row: Row) -> ForgetRequest:
    """The request in a row."""
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(ForgetRequest)}
    return ForgetRequest(**values)


def _row(db: Tables, request_id: str) -> Row:
    row = db.get("forget_request", request_id)
    if row is None:
        then = "List them with `efface request list`."
        raise NotFound("the id of a request (req-000001, …)", "an unknown id", then)
    return row


def _opening(
    reg: Registry,
    basis: str,
    payload: bytes,
    n_items: int,
    subject_ref: str | None,
    received_at: datetime | None,
) -> dict[str, JSON]:
    checks.choice(basis, "basis", BASES)
    checks.count(n_items, "n_items", 1)
    if not isinstance(payload, bytes) or not payload:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput("a payload of bytes", "none", "Pass the rows to forget.")
    if subject_ref is not None:
        checks.text(subject_ref, "subject_ref", 500)
    now = reg.clock()
    received = now if received_at is None else received_at
    if timestamp(received) > timestamp(now):
        raise InvalidInput("received_at in the past", "a time in the future", "Check the date and zone.")
    due = deadlines.due(basis, received)
    return {"basis": basis, "n_items": n_items, "received_at": timestamp(received), "due_at": due}
