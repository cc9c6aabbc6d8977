"""Opening and creating: what is a registry, what is not, and that nothing is written where it is not."""

import errno
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from registry_kit import ask, contents

from efface.registry import (
    BrokenRegistry,
    InvalidInput,
    NotFound,
    Registry,
    engines,
    get_request,
    log,
    verify,
)


def test_create_then_open_by_folder_and_by_url(tmp_path: Path) -> None:
    root = tmp_path / "a" / "registry"
    with Registry.open(root, create=True) as reg:
        request_id = ask(reg)
    for url in (root, str(root), f"sqlite:///{root}"):
        with Registry.open(url) as reg:
            assert reg.root == root
            assert [event.subject_id for event in log(reg)] == [request_id]


def test_create_keeps_a_registry_that_is_there(tmp_path: Path) -> None:
    with Registry.open(tmp_path, create=True) as reg:
        ask(reg)
    before = contents(tmp_path)
    with Registry.open(tmp_path, create=True) as reg:
        assert verify(reg).events == 1
    assert contents(tmp_path) == before


def test_create_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no hard links")

    monkeypatch.setattr("os.link", refuse)
    for number in (1, 2):
        with Registry.open(tmp_path / "registry", create=True) as reg:
            ask(reg)
            assert verify(reg).events == number


@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_registry_is_not_found(tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "none"
    if exists:
        root.mkdir()
    with pytest.raises(NotFound):
        Registry.open(root)
    assert root.exists() == exists
    assert contents(tmp_path) == ({"none": (root.stat().st_mode, b"")} if exists else {})


def _file(root: Path) -> None:
    root.write_text("notes")


def _other_files(root: Path) -> None:
    root.mkdir()
    (root / "notes.txt").write_text("mine")


def _not_sqlite(root: Path) -> None:
    root.mkdir()
    (root / "registry.db").write_text("SQLite, but not really")


def _empty_file(root: Path) -> None:
    root.mkdir()
    (root / "registry.db").touch()


def _other_tables(root: Path) -> None:
    root.mkdir()
    with closing(sqlite3.connect(root / "registry.db")) as db:
        db.execute("CREATE TABLE recipe (name TEXT)")


@pytest.mark.parametrize("make", [_file, _other_files, _not_sqlite, _empty_file, _other_tables])
@pytest.mark.parametrize("create", [True, False])
def test_what_is_not_a_registry_is_refused_and_untouched(tmp_path: Path, make, create: bool) -> None:
    root = tmp_path / "place"
    make(root)
    before = contents(tmp_path)
    with pytest.raises(InvalidInput):
        Registry.open(root, create=create)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "url", ["mysql://host/db", "sqlite://", "sqlite:///", "s3://bucket", "sqlite:///x?wal=1"]
)
def test_other_urls_are_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match=r"folder|blobs"):
        Registry.open(url, create=True)
    assert contents(tmp_path) == {}


def test_a_newer_schema_is_refused_by_name(reg: Registry) -> None:
    with closing(sqlite3.connect(reg.root / "registry.db")) as db:
        db.execute("UPDATE alembic_version SET version_num = '0099_quantum'")
        db.commit()
    before = contents(reg.root)
    with pytest.raises(InvalidInput, match=r"schema 0099_quantum.*newer efface"):
        Registry.open(reg.root)
    assert contents(reg.root) == before


def test_a_truncated_database_is_broken(reg: Registry) -> None:
    path = reg.root / "registry.db"
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(BrokenRegistry):
        Registry.open(reg.root)


def test_the_pragmas_of_the_design_are_set(reg: Registry) -> None:
    with reg.database.reading() as db:
        run = db.connection.exec_driver_sql
        values = {
            name: run(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
        tables = run("PRAGMA table_list").mappings().all()
        strict = {row["name"]: row["strict"] for row in tables if row["schema"] == "main"}
    assert values == {"journal_mode": "delete", "synchronous": 3, "foreign_keys": 1, "secure_delete": 1}
    assert {name for name, flag in strict.items() if not flag} <= {"sqlite_schema", "alembic_version"}


COLUMNS = "v, at, kind, actor, subject_kind, subject_id, body"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET actor = 'eve'",
        "DELETE FROM event",
        f"INSERT OR REPLACE INTO event SELECT 1, {COLUMNS}, prev_hash, 'x' FROM event",
        f"INSERT INTO event SELECT seq + 2, {COLUMNS}, hash, 'x' FROM event",
        f"INSERT INTO event SELECT seq + 1, {COLUMNS}, 'y', 'x' FROM event",
    ],
)
def test_the_database_itself_refuses_to_rewrite_events(reg: Registry, statement: str) -> None:
    ask(reg)
    engine = engines.sqlite(reg.root / "registry.db")
    with (
        pytest.raises(BrokenRegistry, match=r"append-only|follow"),
        engines.transaction(engine, "it", write=True) as db,
    ):
        db.exec_driver_sql(statement)


def test_a_failing_transaction_leaves_nothing(reg: Registry) -> None:
    before = contents(reg.root)
    with pytest.raises(NotFound):
        _write_and_fail(reg)
    assert contents(reg.root) == before


def _write_and_fail(reg: Registry) -> None:
    with reg.write("ana") as tx:
        tx.db.insert("base", digest="x", quantization="y")
        get_request(reg, "req-000001")
