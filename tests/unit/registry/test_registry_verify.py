"""`verify` names what was changed: each event column, each table, each blob, the schema, the file itself."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from registry_kit import answered, ask, contents, release, stack

from efface.registry import Registry, adapter_folder, database, list_adapters, log, rebuild, verify
from efface.registry.tables import PROJECTIONS

TRIGGERS = ("event_is_never_updated", "event_is_never_deleted", "event_follows_the_last")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry in which everything has happened once. Copy it."""
    work = tmp_path_factory.mktemp("story")
    with Registry.open(work / "registry", create=True) as reg:
        _, first = answered(reg, work, 1)
        _, second = answered(reg, work, 2)
        release(reg, stack([first]))
        release(reg, stack([first, second]))
        release(reg, stack([second]))
    return work / "registry"


@pytest.fixture
def told(story: Path, tmp_path: Path) -> Registry:
    """A copy of the story to tamper with."""
    return Registry.open(shutil.copytree(story, tmp_path / "told"))


def tamper(reg: Registry, *statements: str) -> None:
    """Run SQL as somebody would who owns the file: triggers dropped, and put back afterwards."""
    with closing(sqlite3.connect(reg.root / database.FILE_NAME, isolation_level=None)) as db:
        query = "SELECT sql FROM sqlite_master WHERE type = 'trigger'"
        triggers = [row[0] for row in db.execute(query)]
        for name in TRIGGERS:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        for sql in triggers:
            db.execute(sql)


def found(reg: Registry, *, deep: bool = False) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in verify(reg, deep=deep).problems]


def test_a_whole_registry_has_no_problems_and_is_not_touched(told: Registry) -> None:
    adapter_folder(told, list_adapters(told)[0].digest)
    before = contents(told.root)
    for deep in (False, True):
        result = verify(told, deep=deep)
        assert result.ok
        assert result.problems == ()
        assert result.events == len(log(told)) > 20
        assert result.blobs == 6  # one config, two weights, two manifests, one report
    assert contents(told.root) == before


@pytest.mark.parametrize("seq", [1, 7, 22])
@pytest.mark.parametrize(
    "change",
    [
        "v = 2",
        "at = '2020-01-01T00:00:00.000000Z'",
        "kind = 'request.verified'",
        "actor = 'eve'",
        "subject_kind = 'audit'",
        "subject_id = 'req-000002'",
        "body = '{}'",
        "hash = 'sha256:' || substr(hash, 9) || '0'",
    ],
)
def test_a_changed_column_names_its_event(told: Registry, seq: int, change: str) -> None:
    tamper(told, f"UPDATE event SET {change} WHERE seq = {seq}")
    assert found(told)[0] == ("event-hash", f"event {seq}")


@pytest.mark.parametrize("seq", [1, 7])
def test_a_changed_link_names_its_event(told: Registry, seq: int) -> None:
    tamper(told, f"UPDATE event SET prev_hash = 'sha256:' || substr(hash, 8) WHERE seq = {seq}")
    assert found(told)[0] == ("event-link", f"event {seq}")


@pytest.mark.parametrize("body", ["", "{", "[]", "1", '{"a":1,"a":2}', b"\xed\xa0\x80"])
def test_a_body_of_anything_names_its_event(told: Registry, body: str | bytes) -> None:
    literal = f"CAST(x'{(body if isinstance(body, bytes) else body.encode()).hex()}' AS TEXT)"
    tamper(told, f"UPDATE event SET body = {literal} WHERE seq = 7")
    assert found(told)[0] == ("event-form", "event 7")


def test_another_spelling_of_a_body_names_its_event(told: Registry) -> None:
    tamper(told, "UPDATE event SET body = ' ' || body WHERE seq = 7")
    assert found(told)[0] == ("event-form", "event 7")


@pytest.mark.parametrize("seq", [1, 7])
def test_a_deleted_event_is_a_gap(told: Registry, seq: int) -> None:
    tamper(told, f"DELETE FROM event WHERE seq = {seq}")
    assert found(told)[0] == ("event-gap", f"event {seq + 1}")


def test_a_deleted_event_with_the_rest_renumbered_is_a_broken_link(told: Registry) -> None:
    tamper(told, "DELETE FROM event WHERE seq = 7", *_shift(told, 7, -1))
    assert found(told)[0] == ("event-link", "event 7")


def test_an_inserted_event_is_named(told: Registry) -> None:
    columns = "v, at, kind, actor, subject_kind, subject_id, body, prev_hash"
    insert = f"INSERT INTO event SELECT 7, {columns}, 'sha256:new' FROM event WHERE seq = 8"
    tamper(told, *_shift(told, 7, 1), insert)
    assert found(told)[0] in [("event-link", "event 7"), ("event-hash", "event 7")]


def test_swapped_events_are_named(told: Registry) -> None:
    tamper(told, *(f"UPDATE event SET seq = {b} WHERE seq = {a}" for a, b in ((7, 999), (8, 7), (999, 8))))
    assert found(told)[0] == ("event-link", "event 7")


def test_a_truncated_tail_shows_at_the_head_and_in_what_it_projected(told: Registry) -> None:
    tamper(told, "DELETE FROM event WHERE seq > 20")
    kinds = {kind for kind, _ in found(told)}
    assert kinds == {"head", "projection"}
    assert ("projection", "release[prod, 3]") in found(told)


def test_two_changes_are_both_named(told: Registry) -> None:
    tamper(told, "UPDATE event SET actor = 'eve' WHERE seq IN (5, 9)")
    assert found(told) == [
        ("event-hash", "event 5"),
        ("event-hash", "event 9"),
        *[problem for problem in found(told) if problem[0] == "projection"],
    ]


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE forget_request SET state = 'CLOSED' WHERE id = 'req-000001'", "forget_request[req-000001]"),
        ("UPDATE forget_request SET due_at = '2099' WHERE id = 'req-000002'", "forget_request[req-000002]"),
        ("UPDATE release SET approved_by = 'eve' WHERE version = 2", "release[prod, 2]"),
        ("DELETE FROM release WHERE version = 1", "release[prod, 1]"),
        ("UPDATE composition_part SET weight = '2' WHERE rowid = 1", "composition_part["),
        ("UPDATE audit SET verdict = 'fail' WHERE rowid = 1", "audit[sha256:"),
        ("UPDATE adapter SET state = 'REJECTED' WHERE rowid = 1", "adapter[sha256:"),
        ("INSERT INTO adapter_request SELECT adapter, 'req-000001' FROM adapter_request WHERE true"
         " ON CONFLICT DO NOTHING", "adapter_request[sha256:"),
        ("INSERT INTO blob VALUES ('sha256:x', 1, 'text/plain', 1)", "blob[sha256:x]"),
        ("INSERT INTO base VALUES ('x', 'nf4')", "base[x, nf4]"),
    ],
)  # fmt: skip
def test_a_changed_row_is_named_and_replay_puts_it_right(told: Registry, statement: str, where: str) -> None:
    tamper(told, statement)
    (problem,) = verify(told).problems
    assert (problem.kind, problem.where.startswith(where)) == ("projection", True)
    assert problem.expected != problem.found
    rebuild(told)
    assert verify(told).ok


def test_replay_gives_the_same_tables(told: Registry) -> None:
    def dump() -> list[str]:
        with closing(sqlite3.connect(told.root / database.FILE_NAME)) as db:
            return [line for line in db.iterdump() if not line.startswith("CREATE")]

    before = dump()
    with told.write("ana") as tx:
        for table in reversed([table.name for table in PROJECTIONS]):
            tx.db.clear(table)
    assert len(dump()) < len(before)
    assert rebuild(told) == len(log(told))
    assert dump() == before


@pytest.mark.parametrize("name", [*TRIGGERS, "release_one_active_per_channel"])
def test_a_dropped_guard_is_named(told: Registry, name: str) -> None:
    kind = "INDEX" if "active" in name else "TRIGGER"
    with closing(sqlite3.connect(told.root / database.FILE_NAME)) as db:
        db.execute(f"DROP {kind} {name}")
    assert found(told) == [("schema", name)]


def _rewrite(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


BLOB_DAMAGE: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    "lost": (lambda path: path.unlink(), False, "blob-missing"),
    "cut": (lambda path: _rewrite(path, path.read_bytes()[:-1]), False, "blob-damaged"),
    "flipped": (lambda path: _rewrite(path, path.read_bytes()[:-1] + b"\xff"), True, "blob-damaged"),
}


@pytest.mark.parametrize("damage", BLOB_DAMAGE)
def test_each_damaged_blob_is_named(told: Registry, damage: str) -> None:
    change, only_deep, kind = BLOB_DAMAGE[damage]
    for digest in list(told.blobs):
        path = told.blobs.local_path(digest)
        whole = path.read_bytes()
        change(path)
        assert (found(told) == []) == only_deep
        assert set(found(told, deep=True)) == {(kind, digest)}
        _rewrite(path, whole)
    assert verify(told, deep=True).ok


def test_leftovers_of_a_crash_are_no_problem(told: Registry) -> None:
    told.blobs.put(b"sealed by a process that died before its event")
    (told.root / "blobs" / "sha256" / ".tmp-12").touch()
    assert verify(told, deep=True).ok


def test_a_copy_without_vault_is_whole(told: Registry, tmp_path: Path) -> None:
    whole = verify(told, deep=True)
    assert (whole.vault_checked > 0, whole.vault_unchecked) == (True, 0)
    assert verify(told).vault_unchecked == whole.vault_checked
    told.vault.folder.rename(tmp_path / "elsewhere")
    found = verify(told, deep=True)
    assert (found.ok, found.vault_checked, found.vault_unchecked) == (True, 0, whole.vault_checked)


@pytest.mark.parametrize("data", [b"", b"{", b"\0" * 300, b"rows in the clear", None])
@pytest.mark.parametrize("key", [True, False])
def test_entries_and_subject_key_are_looked_at_without_a_key(
    told: Registry, data: bytes | None, key: bool
) -> None:
    if not key:
        (told.vault.folder / "master.key").unlink()
    assert verify(told, deep=True).ok
    for path in (told.vault.path(told.vault.requests()[0]), told.vault.folder / "subject.key"):
        whole = path.read_bytes()
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        where = path.name.removesuffix(".json")
        kind = "vault-missing" if data is None else "vault-damaged"
        assert [(p.kind, p.where) for p in verify(told, deep=True).problems] == [(kind, where)]
        path.write_bytes(whole)
    assert verify(told, deep=True).ok


def test_files_that_belong_to_nothing_are_listed(told: Registry) -> None:
    assert verify(told, deep=True).extras == ()
    entry = told.vault.path(told.vault.requests()[0])
    names = {
        "notes.txt",
        "req-000001.orphan-1.json",
        "req-000099.json",
        "req-000099.shredded",
        ".tmp-1",
        "a/b",
    }
    (told.vault.folder / "a").mkdir()
    for name in names:
        (told.vault.folder / name).write_bytes(entry.read_bytes())
    (told.root / "blobs" / "sha256" / "ab").mkdir(exist_ok=True)
    strays = {"rows.jsonl", "sha256/ab/rows\n.jsonl", f"sha256/ab/{'0' * 64}"}
    for name in strays:
        (told.root / "blobs" / name).write_text("rows in the clear")
    (told.root / "blobs" / "link").symlink_to(told.vault.folder)
    found = verify(told, deep=True)
    shown = {name if "\n" not in name else ascii(f"blobs/{name}") for name in strays}
    wanted = {f"vault/{name}" for name in names} | {
        name if name.startswith("'") else f"blobs/{name}" for name in (*shown, "link")
    }
    assert (found.ok, set(found.extras)) == (True, wanted)
    assert verify(told).extras == ()


@pytest.mark.parametrize("page", range(1, 12))
def test_a_page_of_zeros_is_reported_not_raised(told: Registry, page: int) -> None:
    path = told.root / database.FILE_NAME
    data = bytearray(path.read_bytes())
    data[page * 4096 : (page + 1) * 4096] = bytes(4096)
    path.write_bytes(data)
    assert not verify(told).ok


def test_a_half_database_is_reported_not_raised(reg: Registry) -> None:
    ask(reg)
    path = reg.root / database.FILE_NAME
    path.write_bytes(path.read_bytes()[: 2 * 4096])
    assert verify(reg).problems[0].kind == "database"
    path.write_bytes(b"")
    assert not verify(reg).ok
    path.unlink()
    assert verify(reg).problems[0].kind == "database"


def _shift(reg: Registry, first: int, by: int) -> list[str]:
    """Statements that move the events from `first` on, one by one in an order without collisions."""
    moved = [event.seq for event in log(reg) if event.seq >= first]
    ordered = moved if by < 0 else list(reversed(moved))
    return [f"UPDATE event SET seq = {seq + by} WHERE seq = {seq}" for seq in ordered]
