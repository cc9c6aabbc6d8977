"""The append-only ledger: every change is an event, and each event's hash covers the one before.

    hash = sha256(RFC 8785 of {seq, v, at, kind, actor, subject_kind, subject_id, body, prev_hash})

The first event follows `GENESIS`. Changing, removing or moving an event breaks the chain at that place;
cutting off the newest events is caught only by what they projected, until signed checkpoints exist.
Bodies hold no personal data: digests, keyed commitments, states, settings.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from . import checks, projections
from .canon import JSON, canonical, digest_json, parse
from .registry import Registry, Writer
from .types import Event

VERSION = 1
GENESIS = "sha256:" + "0" * 64


def append(tx: Writer, kind: str, subject_id: str, body: Mapping[str, JSON]) -> Event:
    """Add an event (`kind` is `subject.new_state`) and project it. Conflict when the state forbids it."""
    last = tx.db.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (last["seq"] + 1, last["hash"]) if last else (1, GENESIS)
    subject_kind = kind.partition(".")[0]
    unsigned = Event(seq, VERSION, tx.at, kind, tx.actor, subject_kind, subject_id, body, previous, "")
    event = Event(*_fields(unsigned), hash_of(unsigned))
    columns = (*_fields(event)[:7], canonical(body).decode(), event.prev_hash, event.hash)
    tx.db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns)
    projections.apply(tx.db, event)
    return event


def hash_of(event: Event) -> str:
    """The hash that `event` should have."""
    return digest_json(
        {
            "seq": event.seq,
            "v": event.v,
            "at": event.at,
            "kind": event.kind,
            "actor": event.actor,
            "subject_kind": event.subject_kind,
            "subject_id": event.subject_id,
            "body": event.body,
            "prev_hash": event.prev_hash,
        }
    )


def log(reg: Registry, limit: int | None = None) -> list[Event]:
    """All events in order, or the last `limit` of them."""
    count = -1 if limit is None else checks.count(limit, "limit", 0)
    query = "SELECT * FROM (SELECT * FROM event ORDER BY seq DESC LIMIT ?) ORDER BY seq"
    with reg.read() as db:
        return [event_of(row) for row in db.execute(query, (count,))]


def events(db: sqlite3.Connection) -> Iterator[Event]:
    """All events in order, one at a time."""
    for row in db.execute("SELECT * FROM event ORDER BY seq"):
        yield event_of(row)


def rebuild(reg: Registry) -> int:
    """Drop every projection and replay the ledger into them; returns the number of events. Adds no event."""
    with reg.write("rebuild") as tx:
        replayed = list(events(tx.db))
        projections.clear(tx.db)
        for event in replayed:
            projections.apply(tx.db, event)
        return len(replayed)


def event_of(row: sqlite3.Row) -> Event:
    """The event in a row of the table. Raises InvalidInput when its body is not JSON."""
    values: dict[str, Any] = dict(zip(row.keys(), tuple(row), strict=True))
    values["body"] = parse(row["body"])
    return Event(**values)


def _fields(event: Event) -> tuple[int, int, str, str, str, str, str, Mapping[str, JSON], str]:
    """Every field but the hash, in the order of the table."""
    return (
        event.seq,
        event.v,
        event.at,
        event.kind,
        event.actor,
        event.subject_kind,
        event.subject_id,
        event.body,
        event.prev_hash,
    )
