"""Connections to the database of a registry: SQLite in a file, or Postgres.

SQLite: one connection per transaction, so nothing is shared between threads or across a fork, and nothing is left
open. `journal_mode=DELETE` because WAL before SQLite 3.51.3 has a corruption race and keeps deleted pages.
Postgres: a small pool, guarded against forks; reading is REPEATABLE READ, and whoever writes holds the one row
of `head`, the end of the hash chain, until its transaction ends.
"""

from __future__ import annotations

import os
import sqlite3
import warnings
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, pool
from sqlalchemy.exc import ArgumentError, DBAPIError

from .errors import BrokenRegistry, Conflict, InvalidInput, RegistryError

APPLICATION_ID = 0x65666663  # "effc", in the header of an SQLite file
BUSY_SECONDS = 30.0
_PRAGMAS = (
    "PRAGMA journal_mode=DELETE",
    "PRAGMA synchronous=EXTRA",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)
_RESTORE = "Run `efface verify --deep`, or restore a backup."
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DISK = {
    sqlite3.SQLITE_FULL: "a full disk",
    sqlite3.SQLITE_READONLY: "a read-only file or disk",
    sqlite3.SQLITE_IOERR: "an input/output error",
    sqlite3.SQLITE_CANTOPEN: "a file that cannot be opened",
    sqlite3.SQLITE_PERM: "no permission",
}
_PG_BUSY = ("40", "55P03", "57014")
"""Serialization failures and deadlocks; a lock not to be had; a statement that ran out of time."""
_PG_DISK = ("53", "25006", "42501", "58")
"""Out of disk, memory or connections; a read-only server; no permission; errors of the server's own disk."""
_PG_UNREACHABLE = ("08", "28", "3D", "57P")
_PG_READING = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_SECRET = ("password", "sslpassword")
"""Parameters of libpq that must not stay in a URL, because errors and logs name registries by theirs."""
_REASONS = {
    "password authentication failed": "another password or user",
    "no password supplied": "no password",
    "does not exist": "no such database or user",
    "refused": "no server that listens",
    "No such file": "no server that listens",
    "timeout": "no answer in time",
    "could not translate host": "an unknown host",
    "resolve host": "an unknown host",
    "too many": "too many connections",
    "SSL": "no agreement on TLS",
    "starting up": "a server that is starting",
    "shutting down": "a server that is shutting down",
    "closed the connection": "a server that hung up",
}
"""libpq says in words alone why it did not connect, and its words may quote what it was given."""


def sqlite(path: Path, *, mode: str = "rw") -> sa.Engine:
    """An engine for an existing file; it never creates one unless `mode` is `rwc`."""
    uri = f"{path.absolute().as_uri()}?mode={mode}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=pool.NullPool, hide_parameters=True)
    event.listen(engine, "begin", _begin)
    return engine


def postgres(url: str) -> sa.Engine:
    """An engine for `postgresql://…`. Raises InvalidInput for a URL that is none; connects at the first use."""
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        secrets = {name: parsed.query[name] for name in _SECRET if name in parsed.query}
        engine = sa.create_engine(
            parsed.difference_update_query(_SECRET),
            connect_args=secrets,
            pool_pre_ping=True,
            pool_size=5,
            hide_parameters=True,
        )
    except (ArgumentError, ImportError, ValueError) as error:
        missing = isinstance(error, ImportError)
        came = "no psycopg" if missing else "another URL"
        then = 'Install it: pip install "efface[postgres]".' if missing else "Check its spelling."
        raise InvalidInput("postgresql://user@host/database and its driver", came, then) from None
    os.register_at_fork(after_in_child=partial(_forget_connections, weakref.ref(engine)))
    return engine


@contextmanager
def transaction(engine: sa.Engine, where: str, *, write: bool) -> Generator[sa.Connection]:
    """A transaction, committed at the end, undone by an exception; database errors become ours."""
    with translated(where), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection = connection.execution_options(efface_begin="IMMEDIATE" if write else "DEFERRED")
        with connection.begin():
            if engine.dialect.name == "postgresql":
                # Not by SQLAlchemy's options: putting those back overrides a server's own read-only default.
                connection.exec_driver_sql(_lock_timeout() if write else _PG_READING)
            yield connection


@contextmanager
def translated(where: str) -> Generator[None]:
    """Turn the drivers' errors into ours. ProgrammingError of sqlite3 passes: that is a bug here, not damage."""
    try:
        yield
    except DBAPIError as error:
        original = error.orig
        if isinstance(original, sqlite3.ProgrammingError):
            raise
        if isinstance(original, sqlite3.Error):
            raise _of_sqlite(original, where) from error
        raise _of_postgres(original, where) from error
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _of_sqlite(error, where) from error
    except UnicodeDecodeError as error:  # sqlite3 quoting damaged text in its own message
        raise BrokenRegistry(f"a sound database at {where}", "text that is not UTF-8", _RESTORE) from error


def _lock_timeout() -> str:
    return f"SET LOCAL lock_timeout = {round(BUSY_SECONDS * 1000)}"


def _of_sqlite(error: sqlite3.Error, where: str) -> RegistryError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in _BUSY:
        expected = f"the lock on {where} within {BUSY_SECONDS:.0f} s"
        return Conflict(expected, "another process holding it", "Try again when it is done.")
    if code in _DISK:
        came = f"{_DISK[code]} ({error})"
        return RegistryError(f"to read and write {where}", came, "Check free space and permissions.")
    return BrokenRegistry(f"a sound database at {where}", str(error), _RESTORE)


def _of_postgres(error: BaseException | None, where: str) -> RegistryError:
    """By SQLSTATE. Only the primary message is repeated: the details quote values."""
    state = getattr(error, "sqlstate", None) or ""
    said = getattr(getattr(error, "diag", None), "message_primary", None) or _reason(error)
    if state.startswith(_PG_BUSY):
        return Conflict(f"the lock on {where}", said, "Try again when the other writer is done.")
    if not state or state.startswith(_PG_UNREACHABLE):
        return RegistryError(
            f"to reach {where}", said, "Check that the server runs, the name and the password."
        )
    if state.startswith(_PG_DISK):
        return RegistryError(f"to read and write {where}", said, "Check the server's disk and permissions.")
    return BrokenRegistry(f"a sound database at {where}", said, _RESTORE)


def _reason(error: BaseException | None) -> str:
    text = str(error)
    return next((came for words, came in _REASONS.items() if words in text), type(error).__name__)


def _begin(connection: sa.Connection) -> None:
    mode = connection.get_execution_options().get("efface_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _forget_connections(reference: weakref.ref[sa.Engine]) -> None:
    """A child must not speak on its parent's sockets, nor close them; a ping at checkout would."""
    if (engine := reference()) is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the driver: they stay open, in the parent
            engine.dispose(close=False)
