"""The registry's backends for tests: a folder, a real Postgres, and Postgres with blobs on a real S3 API.

The fixture `backend` runs a test on each of them; `postgres_server` is the server of the test run, started on a Unix
socket by the first test that asks (pgserver's binaries, or the system's) and stopped at its end.
"""

import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from blob_kit import S3
from registry_kit import contents

from efface.registry import Registry
from efface.registry.tables import ALL

KINDS = ("folder", "postgres", "postgres+s3")
NOBODY = 65534
"""Postgres does not run as root; this user owns nothing else."""
START_SECONDS = 30.0
_SETTINGS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "listen_addresses=")
"""Clients are killed in the tests, the server is not: its disk need not be waited for. No TCP port."""
_ACCESS = "local all guarded scram-sha-256\nlocal all all trust\n"


@dataclass(frozen=True)
class Postgres:
    """A running server. `folder` holds its socket; the user `guarded` needs the password `PASSWORD`."""

    folder: Path

    PASSWORD = "correct horse battery staple"

    def url(self, database: str, *, user: str = "postgres", **options: object) -> str:
        given = {"host": self.folder, **options}
        query = "&".join(f"{name}={quote(str(value), safe='/:')}" for name, value in given.items())
        return f"postgresql://{user}@/{database}?{query}"

    def run(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as the owner of everything; the rows of the last one."""
        import psycopg

        with psycopg.connect(self._conninfo(database), autocommit=True) as connection:
            found: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement)  # pyright: ignore[reportArgumentType]
                found = cursor.fetchall() if cursor.description else []
            return found

    def database(self, template: str = "template0") -> str:
        """The name of a new, empty database."""
        name = f"db_{secrets.token_hex(6)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def _conninfo(self, database: str) -> str:
        return f"host={self.folder} user=postgres dbname={database}"


@dataclass(frozen=True)
class Backend:
    """A place for one registry. `url` opens it here and in other processes."""

    kind: str
    url: str
    root: Path
    server: Postgres | None = None
    database: str = ""
    opened: list[Registry] = field(default_factory=list[Registry])

    def open(self, **options: Any) -> Registry:
        """Open it, and make it where there is none; closed at the end of the test."""
        reg = Registry.open(self.url, **{"create": True, **options})
        self.opened.append(reg)
        return reg

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run SQL past the registry, as whoever owns the database can; the rows of the last statement."""
        if self.server is not None:
            return self.server.run(*statements, database=self.database)
        with closing(sqlite3.connect(self.root / "registry.db", isolation_level=None)) as db:
            return [db.execute(statement).fetchall() for statement in statements][-1]

    def state(self, reg: Registry) -> object:
        """All that is stored: every byte below the folder, and what lies elsewhere."""
        files = contents(self.root) if self.root.is_dir() else {}
        if self.server is None:
            return files
        return files, rows(reg), [(blob.digest, blob.size) for blob in reg.blobs.stored()]

    def close(self) -> None:
        for reg in self.opened:
            reg.close()
        if self.server is not None:
            self.server.run(f"DROP DATABASE {self.database} WITH (FORCE)")


def rows(reg: Registry, names: Iterable[str] = tuple(ALL)) -> dict[str, Any]:
    """Every row of every table."""
    with reg.database.reading() as db:
        return {name: db.dump(name) for name in names}


def new_backend(kind: str, folder: Path, request: pytest.FixtureRequest) -> Backend:
    """A new place for a registry; servers are started for the first test that asks."""
    root = folder / f"registry-{secrets.token_hex(4)}"
    if kind == "folder":
        return Backend(kind, str(root), root)
    server: Postgres = request.getfixturevalue("postgres_server")
    database = server.database()
    options: dict[str, object] = {"root": root}
    if kind == "postgres+s3":
        s3: S3 = request.getfixturevalue("s3_server")
        options["blobs"] = f"s3://{s3.bucket()}/blobs"
    return Backend(kind, server.url(database, **options), root, server, database)


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, quiet_vault: None) -> Iterator[Backend]:
    """An empty place for a registry on each backend."""
    found = new_backend(request.param, tmp_path, request)
    yield found
    found.close()


@pytest.fixture
def any_reg(backend: Backend) -> Registry:
    """A new registry on each backend."""
    from registry_kit import Clock

    return backend.open(clock=Clock())


@pytest.fixture
def postgres(request: pytest.FixtureRequest, tmp_path: Path, quiet_vault: None) -> Iterator[Backend]:
    """An empty place for a registry on Postgres."""
    found = new_backend("postgres", tmp_path, request)
    yield found
    found.close()


@pytest.fixture
def quiet_vault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vault's key is in its folder, whatever the environment of the test run says."""
    for name in ("EFFACE_VAULT_KEY", "EFFACE_VAULT_KEY_FILE", "EFFACE_VAULT_KEY_SOURCE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def s3_server(s3: S3) -> Iterator[S3]:
    """The S3 server of the test run, which URLs without options find, in other processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        yield s3


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """The Postgres server of the test run."""
    pytest.importorskip("psycopg", reason="Postgres tests need psycopg: pip install 'efface[postgres]'")
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("Postgres tests need a Postgres: pip install pgserver, or install the system's")
    folder = Path(tempfile.mkdtemp(prefix="efface-pg-"))  # short: the path of a socket has at most 107 bytes
    try:
        with running(binaries, folder) as server:
            server.run(f"CREATE ROLE guarded LOGIN PASSWORD '{Postgres.PASSWORD}'")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class running:
    """A server in `folder`, from its first connection to its end."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries, self.folder = binaries, folder

    def __enter__(self) -> Postgres:
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        as_root = os.geteuid() == 0
        if as_root:
            for path in (self.folder, data):
                os.chown(path, NOBODY, NOBODY)
        who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if as_root else {}
        initdb = [self.binaries / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync"]
        make = [*initdb, "--encoding=UTF8", "--locale=C"]
        done = subprocess.run(make, capture_output=True, text=True, cwd="/", **who)
        if done.returncode:
            pytest.skip(f"Postgres cannot be set up here: {done.stderr.strip()[-300:]}")
        (data / "pg_hba.conf").write_text(_ACCESS)
        settings = [part for setting in (*_SETTINGS, f"unix_socket_directories={self.folder}")
                    for part in ("-c", setting)]  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            command = [self.binaries / "postgres", "-D", data, *settings]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **who)
        server = Postgres(self.folder)
        self._wait(server)
        return server

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)  # a fast shutdown: clients are cut off
        self.process.wait(START_SECONDS)

    def _wait(self, server: Postgres) -> None:
        import psycopg

        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                server.run("SELECT 1")
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    self.process.wait()
                    pytest.fail((self.folder / "log").read_text(errors="replace")[-2000:])
                time.sleep(0.05)
            else:
                return


def postgres_binaries() -> Path | None:
    """The folder of a Postgres server's programs: pgserver's, else the newest of the system."""
    found = find_spec("pgserver")
    if found is not None and found.origin is not None:
        own = Path(found.origin).parent / "pginstall" / "bin"
        if (own / "postgres").is_file():
            return own
    systems = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[4]))
    return systems[-1].parent if systems else None
