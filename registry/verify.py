"""Re-derive everything from the events and report each place that differs.

`verify` trusts nothing it reads: a damaged database, event, row, blob or vault entry becomes a `Problem`,
never a crash. It changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, cast

from . import chain, projections
from . import db as database
from .blobs import file_digest
from .canon import digest_json
from .errors import BrokenRegistry, RegistryError
from .registry import Registry
from .types import Event, Problem, Verification

_DAMAGE = (RegistryError, sqlite3.Error, LookupError, TypeError, ValueError, AttributeError)
"""What reading or replaying bytes that someone changed can end in."""
_IDENTIFIED_BY = {"adapter.sealed": "manifest", "audit.recorded": "record"}
_WITHOUT_ROWS = ("SHREDDED", "CLOSED")


@dataclass(slots=True)
class _Snapshot:
    """What one read of the database gave; parts that could not be read stay empty and are in `problems`."""

    events: list[Event] = field(default_factory=list[Event])
    tables: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    problems: list[Problem] = field(default_factory=list[Problem])


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the events say there should be."""

    tables: Mapping[str, Mapping[str, str]]
    blobs: Mapping[str, int]
    commitments: Mapping[str, str]
    problems: Sequence[Problem]


def verify(reg: Registry, *, deep: bool = False) -> Verification:
    """Check database, schema, hash chain, projections, blobs and vault; `deep` also re-reads every byte.

    Problems come in that order; of the events the first one named is the first bad one. A copy without a
    vault folder (an auditor's) is not missing it; with one, every request must have its entry, and a `deep`
    check decrypts them where the master key is at hand.
    """
    stored = _read(reg)
    expected = _replay(stored.events)
    problems = [*stored.problems, *expected.problems]
    if not expected.problems:
        problems += _differences(stored.tables, expected.tables)
    problems += _blob_problems(reg, expected.blobs, deep)
    problems += _vault_problems(reg, expected.commitments, deep)
    return Verification(len(stored.events), len(expected.blobs), tuple(problems))


def _read(reg: Registry) -> _Snapshot:
    snapshot = _Snapshot()
    parts: tuple[Callable[[sqlite3.Connection, _Snapshot], None], ...] = (
        _read_structure,
        _read_schema,
        _read_events,
        _read_tables,
    )
    try:
        with reg.read() as db:
            # A flipped byte may be no UTF-8; reading it must not stop at that row.
            db.text_factory = _lenient
            for part in parts:
                _guarded(part, db, snapshot)
    except RegistryError as error:
        snapshot.problems.append(_unreadable(error))
    return snapshot


def _guarded(
    part: Callable[[sqlite3.Connection, _Snapshot], None], db: sqlite3.Connection, snapshot: _Snapshot
) -> None:
    try:
        part(db, snapshot)
    except _DAMAGE as error:
        snapshot.problems.append(_unreadable(error))


def _read_structure(db: sqlite3.Connection, snapshot: _Snapshot) -> None:
    for row in db.execute("PRAGMA integrity_check(20)"):
        if row[0] != "ok":
            snapshot.problems.append(Problem("database", database.FILE_NAME, "a sound database", str(row[0])))


def _read_schema(db: sqlite3.Connection, snapshot: _Snapshot) -> None:
    """A dropped trigger or index is how one would start to rewrite history."""
    with closing(_empty()) as fresh:
        expected, found = _schema(fresh), _schema(db)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            values = (expected.get(name) or "nothing", found.get(name) or "nothing")
            snapshot.problems.append(Problem("schema", name, *values))


def _read_events(db: sqlite3.Connection, snapshot: _Snapshot) -> None:
    rows = db.execute("SELECT * FROM event NOT INDEXED ORDER BY seq")
    snapshot.events, problems = chain.check(rows)
    snapshot.problems += problems


def _read_tables(db: sqlite3.Connection, snapshot: _Snapshot) -> None:
    for table in projections.TABLES:
        snapshot.tables[table] = projections.dump(db, table)


def _replay(events: Sequence[Event]) -> _Expected:
    """The projections in an empty database; it stops at the first event that cannot follow the others."""
    problems: list[Problem] = []
    with closing(_empty()) as db:
        db.execute("BEGIN")
        for event in events:
            try:
                _check_identity(event)
                projections.apply(db, event)
            except _DAMAGE as error:
                problems.append(
                    Problem("replay", f"event {event.seq}", "an event that can follow", _said(error))
                )
                break
        tables = {table: projections.dump(db, table) for table in projections.TABLES}
        blobs = {row["digest"]: row["size"] for row in db.execute("SELECT * FROM blob ORDER BY digest")}
        query = "SELECT id, state, commitment FROM forget_request ORDER BY id"
        commitments = {r["id"]: r["commitment"] for r in db.execute(query) if r["state"] not in _WITHOUT_ROWS}
    return _Expected(tables, blobs, commitments, problems)


def _check_identity(event: Event) -> None:
    """An adapter's or audit's id is the digest of what its event describes."""
    described = cast(Mapping[str, Any], event.body).get(_IDENTIFIED_BY.get(event.kind, ""))
    if event.kind in _IDENTIFIED_BY and digest_json(described) != event.subject_id:
        raise BrokenRegistry(f"a description of {event.subject_id}", "another one", "Restore a backup.")


def _differences(
    stored: Mapping[str, Mapping[str, str]], expected: Mapping[str, Mapping[str, str]]
) -> Iterator[Problem]:
    for table in stored:
        found, wanted = stored[table], expected[table]
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                values = (wanted.get(key, "no row"), found.get(key, "no row"))
                yield Problem("projection", f"{table}[{key}]", *values)


def _blob_problems(reg: Registry, referenced: Mapping[str, int], deep: bool) -> Iterator[Problem]:
    for digest, size in referenced.items():
        found = _size(reg, digest)
        if found is None:
            yield Problem("blob-missing", digest, f"{size} bytes", "no file")
        elif found != size:
            yield Problem("blob-damaged", digest, f"{size} bytes", f"{found} bytes")
    for digest in reg.blobs if deep else ():
        if (actual := file_digest(reg.blobs.path(digest))) != digest:
            yield Problem("blob-damaged", digest, digest, actual)


def _vault_problems(reg: Registry, commitments: Mapping[str, str], deep: bool) -> Iterator[Problem]:
    if not reg.vault.folder.is_dir():
        return
    for request_id, commitment in commitments.items():
        if not reg.vault.has(request_id):
            yield Problem("vault-missing", request_id, "an entry in the vault", "none")
        elif deep and reg.vault.keys.at_hand() and (found := _recommit(reg, request_id)) != commitment:
            yield Problem("vault-damaged", request_id, commitment, found)


def _size(reg: Registry, digest: str) -> int | None:
    """None also for what is no digest: the events that name the blob may be damaged themselves."""
    try:
        return reg.blobs.size(digest)
    except RegistryError:
        return None


def _recommit(reg: Registry, request_id: str) -> str:
    try:
        return reg.vault.read(request_id)[1]
    except (RegistryError, OSError) as error:
        return _said(error)


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.row_factory = sqlite3.Row
    database.migrate(connection)
    return connection


def _schema(db: sqlite3.Connection) -> dict[str, str]:
    return {row["name"]: str(row["sql"]) for row in db.execute("SELECT name, sql FROM sqlite_master")}


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _unreadable(error: Exception) -> Problem:
    return Problem("database", database.FILE_NAME, "a readable database", _said(error))


def _said(error: Exception) -> str:
    return error.came if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
