"""The same tampering where the rows are Postgres's and the blobs objects of S3: `verify` names exactly the culprit.

Each column of each table, in some of its rows, at both ends and the middle of its text; each object, in several ways.
Rows are changed past the triggers, as whoever owns the server can.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from registry_backends import Backend, new_backend
from registry_kit import Clock
from tamper_kit import name_of, tell

from efface.registry import Registry, rebuild, verify
from efface.registry.blobs import relative
from efface.registry.tables import ALL, CHECKPOINT, EVENT, HEAD, PROJECTIONS, Table

Cells = tuple[Any, ...]


class Told:
    """A registry in which everything has happened, and its back doors. No dataclass: pytest would print all of it."""

    def __init__(self, reg: Registry, place: Backend, db: psycopg.Connection[Cells], s3: Any) -> None:
        self.reg, self.place, self.db, self.s3 = reg, place, db, s3

    def rows(self, table: Table) -> list[Cells]:
        names = sql.SQL(", ").join(map(sql.Identifier, table.columns))
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}")
        keys = sql.SQL(", ").join(map(sql.Identifier, table.key))
        return self.db.execute(query.format(names, sql.Identifier(table.name), keys)).fetchall()

    def replace(self, table: Table, old: Cells, new: Cells | None) -> None:
        """Put a row in the place of another; None deletes it."""
        name = sql.Identifier(table.name)
        where = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(key)) for key in table.key)
        with self.db.transaction():
            self.db.execute(sql.SQL("DELETE FROM {} WHERE {}").format(name, where), old[: table.keys])
            if new is not None:
                self.insert(table, new)

    def insert(self, table: Table, row: Cells) -> None:
        cells = sql.SQL(", ").join(sql.Placeholder() * len(row))
        self.db.execute(sql.SQL("INSERT INTO {} VALUES ({})").format(sql.Identifier(table.name), cells), row)

    @contextmanager
    def changed(self, table: Table, old: Cells, new: Cells | None) -> Iterator[None]:
        self.replace(table, old, new)
        try:
            yield
        finally:
            if new is None:
                self.insert(table, old)
            else:
                self.replace(table, new, old)

    def named(self, *, deep: bool = False) -> set[tuple[str, str]]:
        return {(problem.kind, problem.where) for problem in verify(self.reg, deep=deep).problems}

    def object(self, digest: str) -> dict[str, str]:
        path = self.reg.blobs.where(digest).removeprefix("s3://")
        bucket, _, key = path.partition("/")
        return {"Bucket": bucket, "Key": key}


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    work = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("EFFACE_VAULT_KEY", "EFFACE_VAULT_KEY_FILE", "EFFACE_VAULT_KEY_SOURCE"):
            patch.delenv(name, raising=False)
        place = new_backend("postgres+s3", work, request)
        assert place.server is not None
        reg = place.open(clock=Clock())
        tell(reg, work)
        # A superuser's session in which no trigger fires, those behind foreign keys included.
        options = "-c session_replication_role=replica"
        where = f"host={place.server.folder} user=postgres dbname={place.database}"
        with psycopg.connect(where, autocommit=True, options=options) as db:
            yield Told(reg, place, db, request.getfixturevalue("s3_server"))
        place.close()


@pytest.fixture(autouse=True)
def put_back(told: Told) -> Iterator[None]:
    yield
    assert told.named() == set()


def others(value: Any, table: Table, column: str) -> list[Any]:
    if column in table.numbers:
        return [7777 if value is None else value + 7777]
    if value is None:
        return ["x"]
    places = sorted({0, len(value) // 2, len(value) - 1} & set(range(len(value))))
    flipped = [value[:at] + chr(ord(value[at]) ^ 1) + value[at + 1 :] for at in places]
    return [*flipped, value + " ", None]


def attempts(told: Told, table: Table, column: str, rows: int) -> Iterator[tuple[str, str]]:
    """Change the column in some rows, one at a time; yields the old and the new name of the row."""
    position, found = table.columns.index(column), told.rows(table)
    for row in {0: found[0], 1: found[-1], 2: found[len(found) // 2]}.values() if rows > 1 else found[:1]:
        for other in others(row[position], table, column):
            new = (*row[:position], other, *row[position + 1 :])
            with suppress(psycopg.errors.IntegrityError), told.changed(table, row, new):
                yield (
                    name_of(table.name, ", ".join(map(str, row[: table.keys]))),
                    name_of(table.name, ", ".join(map(str, new[: table.keys]))),
                )


@pytest.mark.parametrize("table", PROJECTIONS, ids=lambda table: table.name)
def test_each_column_of_a_row(told: Told, table: Table) -> None:
    for column in table.columns:
        tried = 0
        for names in attempts(told, table, column, 1):
            assert told.named() == {("projection", name) for name in set(names)}, column
            tried += 1
        assert tried, column


@pytest.mark.parametrize("column", EVENT.columns)
def test_each_column_of_events(told: Told, column: str) -> None:
    tried = 0
    for old, new in attempts(told, EVENT, column, 3):
        first = verify(told.reg).problems[0]
        assert first.kind.startswith("event-") or (column == "seq" and first.kind in ("head", "checkpoint"))
        assert column == "seq" or first.where == old
        assert column != "seq" or first.where in (new, f"event {int(old.split()[1]) + 1}")
        tried += 1
    assert tried


@pytest.mark.parametrize("table", [HEAD, CHECKPOINT], ids=lambda table: table.name)
def test_head_and_checkpoint(told: Told, table: Table) -> None:
    for column in table.columns:
        tried = 0
        for names in attempts(told, table, column, 1):
            found = told.named()
            assert found
            assert {where for _, where in found} <= set(names), column
            assert {kind for kind, _ in found} <= {"head", "checkpoint", "signature"}
            tried += 1
        assert tried or (table, column) == (HEAD, "id"), column


def test_rows_lost_and_rows_added(told: Told) -> None:
    for table in PROJECTIONS:
        for row in told.rows(table)[:2]:
            with told.changed(table, row, None):
                name = name_of(table.name, ", ".join(map(str, row[: table.keys])))
                assert told.named() == {("projection", name)}
        added = tuple(7777 if name in table.numbers else f"x{name}" for name in table.columns)
        told.insert(table, added)
        name = name_of(table.name, ", ".join(map(str, added[: table.keys])))
        assert told.named() == {("projection", name)}
        told.replace(table, added, None)


def test_events_lost_swapped_and_cut_off(told: Told) -> None:
    events = told.rows(EVENT)
    for row in (events[0], events[3], events[-1]):
        with told.changed(EVENT, row, None):
            first = verify(told.reg).problems[0]
            if row is events[-1]:  # nothing of the chain is broken: the head and the checkpoint show it
                assert told.named() >= {("head", "head")}
            else:
                assert (first.kind, first.where) == ("event-gap", f"event {row[0] + 1}")
    one, two = events[3], events[4]
    with told.changed(EVENT, one, None), told.changed(EVENT, two, (two[0], *one[1:])):
        told.insert(EVENT, (one[0], *two[1:]))
        first = verify(told.reg).problems[0]
        assert (first.kind, first.where) == ("event-link", f"event {one[0]}")
        told.replace(EVENT, (one[0], *two[1:]), None)


def test_replay_puts_the_rows_right(told: Told) -> None:
    for table in PROJECTIONS:
        told.db.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
    assert told.named()
    rebuild(told.reg)
    assert told.named(deep=True) == set()


def test_bytes_of_objects(told: Told) -> None:
    """Flipped, cut, grown, emptied, another's, gone; and one that no event names."""
    purged = verify(told.reg, deep=True).extras  # an adapter's two, which go with the next gc
    digests = [digest for digest in told.reg.blobs if digest not in purged]
    assert len(digests) > 5
    assert len(purged) == 2
    for number, digest in enumerate(digests):
        whole = told.reg.blobs.read(digest)
        at = (0, 8, len(whole) // 2, len(whole) - 1)[number % 4]
        flip = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        ways = [flip, (b"", whole[:-1], whole + b"\n", told.reg.blobs.read(digests[number - 1]))[number % 4]]
        for data in ways:
            told.s3.call("put_object", **told.object(digest), Body=data)
            found = told.named(deep=True) - {("signature", f"attestation {digest}")}
            assert found == {("blob-damaged", digest)}
        told.s3.call("delete_object", **told.object(digest))
        assert told.named(deep=True) == {("blob-missing", digest)}
        told.s3.call("put_object", **told.object(digest), Body=whole)
    extra = told.reg.blobs.put(b"what no event names")
    result = verify(told.reg, deep=True)
    assert (result.problems, set(result.extras)) == ((), {*purged, extra})
    told.reg.blobs.delete(extra)


def test_objects_that_are_none_of_ours_are_no_blobs(told: Told) -> None:
    key, before = told.object("sha256:" + "0" * 64), verify(told.reg, deep=True)
    for name in ("sha256/00/zz", "sha256/" + relative("sha256:" + "0" * 64)[-64:], "notes.txt"):
        told.s3.call("put_object", Bucket=key["Bucket"], Key=f"blobs/{name}", Body=b"x")
    assert verify(told.reg, deep=True) == before


def test_a_bucket_that_is_gone_is_a_problem_and_no_crash(told: Told, tmp_path: Path) -> None:
    """So is a store that cannot be asked; what the database says is checked all the same."""
    elsewhere = told.place.url.replace("/blobs", "-gone/blobs")
    with Registry.open(elsewhere) as reg:
        for deep in (False, True):
            result = verify(reg, deep=deep)
            assert "blobs" in {problem.kind for problem in result.problems}
            assert result.events == len(told.rows(ALL["event"]))
            assert result.extras == ()
