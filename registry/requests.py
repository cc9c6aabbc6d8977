"""Forget requests: opening one, its life, and its rows in the vault."""

from __future__ import annotations

import hmac
import sqlite3
from dataclasses import fields
from datetime import datetime
from typing import Any, get_args

from . import checks, ledger, states
from .canon import JSON, next_month, timestamp
from .errors import BrokenRegistry, InvalidInput, NotFound
from .registry import Registry, Writer
from .types import Basis, ForgetRequest

BASES: tuple[Basis, ...] = get_args(Basis)
PRIVACY_BASES: tuple[Basis, ...] = ("gdpr17", "uk_gdpr", "ccpa")
"""These fall due one calendar month after receipt (GDPR Art. 12(3)). CCPA allows 45 days: never earlier."""
STEPS_BY_HAND = ("VERIFIED", "ACCEPTED", "REFUSED", "WITHDRAWN", "AUDITED", "CLOSED")
"""What a person decides. TRAINED, RELEASED and REOPENED follow from sealing and releasing."""
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
    which a repeat request is found. `received_at` defaults to now. On InvalidInput nothing is written.
    """
    body = _opening(reg, basis, payload, n_items, subject_ref, received_at)
    with reg.write(actor) as tx:
        reg.vault.keys.prepare()
        count = tx.db.execute("SELECT count(*) FROM forget_request").fetchone()[0]
        request_id = f"req-{count + 1:06d}"
        subject = None if subject_ref is None else reg.vault.subject(subject_ref)
        try:
            commitment = reg.vault.put(request_id, payload)
            ledger.append(
                tx, "request.received", request_id, {**body, "commitment": commitment, "subject_ref": subject}
            )
            return load(tx.db, request_id)
        except BaseException:
            reg.vault.discard(request_id)
            raise


def get_request(reg: Registry, request_id: str) -> ForgetRequest:
    """The request with this id. Raises NotFound."""
    with reg.read() as db:
        return load(db, request_id)


def list_requests(reg: Registry, state: str | None = None) -> list[ForgetRequest]:
    """All requests in order of receipt, or those in one state."""
    if state is not None:
        checks.choice(state, "state", tuple(states.REQUEST))
    query = "SELECT * FROM forget_request WHERE ?1 IS NULL OR state = ?1 ORDER BY seq"
    with reg.read() as db:
        return [_request(row) for row in db.execute(query, (state,))]


def requests_of_subject(reg: Registry, subject_ref: str) -> list[ForgetRequest]:
    """Earlier requests of the same subject, named as in `open_request`."""
    checks.text(subject_ref, "subject_ref", 500)
    if not reg.vault.keys.complete():
        return []
    reference = reg.vault.subject(subject_ref)
    with reg.read() as db:
        rows = db.execute("SELECT * FROM forget_request WHERE subject_ref = ? ORDER BY seq", (reference,))
        return [_request(row) for row in rows]


def read_payload(reg: Registry, request_id: str) -> bytes:
    """The request's rows, decrypted. Raises BrokenRegistry unless they are those the ledger commits to."""
    request = get_request(reg, request_id)
    payload, commitment = reg.vault.read(request.id)
    if not hmac.compare_digest(commitment, request.commitment):
        came = "a vault entry of another payload"
        raise BrokenRegistry(f"the payload that {request.id} commits to", came, "Restore the vault.")
    return payload


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


def advance(tx: Writer, request_id: str, to: str, body: dict[str, JSON]) -> None:
    """Append every step from a request's state to `to`; none when it is there. Raises Conflict."""
    for state in states.path("request", load(tx.db, request_id).state, to):
        ledger.append(tx, f"request.{state.lower()}", request_id, body)


def load(db: sqlite3.Connection, request_id: str) -> ForgetRequest:
    """The request with this id, inside a transaction. Raises NotFound."""
    row = db.execute("SELECT * FROM forget_request WHERE id = ?", (request_id,)).fetchone()
    if row is None:
        then = "List them with `efface request list`."
        raise NotFound("the id of a request (req-000001, …)", "an unknown id", then)
    return _request(row)


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
    due = timestamp(next_month(received)) if basis in PRIVACY_BASES else None
    return {"basis": basis, "n_items": n_items, "received_at": timestamp(received), "due_at": due}


def _request(row: sqlite3.Row) -> ForgetRequest:
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(ForgetRequest)}
    return ForgetRequest(**values)
