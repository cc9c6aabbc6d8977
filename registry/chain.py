"""The hash chain, checked row by row. Rows may hold anything: they come from a file that others can write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from . import ledger
from .canon import canonical
from .errors import RegistryError
from .types import Event, Problem


def check(rows: Iterable[sqlite3.Row]) -> tuple[list[Event], list[Problem]]:
    """The events in `rows`, in order, and what is wrong with each; the first problem is the first bad event.

    After a bad event the check goes on from what that event says of itself, so one change is named once and
    a second one is still found.
    """
    events: list[Event] = []
    problems: list[Problem] = []
    seq, previous = 0, ledger.GENESIS
    for row in rows:
        event = _event(row)
        if isinstance(event, Problem):
            problems.append(event)
            seq, previous = seq + 1, str(row["hash"])
            continue
        problems += _faults(event, seq + 1, previous, row["body"])
        events.append(event)
        seq, previous = event.seq, event.hash
    return events, problems


def _event(row: sqlite3.Row) -> Event | Problem:
    where = f"event {row['seq']}"
    if type(row["seq"]) is not int or not all(isinstance(cell, str) for cell in tuple(row)[2:]):
        return Problem("event-form", where, "a number and texts", "other values")
    try:
        event = ledger.event_of(row)
    except RegistryError:
        return Problem("event-form", where, "a body in JSON", "other text")
    if not isinstance(event.body, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        return Problem("event-form", where, "a JSON object as body", "other JSON")
    return event


def _faults(event: Event, seq: int, previous: str, body: str) -> list[Problem]:
    """At most one problem for an event: what comes first explains the rest."""
    where = f"event {event.seq}"
    if event.seq != seq:
        return [Problem("event-gap", where, f"event {seq}", f"event {event.seq}")]
    if event.prev_hash != previous:
        return [Problem("event-link", where, f"prev_hash {previous}", event.prev_hash)]
    try:
        computed, written = ledger.hash_of(event), canonical(event.body).decode()
    except RegistryError as error:
        return [Problem("event-form", where, "canonical JSON", error.came)]
    if computed != event.hash:
        return [Problem("event-hash", where, f"hash {event.hash}", computed)]
    return [] if written == body else [Problem("event-form", where, "a canonical body", "another spelling")]
