"""The hash chain, checked row by row. Rows may hold anything: they come from a file that others can write."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import ledger
from .canon import canonical, parse, parse_canonical
from .errors import RegistryError
from .types import Event, Problem

_NUMBERS = (int, int)
_TEXTS = (str,) * 8


def check(rows: Iterable[Sequence[Any]]) -> tuple[list[Event], list[Problem]]:
    """The events in `rows` (columns of `tables.EVENT`, in order), and what is wrong; the first problem is the
    first bad event.

    After a bad event the check goes on from what that event says of itself, so one change is named once and
    a second one is still found.
    """
    events: list[Event] = []
    problems: list[Problem] = []
    seq, previous = 0, ledger.GENESIS
    for row in rows:
        event, proven = _event(row)
        if isinstance(event, Problem):
            problems.append(event)
            seq, previous = seq + 1, str(row[9])
            continue
        if (fault := _fault(event, seq + 1, previous, row[7], proven)) is not None:
            problems.append(fault)
        events.append(event)
        seq, previous = event.seq, event.hash
    return events, problems


def _event(row: Sequence[Any]) -> tuple[Event | Problem, bool]:
    """The event in a row, and whether its body is proven to be canonical already."""
    where = f"event {row[0]}"
    if tuple(map(type, row)) != (*_NUMBERS, *_TEXTS):
        return Problem("event-form", where, "a number and texts", "other values"), False
    body = parse_canonical(row[7])
    proven = body is not None
    if not proven:
        try:
            body = parse(row[7])
        except RegistryError:
            return Problem("event-form", where, "a body in JSON", "other text"), False
    if not isinstance(body, Mapping):
        return Problem("event-form", where, "a JSON object as body", "other JSON"), False
    cells: list[Any] = [*row[:7], body, *row[8:]]
    return Event(*cells), proven


def _fault(event: Event, seq: int, previous: str, body: str, proven: bool) -> Problem | None:
    """At most one problem for an event: what comes first explains the rest."""
    where = f"event {event.seq}"
    if event.seq != seq:
        return Problem("event-gap", where, f"event {seq}", f"event {event.seq}")
    if event.prev_hash != previous:
        return Problem("event-link", where, f"prev_hash {previous}", event.prev_hash)
    try:
        written = body if proven else canonical(event.body).decode()
        computed = "sha256:" + hashlib.sha256(ledger.preimage(event, written)).hexdigest()
    except (RegistryError, UnicodeEncodeError) as error:
        came = error.came if isinstance(error, RegistryError) else "text that is not UTF-8"
        return Problem("event-form", where, "canonical JSON", came)
    if computed != event.hash:
        return Problem("event-hash", where, f"hash {event.hash}", computed)
    return None if written == body else Problem("event-form", where, "a canonical body", "another spelling")
