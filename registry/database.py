"""The database of a registry: made, recognised, migrated, and opened for one transaction at a time."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import durable
from .errors import InvalidInput, NotFound
from .migrations import REVISIONS

if TYPE_CHECKING:
    import sqlalchemy as sa

    from .sql import SqlTables

FILE_NAME = "registry.db"
LOCK_NAME = "write.lock"
_SCRIPTS = Path(__file__).parent / "migrations"
_NEWER = "Install a newer efface."
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_ADVISORY_LOCK = 0x65666663


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. `where` names it for people, without a password."""

    engine: sa.Engine
    where: str
    lock: Path | None
    """The file whose lock a writer holds on SQLite; on Postgres the row of `head` does that."""

    @property
    def on_sqlite(self) -> bool:
        """Whether it is a file."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def reading(self) -> Generator[SqlTables]:
        """One consistent view."""
        from . import engines, sql

        with engines.transaction(self.engine, self.where, write=False) as connection:
            yield sql.SqlTables(connection)

    @contextmanager
    def writing(self) -> Generator[SqlTables]:
        """A transaction that is the only writer until it ends."""
        from . import engines, sql

        with (
            _held(self.lock, self.where),
            engines.transaction(self.engine, self.where, write=True) as connection,
        ):
            if not self.on_sqlite:
                connection.exec_driver_sql("SELECT seq FROM head WHERE id = 1 FOR UPDATE")
            yield sql.SqlTables(connection)


def open_file(root: Path, *, create: bool) -> Database:
    """The SQLite registry in a folder. Raises NotFound, InvalidInput (nothing is written), BrokenRegistry."""
    from . import engines

    path = root / FILE_NAME
    if not _exists(root, path):
        if not create:
            then = "Create it with create=True (`efface request open` does), or name another --registry."
            raise NotFound(f"a registry at {root}", "no such registry", then)
        with durable.disk_errors(root):
            durable.make_folder(root)
            _create_file(path)
    with durable.disk_errors(root):
        _recognise(path)
    database = Database(engines.sqlite(path), str(path), root / LOCK_NAME)
    _upgrade(database)
    return database


def open_server(url: str, *, create: bool) -> Database:
    """The registry in a Postgres database. Raises as `open_file` does."""
    from . import engines

    engine = engines.postgres(url)
    where = engine.url.set(drivername="postgresql").render_as_string(hide_password=True)
    database = Database(engine, where, None)
    try:
        _found_or_made(database, create=create)
        _upgrade(database)
    except BaseException:
        engine.dispose()
        raise
    return database


def _found_or_made(database: Database, *, create: bool) -> None:
    from . import engines

    with engines.transaction(database.engine, database.where, write=False) as connection:
        if _revision(connection) is not None:
            return
    if not create:
        then = "Create it with create=True (`efface request open` does), or name another --registry."
        raise NotFound(f"a registry in {database.where}", "no such registry", then)
    with _migrating(database) as connection:
        if _revision(connection) is None:
            migrate(connection)


def migrate(connection: sa.Connection) -> None:
    """Bring the schema to the newest revision and replay the ledger into it, inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    from . import ledger, sql

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    ledger.replay(sql.SqlTables(connection))


def _upgrade(database: Database) -> None:
    """Nothing when the schema is the newest; an older one is migrated, a newer one refused by name."""
    from . import engines

    with engines.transaction(database.engine, database.where, write=False) as connection:
        found = _revision(connection)
        if found == REVISIONS[-1]:
            connection.exec_driver_sql("SELECT seq FROM head LIMIT 1")
            return
    if found not in REVISIONS:
        expected = f"schema {REVISIONS[-1]} or older"
        raise InvalidInput(expected, f"schema {found or 'without a name'} in {database.where}", _NEWER)
    with _migrating(database) as connection:
        if _revision(connection) != REVISIONS[-1]:  # another process was faster
            _adopt(connection)
            migrate(connection)


@contextmanager
def _migrating(database: Database) -> Generator[sa.Connection]:
    """The only transaction that changes the schema."""
    from . import engines

    with (
        _held(database.lock, database.where),
        engines.transaction(database.engine, database.where, write=True) as connection,
    ):
        if not database.on_sqlite:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        yield connection


def _revision(connection: sa.Connection) -> str | None:
    """The name of the schema; None in a database without one."""
    import sqlalchemy as sa

    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" in tables:
        names = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        return str(names[0]) if len(names) == 1 else "of several names"
    if connection.dialect.name == "sqlite":
        number = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        return None if number == 0 else REVISIONS[0] if number == 1 else f"number {number}"
    return "of another program" if "event" in tables else None


def _adopt(connection: sa.Connection) -> None:
    """Registries of efface 0.1.0 carry a number: give their schema its name."""
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection)
    if context.get_current_revision() is None:
        context.stamp(_script_directory(), REVISIONS[0])


def _script_directory():
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_SCRIPTS))


def _create_file(path: Path) -> None:
    """Make an empty registry at `path`, which is whole or absent at any moment; keep one that is there."""
    from . import engines

    temporary = path.parent / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
    try:
        engine = engines.sqlite(temporary, mode="rwc")
        with engines.translated(str(path)):
            with closing(engine.raw_connection()) as connection:
                connection.execute(f"PRAGMA application_id={engines.APPLICATION_ID}")  # pyright: ignore[reportAttributeAccessIssue]
            with engines.transaction(engine, str(path), write=True) as connection:
                migrate(connection)
        if not path.exists():
            _publish(temporary, path)
        (path.parent / LOCK_NAME).touch()
    finally:
        temporary.unlink(missing_ok=True)
    durable.sync_folder(path.parent)


def _publish(temporary: Path, path: Path) -> None:
    """A hard link, unlike a rename, never replaces the file of a process that was faster."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _publish_by_rename(temporary, path)


def _publish_by_rename(temporary: Path, path: Path) -> None:
    """Where there are no hard links (FAT, some network disks): a lock keeps the slower process from replacing."""
    from filelock import FileLock

    with FileLock(path.parent / f"{durable.TEMPORARY}creation.lock"):
        if not path.exists():
            temporary.rename(path)


def _exists(root: Path, path: Path) -> bool:
    """Whether a database is there; InvalidInput when the place is taken by something else."""
    if root.exists() and not root.is_dir():
        raise InvalidInput(f"a registry folder at {root}", "a file", "Name the folder instead.")
    if path.exists():
        return True
    if root.is_dir() and any(not entry.name.startswith(durable.TEMPORARY) for entry in root.iterdir()):
        came = f"a folder with other files and no {FILE_NAME}"
        raise InvalidInput(f"a registry or an empty folder at {root}", came, "Name another folder.")
    return False


def _recognise(path: Path) -> None:
    """Raise InvalidInput unless the header of `path` is that of a registry. Only reads."""
    from . import engines

    with path.open("rb") as file:
        header = file.read(100)
    if not header.startswith(b"SQLite format 3\0"):
        raise InvalidInput(f"an SQLite database at {path}", "another file", "Choose another --registry.")
    if int.from_bytes(header[68:72]) != engines.APPLICATION_ID:
        came = "a database of another program"
        raise InvalidInput(f"an efface registry at {path}", came, "Choose another --registry.")


@contextmanager
def _held(lock: Path | None, where: str) -> Generator[None]:
    """Writers of one file wait here, in turn, instead of in SQLite's busy handler, which starves some."""
    from filelock import FileLock, Timeout

    from . import engines
    from .errors import Conflict

    if lock is None:
        yield
        return
    held = FileLock(lock, timeout=engines.BUSY_SECONDS, poll_interval=0.004)
    with durable.disk_errors(lock.parent):
        try:
            held.acquire()
        except Timeout:  # an OSError too
            expected = f"the lock on {where} within {engines.BUSY_SECONDS:.0f} s"
            raise Conflict(expected, "another process holding it", "Try again when it is done.") from None
    try:
        yield
    finally:
        held.release()
