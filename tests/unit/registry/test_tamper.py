"""Each column of each event and of each projected row, changed one at a time: `verify` names exactly that place."""

import ast
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from story_kit import scratch
from tamper_kit import everything_happened, name_of, rows, update

from efface.registry import Registry, log, rebuild, verify
from efface.registry.tables import CHECKPOINT, EVENT, HEAD, PROJECTIONS, Table

FILE = "registry.db"


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:  # thousands of commits: not on a disk
        yield everything_happened(Path(folder))


@pytest.fixture
def file(root: Path) -> Iterator[Path]:
    """The database, put back after the test."""
    path = root / FILE
    whole = path.read_bytes()
    yield path
    path.write_bytes(whole)


def others(value: Any, table: Table, column: str) -> list[Any]:
    """What else could stand there: a little more, a flipped character, nothing."""
    if column in table.numbers:
        # The next number may be another row's key; this one is nobody's.
        more = 7777 if column in table.key else 1
        return [0 if value is None else value + more]
    if value is None:
        return ["x"]
    middle = len(value) // 2
    return [
        value[:middle] + chr(ord(value[middle : middle + 1] or "a") ^ 1) + value[middle + 1 :],
        value + " ",
        "",
        None,
    ]


def attempts(path: Path, table: Table, column: str, which: slice) -> Iterator[tuple[str, str]]:
    """Change the column in each of these rows in turn, yield the old and the new name of the row, undo it."""
    where = " AND ".join(f"{name} = ?" for name in table.key)
    whole = path.read_bytes()
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}").fetchall()[which]
    for row in found:
        position = table.columns.index(column)
        for other in others(row[position], table, column):
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                try:
                    update(
                        db, f"UPDATE {table.name} SET {column} = ? WHERE {where}", (other, *row[: table.keys])
                    )
                except sqlite3.IntegrityError:  # a guard of the schema: not so easily done
                    continue
            old = ", ".join(map(str, row[: table.keys]))
            cells = [*row[:position], other, *row[position + 1 :]]
            new = ", ".join(str(cell) for cell in cells[: table.keys])
            yield name_of(table.name, old), name_of(table.name, new)
            path.write_bytes(whole)


def test_the_story_has_every_kind_of_event(root: Path) -> None:
    kinds = Counter(event.kind for event in log(Registry.open(root)))
    assert len(kinds) >= 22
    assert verify(Registry.open(root), deep=True).ok


COLUMNS = [(table, column) for table in PROJECTIONS for column in table.columns]


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=lambda value: getattr(value, "name", value))
def test_each_column_of_each_row(root: Path, file: Path, table: Table, column: str) -> None:
    tried = 0
    for names in attempts(file, table, column, slice(4)):
        problems = verify(Registry.open(root)).problems
        assert {(problem.kind, problem.where) for problem in problems} == {
            ("projection", n) for n in set(names)
        }
        assert all(problem.expected != problem.found for problem in problems)
        if len(problems) == 1:  # another row keeps its key: only the column is said
            assert set(ast.literal_eval(problems[0].expected)) == {column}
        tried += 1
    assert tried
    assert verify(Registry.open(root)).ok


@pytest.mark.parametrize("table", PROJECTIONS, ids=lambda table: table.name)
def test_each_row_lost_and_each_table_emptied_or_added_to(root: Path, file: Path, table: Table) -> None:
    whole, found = file.read_bytes(), rows(file)[table.name]
    for key in found:
        with closing(sqlite3.connect(file)) as db:
            where = " AND ".join(f"{name} = ?" for name in table.key)
            cells = [cell.decode() if isinstance(cell, bytes) else cell for cell in found[key][: table.keys]]
            db.execute(f"DELETE FROM {table.name} WHERE {where}", cells)
            db.commit()
        assert named(root) == {("projection", name_of(table.name, key))}
        file.write_bytes(whole)
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"DELETE FROM {table.name}")
        db.commit()
    assert named(root) == {("projection", name_of(table.name, key)) for key in found}
    rebuild(Registry.open(root))
    assert verify(Registry.open(root)).ok
    file.write_bytes(whole)
    with closing(sqlite3.connect(file)) as db:
        values = [7777 if name in table.numbers else f"x{name}" for name in table.columns]
        db.execute(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(values))})", values)
        db.commit()
    key = ", ".join(map(str, values[: table.keys]))
    assert named(root) == {("projection", name_of(table.name, key))}


def named(root: Path) -> set[tuple[str, str]]:
    return {(problem.kind, problem.where) for problem in verify(Registry.open(root)).problems}


@pytest.mark.parametrize("column", EVENT.columns)
def test_each_column_of_each_event(root: Path, file: Path, column: str) -> None:
    last = len(log(Registry.open(root)))
    for old, new in attempts(file, EVENT, column, slice(None)):
        problems = verify(Registry.open(root)).problems
        kind, where = problems[0].kind, problems[0].where
        assert kind.startswith("event-"), (old, problems)
        if column != "seq":
            assert where == old
        elif old != f"event {last}":  # it makes way for the next one, or stands in its place
            assert where in (new, f"event {int(old.split()[1]) + 1}")


@pytest.mark.parametrize("column", HEAD.columns)
def test_each_column_of_the_head(root: Path, file: Path, column: str) -> None:
    tried = 0
    for _ in attempts(file, HEAD, column, slice(None)):
        assert named(root) == {("head", "head")}
        tried += 1
    assert tried or column == "id"


@pytest.mark.parametrize("column", CHECKPOINT.columns)
def test_each_column_of_a_checkpoint(root: Path, file: Path, column: str) -> None:
    tried = 0
    for names in attempts(file, CHECKPOINT, column, slice(None)):
        found = named(root)
        assert found
        assert {kind for kind, _ in found} <= {"checkpoint", "signature"}
        assert {where for _, where in found} <= set(names)
        tried += 1
    assert tried


def test_a_lost_head(root: Path, file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("DELETE FROM head")
        db.commit()
    assert named(root) == {("head", "head")}


def test_a_mark_of_shredding_that_is_damaged(root: Path) -> None:
    reg = Registry.open(root)
    (mark, *_) = sorted(reg.vault.folder.glob("*.shredded"))
    whole = mark.read_bytes()
    for data in (b"", b"{}", b"\xff", whole[:-2], whole[:10] + b"x" + whole[11:]):
        mark.write_bytes(data)
        problems = verify(reg).problems
        assert [(problem.kind, problem.where) for problem in problems] == [("vault-damaged", mark.stem)]
    mark.write_bytes(whole)
    assert verify(reg, deep=True).ok


def test_bytes_of_every_blob(root: Path) -> None:
    reg = Registry.open(root)
    for digest in list(reg.blobs):
        path = reg.blobs.local_path(digest)
        whole = path.read_bytes()
        places = sorted({0, 1, 7, 8, len(whole) // 2, len(whole) - 1})
        for data in (*(whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in places if n < len(whole)),
                     b"", whole[:-1], whole + b"\n", whole[::-1]):  # fmt: skip
            if data == whole:
                continue
            path.unlink()
            path.write_bytes(data)
            found = {(problem.kind, problem.where) for problem in verify(reg, deep=True).problems}
            # An envelope that cannot be read signs nothing either.
            assert found - {("signature", f"attestation {digest}")} == {("blob-damaged", digest)}
        path.unlink()
        path.write_bytes(whole)
    assert verify(reg, deep=True).ok
