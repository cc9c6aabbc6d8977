"""The SQLite file: how it is created, recognised, migrated and opened.

One connection per transaction: nothing is shared between threads or across a fork, and nothing is left open.
`journal_mode=DELETE` because WAL before SQLite 3.51.3 has a corruption race and keeps deleted pages.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from . import durable
from .errors import BrokenRegistry, Conflict, InvalidInput, RegistryError

FILE_NAME = "registry.db"
APPLICATION_ID = 0x65666663  # "effc", in the file's header
BUSY_SECONDS = 30.0
_MIGRATIONS = Path(__file__).parent / "migrations"
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
_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


def create(path: Path) -> None:
    """Make an empty registry at `path`, which is whole or absent at any moment; keep one that is there."""
    temporary = path.parent / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            migrate(connection)
        if not path.exists():
            _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    durable.sync_folder(path.parent)


def _publish(temporary: Path, path: Path) -> None:
    """A hard link, unlike a rename, never replaces the file of a process that was faster."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return


def recognise(path: Path) -> None:
    """Raise InvalidInput unless the header of `path` is that of a registry. Only reads."""
    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(b"SQLite format 3\0"):
        raise InvalidInput(f"an SQLite database at {path}", "another file", "Choose another --registry.")
    if int.from_bytes(header[68:72]) != APPLICATION_ID:
        came = "a database of another program"
        raise InvalidInput(f"an efface registry at {path}", came, "Choose another --registry.")


def upgrade(path: Path) -> None:
    """Apply the migrations that the file lacks. Raises BrokenRegistry or, for a newer file, InvalidInput."""
    with translated(path), closing(connect(path)) as connection:
        version = _version(connection)
        if version > len(migrations()):
            came = f"schema {version} in {path}"
            raise InvalidInput(f"schema {len(migrations())} or older", came, "Install a newer efface.")
        if version < len(migrations()):
            migrate(connection)
        connection.execute("SELECT 1 FROM event LIMIT 1")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database to the newest schema, one transaction per migration."""
    for number, file in enumerate(migrations(), start=1):
        if number > _version(connection):
            script = file.read_text(encoding="utf-8")
            connection.executescript(f"BEGIN EXCLUSIVE;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")


def migrations() -> tuple[Path, ...]:
    """The migration files in order; the n-th one makes schema version n."""
    return tuple(sorted(_MIGRATIONS.glob("[0-9][0-9][0-9][0-9]_*.sql")))


def connect(path: Path) -> sqlite3.Connection:
    """A connection to an existing database, with our pragmas; it never creates the file."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    connection.row_factory = sqlite3.Row
    return connection


@contextmanager
def transaction(path: Path, begin: str) -> Generator[sqlite3.Connection]:
    """A transaction (`begin` is BEGIN or BEGIN IMMEDIATE), committed at the end, undone by an exception."""
    with translated(path), closing(connect(path)) as connection:
        connection.execute(begin)
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn sqlite3's errors into ours. ProgrammingError passes: that is a bug here, not a damaged file."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _translation(error, path) from error
    except UnicodeDecodeError as error:  # sqlite3 quoting damaged text in its own message
        came = "text that is not UTF-8"
        raise BrokenRegistry(f"a sound database at {path}", came, _RESTORE) from error


def _translation(error: sqlite3.Error, path: Path) -> RegistryError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in _BUSY:
        expected = f"the lock on {path} within {BUSY_SECONDS:.0f} s"
        return Conflict(expected, "another process holding it", "Try again when it is done.")
    if code in _DISK:
        return RegistryError(f"to read and write {path}", str(error), "Check free space and permissions.")
    return BrokenRegistry(f"a sound database at {path}", str(error), _RESTORE)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
