"""Tables that are computed from events. `apply` is the only code that writes them.

Dropping every row and applying the events again gives the same tables; `verify` does that on the side and
compares. So an event must hold everything its rows need: no clock, no random number, no file is read here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, cast

from . import states
from .canon import canonical
from .errors import BrokenRegistry
from .types import Event

TABLES = (
    "base",
    "blob",
    "forget_request",
    "adapter",
    "adapter_request",
    "composition",
    "composition_part",
    "audit",
    "release",
)
"""In an order in which rows can be inserted; the reverse is one in which they can be deleted."""


def apply(db: sqlite3.Connection, event: Event) -> None:
    """Write the rows that follow from one event. Raises BrokenRegistry for an event it does not know."""
    handler = _HANDLERS.get(event.kind) or _MOVERS.get(event.subject_kind)
    if handler is None:
        raise BrokenRegistry("an event kind of this version", event.kind, "Install a newer efface.")
    handler(db, event, cast(Mapping[str, Any], event.body))


def clear(db: sqlite3.Connection) -> None:
    """Delete every projected row."""
    for table in reversed(TABLES):
        db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own table names


def dump(db: sqlite3.Connection, table: str) -> dict[str, str]:
    """Row key → all columns as text, read without an index: a damaged one must not hide a row."""
    cursor = db.execute(f"SELECT * FROM {table} NOT INDEXED")  # noqa: S608 - our own table names
    names = [column[0] for column in cursor.description]
    key = _KEYS[table]
    return {
        ", ".join(str(row[i]) for i in range(key)): repr(dict(zip(names, row, strict=True))) for row in cursor
    }


_KEYS = dict.fromkeys(TABLES, 1) | {"base": 2, "adapter_request": 2, "composition_part": 2, "release": 2}
"""How many leading columns are the primary key."""


def _request_received(db: sqlite3.Connection, event: Event, body: Mapping[str, Any]) -> None:
    columns = ("basis", "n_items", "commitment", "subject_ref", "received_at", "due_at")
    values = (event.subject_id, event.seq, "RECEIVED", event.at, *(body[name] for name in columns))
    db.execute(
        f"INSERT INTO forget_request (id, seq, state, updated_at, {', '.join(columns)})"  # noqa: S608 - our names
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )


def _adapter_sealed(db: sqlite3.Connection, event: Event, body: Mapping[str, Any]) -> None:
    manifest = body["manifest"]
    _blobs(db, body)
    _base(db, manifest)
    described = tuple(manifest[name] for name in ("kind", "base", "quantization", "trained_on"))
    values = (event.subject_id, event.seq, *described, canonical(manifest).decode(), "SEALED", event.at)
    db.execute("INSERT INTO adapter VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    pairs = [(event.subject_id, request) for request in manifest["requests"]]
    db.executemany("INSERT INTO adapter_request VALUES (?, ?)", pairs)


def _audit_recorded(db: sqlite3.Connection, event: Event, body: Mapping[str, Any]) -> None:
    record = body["record"]
    _blobs(db, body)
    names = ("composition", "precision", "suite", "seed", "verdict", "report")
    measured = tuple(record[name] for name in names)
    values = (event.subject_id, event.seq, *measured, canonical(record["environment"]).decode(), event.at)
    db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _release_candidate(db: sqlite3.Connection, event: Event, body: Mapping[str, Any]) -> None:
    _composition(db, body["digest"], body["composition"])
    db.execute(
        "INSERT INTO release (channel, version, composition, rendered, state, reason, created_by, created_at)"
        " VALUES (?, ?, ?, ?, 'CANDIDATE', ?, ?, ?)",
        (
            body["channel"],
            body["version"],
            body["digest"],
            body["rendered"],
            body["reason"],
            event.actor,
            event.at,
        ),
    )


def _move_request(db: sqlite3.Connection, event: Event, _body: Mapping[str, Any]) -> None:
    row = _row(db, "SELECT state FROM forget_request WHERE id = ?", event.subject_id)
    state = states.step("request", row["state"], _target(event))
    values = (state, event.at, event.subject_id)
    db.execute("UPDATE forget_request SET state = ?, updated_at = ? WHERE id = ?", values)


def _move_adapter(db: sqlite3.Connection, event: Event, _body: Mapping[str, Any]) -> None:
    row = _row(db, "SELECT state FROM adapter WHERE digest = ?", event.subject_id)
    state = states.step("adapter", row["state"], _target(event))
    db.execute("UPDATE adapter SET state = ? WHERE digest = ?", (state, event.subject_id))


def _move_release(db: sqlite3.Connection, event: Event, body: Mapping[str, Any]) -> None:
    key = (body["channel"], body["version"])
    row = _row(db, "SELECT state FROM release WHERE channel = ? AND version = ?", *key)
    state = states.step("release", row["state"], _target(event))
    db.execute("UPDATE release SET state = ? WHERE channel = ? AND version = ?", (state, *key))
    if state == "APPROVED":
        set_audit = "UPDATE release SET audit = ?, approved_by = ? WHERE channel = ? AND version = ?"
        db.execute(set_audit, (body["audit"], event.actor, *key))
    if state == "ACTIVE":
        db.execute("UPDATE release SET activated_at = ? WHERE channel = ? AND version = ?", (event.at, *key))


def _blobs(db: sqlite3.Connection, body: Mapping[str, Any]) -> None:
    rows = [(blob["digest"], blob["size"], blob["media_type"]) for blob in body["blobs"]]
    db.executemany("INSERT INTO blob VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows)


def _base(db: sqlite3.Connection, record: Mapping[str, Any]) -> None:
    values = (record["base"], record["quantization"])
    db.execute("INSERT INTO base VALUES (?, ?) ON CONFLICT DO NOTHING", values)


def _composition(db: sqlite3.Connection, digest: str, record: Mapping[str, Any]) -> None:
    _base(db, record)
    values = (digest, record["base"], record["quantization"], record["render"])
    db.execute("INSERT INTO composition VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", values)
    parts = [(digest, part["adapter"], part["weight"]) for part in record["parts"]]
    db.executemany("INSERT INTO composition_part VALUES (?, ?, ?) ON CONFLICT DO NOTHING", parts)


def _target(event: Event) -> str:
    return event.kind.partition(".")[2].upper()


def _row(db: sqlite3.Connection, query: str, *key: object) -> Any:
    row = db.execute(query, key).fetchone()
    if row is None:
        raise BrokenRegistry("an earlier event that creates the subject", "none", "Run `efface verify`.")
    return row


_Handler = Callable[[sqlite3.Connection, Event, Mapping[str, Any]], None]
_HANDLERS: Mapping[str, _Handler] = {
    "request.received": _request_received,
    "adapter.sealed": _adapter_sealed,
    "audit.recorded": _audit_recorded,
    "release.candidate": _release_candidate,
}
_MOVERS: Mapping[str, _Handler] = {
    "request": _move_request,
    "adapter": _move_adapter,
    "release": _move_release,
}
