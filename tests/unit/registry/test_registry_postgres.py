"""A registry on a real Postgres: opening it, what tampering shows, how its errors read, where passwords do not go."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_backends import Backend, Postgres
from registry_kit import answered, ask, release, stack

from efface.registry import (
    BrokenRegistry,
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    RegistryError,
    engines,
    log,
    rebuild,
    verify,
)


@pytest.fixture
def reg(postgres: Backend) -> Registry:
    return postgres.open()


@pytest.fixture
def told(reg: Registry, tmp_path: Path) -> Registry:
    """Two requests, two adapters, three releases."""
    _, first = answered(reg, tmp_path, 1)
    _, second = answered(reg, tmp_path, 2)
    for composition in (stack([first]), stack([first, second]), stack([second])):
        release(reg, composition)
    return reg


def found(reg: Registry) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in verify(reg).problems]


def test_a_database_without_a_registry_is_not_found_and_stays_empty(postgres: Backend) -> None:
    with pytest.raises(NotFound):
        Registry.open(postgres.url)
    assert postgres.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert not postgres.root.exists()


def test_create_then_open_and_create_again_keeps_it(postgres: Backend) -> None:
    ask(postgres.open())
    for create in (True, False):
        reg = postgres.open(create=create)
        assert [event.kind for event in log(reg)] == ["request.received"]
        assert verify(reg, deep=True).ok


@pytest.mark.parametrize("table", ["event (id INT)", "event (seq BIGINT, hash TEXT)"])
@pytest.mark.parametrize("create", [True, False])
def test_a_database_of_another_program_is_refused_and_untouched(
    postgres: Backend, table: str, create: bool
) -> None:
    postgres.sql(f"CREATE TABLE {table}")
    with pytest.raises(InvalidInput, match="another program"):
        postgres.open(create=create)
    assert postgres.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [("event",)]


def test_another_program_s_alembic_is_refused_by_name(postgres: Backend) -> None:
    postgres.sql(
        "CREATE TABLE alembic_version (version_num TEXT)", "INSERT INTO alembic_version VALUES ('ae1027a6')"
    )
    with pytest.raises(InvalidInput, match="schema ae1027a6"):
        postgres.open()


def test_text_sorts_by_bytes_as_on_sqlite(reg: Registry) -> None:
    with reg.write("ana") as tx:
        for name in ("b", "B", "a", "é", "Z"):
            tx.db.insert("base", digest=name, quantization="nf4")
        assert [row["digest"] for row in tx.db.find("base")] == ["B", "Z", "a", "b", "é"]


COLUMNS = "v, at, kind, actor, subject_kind, subject_id, body"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE event SET actor = 'eve'",
        "DELETE FROM event",
        "TRUNCATE event",
        f"INSERT INTO event SELECT 1, {COLUMNS}, prev_hash, 'x' FROM event ON CONFLICT (seq)"
        " DO UPDATE SET actor = 'eve'",
        f"INSERT INTO event SELECT seq + 2, {COLUMNS}, hash, 'x' FROM event",
        f"INSERT INTO event SELECT seq + 1, {COLUMNS}, 'y', 'x' FROM event",
    ],
)
def test_the_database_itself_refuses_to_rewrite_events(reg: Registry, statement: str) -> None:
    ask(reg)
    engine = reg.database.engine
    with (
        pytest.raises(BrokenRegistry, match=r"append-only|follow"),
        engines.transaction(engine, "it", write=True) as db,
    ):
        db.exec_driver_sql(statement)
    assert verify(reg).ok


def tamper(backend: Backend, *statements: str) -> None:
    """As the owner of the table: triggers off, the change, triggers on again."""
    backend.sql("ALTER TABLE event DISABLE TRIGGER ALL", *statements, "ALTER TABLE event ENABLE TRIGGER ALL")


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
def test_a_changed_column_names_its_event(told: Registry, postgres: Backend, seq: int, change: str) -> None:
    tamper(postgres, f"UPDATE event SET {change} WHERE seq = {seq}")
    assert found(told)[0] == ("event-hash", f"event {seq}")


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["UPDATE event SET prev_hash = hash WHERE seq = 7"], ("event-link", "event 7")),
        (["DELETE FROM event WHERE seq = 7"], ("event-gap", "event 8")),
        (["UPDATE event SET body = ' ' || body WHERE seq = 7"], ("event-form", "event 7")),
        (["UPDATE event SET body = '{' WHERE seq = 7"], ("event-form", "event 7")),
        ([f"UPDATE event SET seq = {b} WHERE seq = {a}" for a, b in ((7, 999), (8, 7), (999, 8))],
         ("event-link", "event 7")),
        (["UPDATE event SET seq = seq + 1000 WHERE seq >= 7", "UPDATE event SET seq = seq - 999 WHERE seq > 999",
          "INSERT INTO event SELECT 7, v, at, kind, actor, subject_kind, subject_id, body, prev_hash, 'new'"
          " FROM event WHERE seq = 8"], ("event-hash", "event 7")),
        (["DELETE FROM event WHERE seq > 20"], ("head", "head")),
        (["TRUNCATE event"], ("head", "head")),
        (["UPDATE head SET hash = 'sha256:' || repeat('0', 64)"], ("head", "head")),
        (["UPDATE head SET seq = 3"], ("head", "head")),
        (["DELETE FROM head"], ("head", "head")),
    ],
)  # fmt: skip
def test_what_the_owner_of_the_table_changes_is_named(
    told: Registry, postgres: Backend, statements: list[str], problem: tuple[str, str]
) -> None:
    tamper(postgres, *statements)
    assert found(told)[0] == problem


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE forget_request SET state = 'CLOSED' WHERE id = 'req-000001'", "forget_request[req-000001]"),
        ("UPDATE release SET approved_by = 'eve' WHERE version = 2", "release[prod, 2]"),
        ("DELETE FROM release WHERE version = 1", "release[prod, 1]"),
        ("UPDATE audit SET verdict = 'fail' WHERE seq = (SELECT min(seq) FROM audit)", "audit[sha256:"),
        ("INSERT INTO blob VALUES ('sha256:x', 1, 'text/plain', 1)", "blob[sha256:x]"),
    ],
)
def test_a_changed_row_is_named_and_replay_puts_it_right(
    told: Registry, postgres: Backend, statement: str, where: str
) -> None:
    postgres.sql(statement)
    (problem,) = verify(told).problems
    assert (problem.kind, problem.where.startswith(where)) == ("projection", True)
    assert rebuild(told) == len(log(told))
    assert verify(told).ok


NOTHING = "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NEW; END $$"


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("ALTER TABLE event DISABLE TRIGGER event_is_never_changed", "event_is_never_changed"),
        ("ALTER TABLE event ENABLE REPLICA TRIGGER event_follows_the_last", "event_follows_the_last"),
        ("DROP TRIGGER event_is_never_emptied ON event", "event_is_never_emptied"),
        (NOTHING.format("event_is_append_only", ""), "function event_is_append_only"),
        (NOTHING.format("event_follows", "IF false THEN RAISE EXCEPTION 'it'; END IF;"), "function event_follows"),
        ("ALTER FUNCTION event_follows() SET search_path = 'elsewhere'", "function event_follows"),
        ("CREATE RULE mute AS ON INSERT TO event DO INSTEAD NOTHING", "rule mute"),
        ("DROP INDEX release_one_active_per_channel", "release_one_active_per_channel"),
        ("ALTER TABLE release ALTER reason DROP NOT NULL", "release"),
        ("ALTER TABLE release ALTER reason TYPE varchar(10)", "release"),
        ("ALTER TABLE release DROP CONSTRAINT release_channel_fkey", "release release_channel_fkey"),
        ("ALTER TABLE head DROP CONSTRAINT head_id_check", "head head_id_check"),
        ("ALTER TABLE event ENABLE ROW LEVEL SECURITY", "event"),
        ("ALTER TABLE audit ADD COLUMN note TEXT", "audit"),
    ],
)  # fmt: skip
def test_a_loosened_guard_is_named(reg: Registry, postgres: Backend, statement: str, where: str) -> None:
    assert found(reg) == []
    postgres.sql(statement)
    assert ("schema", where) in found(reg)
    assert {kind for kind, _ in found(reg)} == {"schema"}


def test_a_lost_table_is_reported_not_raised(told: Registry, postgres: Backend) -> None:
    postgres.sql("DROP TABLE release")
    kinds = {kind for kind, _ in found(told)}
    assert {"schema", "database"} <= kinds
    postgres.sql("DROP TABLE event CASCADE")
    assert not verify(told).ok


def refused(act: Callable[[], object]) -> RegistryError:
    """The error, after a look that no password is in any word of it."""
    with pytest.raises(RegistryError) as caught:
        act()
    error: BaseException | None = caught.value
    while error is not None:  # what a traceback prints, but for our own source lines
        assert "Tr0ub4dor" not in f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return caught.value


def test_no_server_and_no_such_database_say_what_to_check(postgres_server: Postgres, tmp_path: Path) -> None:
    gone = refused(lambda: Registry.open(f"postgresql://ana:Tr0ub4dor@/db?host={tmp_path}"))
    assert (type(gone), gone.came) == (RegistryError, "no server that listens")
    assert "***" in gone.expected
    closed = refused(lambda: Registry.open("postgresql://ana:Tr0ub4dor@127.0.0.1:1/db"))
    assert closed.came == "no server that listens"
    absent = refused(lambda: Registry.open(postgres_server.url("nowhere")))
    assert (type(absent), absent.came) == (RegistryError, "no such database or user")


@pytest.mark.parametrize("place", ["user:password", "parameter"])
def test_a_wrong_password_is_not_repeated(postgres_server: Postgres, place: str) -> None:
    url = postgres_server.url("postgres", user="guarded", root="x")
    wrong = (
        url.replace("guarded@", "guarded:Tr0ub4dor@")
        if place == "user:password"
        else url + "&password=Tr0ub4dor"
    )
    error = refused(lambda: Registry.open(wrong))
    assert (type(error), error.came) == (RegistryError, "another password or user")
    assert refused(lambda: Registry.open(url)).came == "no password"


@pytest.mark.parametrize("place", ["user:password", "parameter"])
def test_a_right_password_is_in_no_repr(postgres: Backend, place: str, tmp_path: Path) -> None:
    assert postgres.server is not None
    postgres.sql(
        f"ALTER DATABASE {postgres.database} OWNER TO guarded", "GRANT CREATE ON SCHEMA public TO guarded"
    )
    secret = Postgres.PASSWORD.replace(" ", "%20")
    url = postgres.server.url(postgres.database, user="guarded", root=tmp_path / "own")
    url = (
        url.replace("guarded@", f"guarded:{secret}@")
        if place == "user:password"
        else f"{url}&password={secret}"
    )
    with Registry.open(url, create=True) as reg:
        ask(reg)
        verification = verify(reg)
        assert verification.ok
        shown = (repr(reg), str(reg.database.engine), reg.database.where, repr(verification))
    for text in shown:
        assert secret not in text
        assert Postgres.PASSWORD not in text


def test_a_url_that_is_none_is_not_repeated() -> None:
    for url in ("postgresql://ana:Tr0ub4dor@host:port/db", "postgresql://ana:Tr0ub4dor@[host/db"):
        assert isinstance(refused(lambda url=url: Registry.open(url)), InvalidInput)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", RegistryError),  # disk full
        ("53200", RegistryError),  # out of memory
        ("58030", RegistryError),  # the server's disk fails
        ("42501", RegistryError),  # no permission
        ("40001", Conflict),  # serialization failure
        ("40P01", Conflict),  # deadlock
        ("55P03", Conflict),  # lock timeout
        ("57014", Conflict),  # statement timeout
        ("23505", BrokenRegistry),  # unique violation
        ("XX001", BrokenRegistry),  # damaged data
    ],
)
def test_errors_of_the_server_by_sqlstate(reg: Registry, state: str, kind: type[RegistryError]) -> None:
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'said' USING ERRCODE = '{state}', DETAIL = 'Tr0ub4dor'; END $$"
    with pytest.raises(RegistryError) as caught, reg.database.writing() as db:
        db.connection.exec_driver_sql(raising)
    assert (type(caught.value), caught.value.came) == (kind, "said")
    assert "Tr0ub4dor" not in str(caught.value)
    assert verify(reg).ok


def test_a_read_only_server_can_be_read_and_verified(reg: Registry, postgres: Backend) -> None:
    ask(reg)
    postgres.sql(f"ALTER DATABASE {postgres.database} SET default_transaction_read_only = on")
    with Registry.open(postgres.url) as copy:
        assert verify(copy, deep=True).ok
        with pytest.raises(RegistryError, match="read-only"):
            ask(copy)
        assert [request.subject_id for request in log(copy)] == ["req-000001"]
        assert copy.vault.requests() == ["req-000001"]


def test_a_user_without_rights_is_told_so(reg: Registry, postgres: Backend) -> None:
    assert postgres.server is not None
    secret = Postgres.PASSWORD.replace(" ", "%20")
    url = postgres.server.url(postgres.database, user="guarded", root=postgres.root)
    error = refused(lambda: Registry.open(f"{url}&password={secret}"))
    assert type(error) is RegistryError
    assert "permission" in error.came


def terminate(backend: Backend) -> None:
    """End every other connection to the database, as a restart of the server would."""
    backend.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        f" WHERE datname = '{backend.database}' AND pid <> pg_backend_pid()"
    )


def test_connections_that_the_server_dropped_are_replaced(reg: Registry, postgres: Backend) -> None:
    ask(reg)
    terminate(postgres)
    ask(reg)
    assert verify(reg).events == 2


def test_a_connection_lost_inside_a_transaction_undoes_it(reg: Registry, postgres: Backend) -> None:
    ask(reg)
    with pytest.raises(RegistryError) as caught:
        _write_and_lose(reg, postgres)
    assert type(caught.value) is RegistryError
    assert verify(reg).ok


def _write_and_lose(reg: Registry, postgres: Backend) -> None:
    with reg.write("ana") as tx:
        tx.db.insert("base", digest="x", quantization="nf4")
        terminate(postgres)
        tx.db.insert("base", digest="y", quantization="nf4")


def test_a_second_writer_waits_for_the_head_and_then_gives_up(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.05)
    with reg.write("a slow process"), pytest.raises(Conflict, match="lock"):
        ask(reg)
    ask(reg)
    assert reg.vault.requests() == ["req-000001"]
    assert verify(reg).ok


WAITS = """
SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND NOT l.granted
WHERE a.datname = current_database() AND a.query LIKE '%head%FOR UPDATE%'
AND cardinality(pg_blocking_pids(a.pid)) > 0
"""


def test_a_second_writer_is_seen_waiting_and_then_writes(reg: Registry, postgres: Backend) -> None:
    """No race of sleeps: the server itself says that the other process waits on a lock that we hold."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = f"from registry_kit import *\nwith Registry.open({postgres.url!r}) as reg: print(ask(reg))"
    with reg.write("a slow process") as tx:
        other = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script], env=environment, stdout=subprocess.PIPE, text=True
        )
        while postgres.sql(WAITS) == [(0,)]:
            assert other.poll() is None, "it did not wait"
        assert tx.db.count("event") == 0
        assert other.poll() is None
    output, _ = other.communicate(timeout=60)
    assert (other.returncode, output.strip()) == (0, "req-000001")


def test_reading_sees_one_moment(reg: Registry) -> None:
    ask(reg)
    with reg.read() as db:
        assert db.count("event") == 1
        ask(reg)
        assert db.count("event") == 1
    assert len(log(reg)) == 2
