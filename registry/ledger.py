"""The append-only ledger: every change is an event, and each event's hash covers the one before.

    hash = sha256(RFC 8785 of {seq, v, at, kind, actor, subject_kind, subject_id, body, prev_hash})

The first event follows `GENESIS`. Changing, removing or moving an event breaks the chain at that place. Whoever can
write the whole database can rewrite the whole chain; what they cannot rewrite is a signed checkpoint that someone
else holds (`checkpoints`). Bodies hold no personal data: digests, keyed commitments, states, settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from . import checks, projections
from .canon import JSON, canonical, parse, quoted
from .registry import Registry, Writer
from .tables import PROJECTIONS, MemoryTables, Row, Tables
from .types import Event

VERSION = 1
GENESIS = "sha256:" + "0" * 64


def append(tx: Writer, kind: str, subject_id: str, body: Mapping[str, JSON]) -> Event:
    """Add an event (`kind` is `subject.new_state`) and project it. Conflict when the state forbids it."""
    head = tx.db.get("head", 1)
    seq, previous = (head["seq"] + 1, head["hash"]) if head else (1, GENESIS)
    text = canonical(body).decode()
    subject_kind = kind.partition(".")[0]
    unsigned = Event(seq, VERSION, tx.at, kind, tx.actor, subject_kind, subject_id, body, previous, "")
    event = Event(
        seq, VERSION, tx.at, kind, tx.actor, subject_kind, subject_id, body, previous, hash_of(unsigned, text)
    )
    tx.db.insert("event", **(row_of(event) | {"body": text}))
    tx.db.update("head", (1,), seq=event.seq, hash=event.hash)
    projections.apply(tx.db, event)
    return event


def hash_of(event: Event, body: str | None = None) -> str:
    """The hash that `event` should have; `body` is its canonical JSON where the caller has it already."""
    text = canonical(event.body).decode() if body is None else body
    return "sha256:" + hashlib.sha256(preimage(event, text)).hexdigest()


def preimage(event: Event, body: str) -> bytes:
    """RFC 8785 of everything but the hash: members sorted by name, around a body that is canonical already.

    Written out by hand because `verify` does it for every event; a law in the tests compares it with `canonical`.
    Raises UnicodeEncodeError for lone surrogates, which no event that was appended holds.
    """
    return (
        f'{{"actor":{quoted(event.actor)},"at":{quoted(event.at)},"body":{body},"kind":{quoted(event.kind)},'
        f'"prev_hash":{quoted(event.prev_hash)},"seq":{event.seq},"subject_id":{quoted(event.subject_id)},'
        f'"subject_kind":{quoted(event.subject_kind)},"v":{event.v}}}'
    ).encode()


def log(reg: Registry, limit: int | None = None, *, after: int = 0, kind: str | None = None) -> list[Event]:
    """Events in order: all, or the last `limit` of them; those beyond `after`; those of one `kind`."""
    count = None if limit is None else checks.count(limit, "limit", 0)
    where: dict[str, Any] = {} if kind is None else {"kind": checks.token(kind, "kind")}
    with reg.read() as db:
        if count is None:
            return [event_of(row) for row in db.find("event", after=after, **where)]
        rows = db.find("event", descending=True, limit=count, **where)
        return [event_of(row) for row in reversed(rows) if row["seq"] > after]


def events(db: Tables, page: int = 1000) -> Iterator[Event]:
    """All events in order, read a page at a time."""
    after = 0
    while rows := db.find("event", after=after, limit=page):
        for row in rows:
            yield event_of(row)
        after = rows[-1]["seq"]


def rebuild(reg: Registry) -> int:
    """Drop every projection and replay the ledger into them; returns the number of events. Adds no event."""
    with reg.write("rebuild") as tx:
        return replay(tx.db)


def replay(db: Tables) -> int:
    """Drop every projection of `db` and apply its events again; returns how many there are.

    They are folded in memory, as `verify` does, and the rows written at once: a statement per row takes minutes.
    """
    folded, count = MemoryTables(), 0
    for event in events(db):
        projections.apply(folded, event)
        count += 1
    projections.clear(db)
    for table in PROJECTIONS:
        db.fill(table.name, folded.dump(table.name).values())
    return count


def row_of(event: Event) -> dict[str, Any]:
    """The row of an event in the table."""
    return {
        "seq": event.seq,
        "v": event.v,
        "at": event.at,
        "kind": event.kind,
        "actor": event.actor,
        "subject_kind": event.subject_kind,
        "subject_id": event.subject_id,
        "body": canonical(event.body).decode(),
        "prev_hash": event.prev_hash,
        "hash": event.hash,
    }


def event_of(row: Row) -> Event:
    """The event in a row of the table. Raises InvalidInput when its body is not JSON."""
    values: dict[str, Any] = {**row, "body": parse(row["body"])}
    return Event(**values)
