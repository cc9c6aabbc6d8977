"""Registries of every released version open, migrate, verify and go on; newer ones are refused by name (design §4, 12).

`fixtures/registry-VERSION.tar.gz` was written by that version. Postgres came after 0.1.0: there its ledger is laid into
the oldest schema. As a script this file is the driver of its kills (see `crash_kit`).
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from crash_kit import Arm, every_step, fast_folder, killed, some_moments
from registry_backends import Backend, Postgres, new_backend, rows
from registry_kit import CANARY, answered, ask, audited, contents, release, stack

from efface.registry import (
    InvalidInput,
    Registry,
    active_release,
    channels,
    create_release,
    database,
    engines,
    get_adapter,
    get_channel,
    history,
    list_adapters,
    list_audits,
    list_requests,
    log,
    plan_removal,
    read_payload,
    rebuild,
    requests_of_subject,
    shred_request,
    snapshot,
    verify,
)
from efface.registry.migrations import POSTGRES_SCHEMA, REVISIONS
from efface.registry.sql import METADATA
from efface.registry.tables import ALL

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("registry-*.tar.gz"))
SCRIPTS = Path(database.__file__).parent / "migrations"
BOTH = pytest.mark.parametrize("backend", ["folder", "postgres"], indirect=True)


def unpacked(fixture: Path, folder: Path) -> Path:
    with tarfile.open(fixture) as archive:
        archive.extractall(folder, filter="tar")  # the vault is 0700; `data` would open it
    return folder / "registry"


def config(connection: sa.Connection | None = None) -> Config:
    found = Config()
    found.set_main_option("script_location", str(SCRIPTS))
    found.attributes["connection"] = connection
    return found


def lay(server: Postgres, name: str, root: Path) -> None:
    """The events of the file registry at `root` in a Postgres database with the oldest schema."""
    engine = engines.postgres(server.url(name))
    with closing(sqlite3.connect(root / "registry.db")) as old:
        events = old.execute("SELECT * FROM event ORDER BY seq").fetchall()
    with engines.transaction(engine, name, write=True) as connection:
        command.upgrade(config(connection), REVISIONS[0])
        marks = ", ".join(["%s"] * 10)
        connection.exec_driver_sql(f"INSERT INTO event VALUES ({marks})", events)
    engine.dispose()


@pytest.fixture(params=[pytest.param(path, id=path.name) for path in FIXTURES])
def fixture(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(params=["folder", "postgres"])
def old(
    request: pytest.FixtureRequest, fixture: Path, tmp_path: Path, quiet_vault: None
) -> Iterator[Backend]:
    """A registry of an older version, not opened yet."""
    root = unpacked(fixture, tmp_path)
    if request.param == "folder":
        place = Backend("folder", str(root), root)
    else:
        place = new_backend("postgres", tmp_path, request)
        root.rename(place.root)
        assert place.server is not None
        lay(place.server, place.database, place.root)
        (place.root / "registry.db").unlink()
    yield place
    place.close()


def test_there_is_a_fixture_of_every_version_that_was_released() -> None:
    assert "registry-0.1.0.tar.gz" in {path.name for path in FIXTURES}


def test_an_old_registry_opens_with_everything_it_held(old: Backend) -> None:
    reg = old.open(create=False)
    assert verify(reg, deep=True).problems == ()
    assert [event.seq for event in log(reg)] == list(range(1, 38))
    states = {request.id: request.state for request in list_requests(reg)}
    assert states == {
        "req-000001": "RELEASED",
        "req-000002": "RELEASED",
        "req-000003": "TRAINED",
        "req-000004": "WITHDRAWN",
    }
    assert channels(reg) == ["canary", "prod"]
    assert [found.state for found in history(reg, "prod")] == ["SUPERSEDED", "ACTIVE"]
    assert {adapter.state for adapter in list_adapters(reg)} == {"SEALED", "QUALIFIED"}
    assert {event.kind for event in log(reg)} >= {"adapter.sealed", "audit.recorded", "request.withdrawn"}


def test_an_old_registry_s_vault_of_version_1_is_read_and_shredded(old: Backend) -> None:
    reg = old.open(create=False)
    assert all(read_payload(reg, request.id) for request in list_requests(reg))
    subjects = [request.subject_ref for request in list_requests(reg)]
    assert requests_of_subject(reg, "nobody that is known") == []
    ask(reg, subject_ref="Zoë")
    assert len(requests_of_subject(reg, "Zoë")) == 1
    assert subjects == [request.subject_ref for request in list_requests(reg)][:4]
    shred_request(reg, "req-000001", actor="ana")
    shred_request(reg, "req-000004", actor="ana")
    assert verify(reg, deep=True).problems == ()


def test_an_old_registry_goes_on(old: Backend, tmp_path: Path) -> None:
    reg = old.open(create=False)
    request_id, adapter = answered(reg, tmp_path, 77)
    assert request_id == "req-000005"
    assert read_payload(reg, request_id) == CANARY.encode()
    before = active_release(reg, "prod")
    parts = [get_adapter(reg, digest) for digest in before.composition.adapters]
    release(reg, stack([*parts, adapter]))
    back = plan_removal(reg, "prod", [request_id])
    made = create_release(reg, "prod", back, rendered=None, reason="rolled back", actor="ana")
    audited(reg, back)
    assert made.composition.digest == before.composition.digest
    assert made.version == before.version + 2
    dumped = rows(reg)
    assert rebuild(reg) == len(log(reg))
    assert rows(reg) == dumped
    assert verify(reg, deep=True).problems == ()


def test_a_migrated_registry_is_as_one_made_new(old: Backend, tmp_path: Path) -> None:
    """Not one table, index or trigger is left of the old schema."""
    reg = old.open(create=False)
    assert verify(reg).ok  # it compares the schema
    with reg.database.reading() as db:
        tables = set(sa.inspect(db.connection).get_table_names())
    assert tables == {*ALL, "alembic_version"}
    old.open(create=False)
    assert verify(reg).ok


def test_a_schema_of_the_revision_before_goes_on_from_there(tmp_path: Path) -> None:
    """A ledger of 0.1.0 in the tables of 0002: no audit names requests, no channel has a rule."""
    root = unpacked(FIXTURES[0], tmp_path)
    engine = engines.sqlite(root / "registry.db")
    with engines.transaction(engine, "it", write=True) as connection:
        database._adopt(connection)
        command.upgrade(config(connection), "0002_projections")
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        assert found == "0002_projections"
    engine.dispose()
    with Registry.open(root) as reg:
        assert verify(reg, deep=True).problems == ()
        assert {audit.requests for audit in list_audits(reg)} == {None}
        assert [get_channel(reg, name).two_person for name in channels(reg)] == [False, False]
        described_now = described(reg)
    with Registry.open(tmp_path / "new", create=True) as new:
        assert described(new) == described_now


def test_efface_0_1_0_refuses_a_migrated_registry_by_number(tmp_path: Path) -> None:
    """It reads `user_version`, and knows 1."""
    root = unpacked(FIXTURES[0], tmp_path)
    Registry.open(root).close()
    with closing(sqlite3.connect(root / "registry.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)


@BOTH
def test_a_newer_schema_is_refused_by_name_and_untouched(backend: Backend) -> None:
    reg = backend.open()
    ask(reg)
    backend.sql("UPDATE alembic_version SET version_num = '0099_quantum'")
    before = backend.state(reg)
    for create in (True, False):
        with pytest.raises(InvalidInput, match=r"schema 0099_quantum.*newer efface"):
            backend.open(create=create)
    assert backend.state(reg) == before


@BOTH
def test_a_schema_of_several_names_or_none_is_refused(backend: Backend) -> None:
    backend.open()
    backend.sql("INSERT INTO alembic_version VALUES ('0001_ledger')")
    with pytest.raises(InvalidInput, match="several names"):
        backend.open()
    backend.sql("DELETE FROM alembic_version")
    with pytest.raises(InvalidInput, match="schema"):
        backend.open()


def test_a_newer_number_is_refused(tmp_path: Path) -> None:
    root = unpacked(FIXTURES[0], tmp_path)
    with closing(sqlite3.connect(root / "registry.db")) as db:
        db.execute("PRAGMA user_version=7")
    before = contents(root)
    with pytest.raises(InvalidInput, match=r"schema number 7.*newer efface"):
        Registry.open(root)
    assert contents(root) == before


def test_the_revisions_are_alembic_s_in_order() -> None:
    script = ScriptDirectory.from_config(config())
    assert [found.revision for found in reversed(list(script.walk_revisions()))] == list(REVISIONS)
    assert script.get_heads() == [REVISIONS[-1]]


def described(reg: Registry) -> dict[str, Any]:
    """Tables with their columns in order: the kind of value, whether it may be null, whether it is in the key."""
    with reg.database.reading() as db:
        inspector = sa.inspect(db.connection)
        return {
            name: [
                (
                    column["name"],
                    "number" if isinstance(column["type"], sa.Integer) else "text",
                    column["nullable"] and column["name"] not in key["constrained_columns"],
                    column["name"] in key["constrained_columns"],
                )
                for column in inspector.get_columns(name)
            ]
            for name in ALL
            for key in [inspector.get_pk_constraint(name)]
        }


@BOTH
def test_the_tables_in_code_are_those_that_the_migrations_make(backend: Backend) -> None:
    made = described(backend.open())
    assert set(METADATA.tables) == set(ALL) == set(made)
    for name, table in ALL.items():
        assert [column[0] for column in made[name]] == list(table.columns), name
        assert {column[0] for column in made[name] if column[1] == "number"} == table.numbers, name
        assert {column[0] for column in made[name] if column[3]} == set(table.key), name
        in_code = METADATA.tables[name].columns
        assert [column.name for column in in_code if column.primary_key] == list(table.key)
        numbers = {column.name for column in in_code if isinstance(column.type, sa.Integer)}
        assert numbers == table.numbers


def test_both_databases_have_the_same_columns(postgres: Backend, tmp_path: Path) -> None:
    with Registry.open(tmp_path / "file", create=True) as reg:
        assert described(reg) == described(postgres.open())


def test_the_shipped_description_is_what_the_migrations_make_of_postgres(postgres: Backend) -> None:
    """`verify` compares with it. When a migration changes the schema, write what this finds to POSTGRES_SCHEMA."""
    reg = postgres.open()
    with reg.database.reading() as db:
        made = snapshot.describe_postgres(db.connection)
    assert snapshot.shipped_schema() == made
    assert len(POSTGRES_SCHEMA.read_text().splitlines()) == len(made)


def together(url: str, number: int = 4) -> list[str]:
    script = f"""
from efface.registry import Registry, log, verify
with Registry.open({url!r}, create=True) as reg:
    print(len(log(reg)), verify(reg).ok)
"""
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    found = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * number
    return found


def test_processes_that_migrate_at_once_migrate_once(old: Backend) -> None:
    assert together(old.url) == ["37 True"] * 4
    assert verify(old.open(), deep=True).problems == ()


@BOTH
def test_processes_that_create_at_once_create_one(backend: Backend) -> None:
    assert together(backend.url) == ["0 True"] * 4
    assert backend.sql("SELECT count(*) FROM head") == [(1,)]


def revision(root: Path, server: Postgres | None) -> str | None:
    """The schema's name as it is stored; None for the number of 0.1.0."""
    if server is not None:
        return str(
            server.run("SELECT version_num FROM alembic_version", database=root.name.replace("-", "_"))[0][0]
        )
    with closing(sqlite3.connect(root / "registry.db")) as db:  # rolls back what the dead process began
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if "alembic_version" not in names:
            assert db.execute("PRAGMA user_version").fetchone() == (1,)
            assert "head" not in names
            return None
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        assert set(names) == {*ALL, "alembic_version"}
        return str(db.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def drive(fixture: Path, socket: str | None) -> None:
    """Kill the migration at every step; print how many there are."""
    server = None if socket is None else Postgres(Path(socket))
    with fast_folder() as folder:
        base = unpacked(fixture, folder)
        if server is not None:
            template = server.database()
            lay(server, template, base)

        def place(name: str) -> tuple[Path, str]:
            root = Path(shutil.copytree(base, folder / f"t-{name}"))
            if server is None:
                return root, str(root)
            database_name = root.name.replace("-", "_")
            server.run(f"CREATE DATABASE {database_name} TEMPLATE {template}")
            return root, server.url(database_name, root=root)

        def trial(name: str, arm: Arm) -> bool:
            root, url = place(name)
            died = killed(lambda: Registry.open(url), arm)
            found = revision(root, server)
            assert found in ((None, REVISIONS[-1]) if server is None else (REVISIONS[0], REVISIONS[-1])), (
                found
            )
            with Registry.open(url) as reg:
                assert verify(reg, deep=True).problems == ()
                assert len(log(reg)) == 37
            if server is not None:
                server.run(f"DROP DATABASE {root.name.replace('-', '_')} WITH (FORCE)")
            shutil.rmtree(root)
            return died

        steps = every_step(trial, 1 if server is None else 5, files=server is None)
        timed = 0
        if server is None:
            whole = place("whole")[1]
            timed = some_moments(trial, lambda: Registry.open(whole), 10)
        else:
            server.run(f"DROP DATABASE {template} WITH (FORCE)")
        sys.stdout.write(f"{steps} {timed}\n")


def driven(*arguments: str) -> list[int]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command_line = [sys.executable, "-W", "error", __file__, *arguments]
    done = subprocess.run(command_line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


def test_killed_in_a_migration_the_schema_is_the_old_or_the_new_one(fixture: Path, quiet_vault: None) -> None:
    steps, timed = driven(str(fixture))
    assert steps >= 40
    assert timed >= 1


def test_killed_in_a_migration_of_postgres_too(
    fixture: Path, postgres_server: Postgres, quiet_vault: None
) -> None:
    steps, _ = driven(str(fixture), str(postgres_server.folder))
    assert steps >= 10


if __name__ == "__main__":
    drive(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
