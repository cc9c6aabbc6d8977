"""What one read of a database gives, however damaged it is: for `verify`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, cast

from . import chain
from .canon import parse
from .errors import RegistryError
from .registry import Registry
from .tables import ALL, PROJECTIONS, Row
from .types import Event, Problem

if TYPE_CHECKING:
    import sqlalchemy as sa

    from .sql import SqlTables

DAMAGE = (RegistryError, sqlite3.Error, LookupError, TypeError, ValueError, AttributeError)
"""What reading or replaying bytes that someone changed can end in."""
_OURS = f"relnamespace = current_schema()::regnamespace AND relname IN ({', '.join(map(repr, ALL))})"
_POSTGRES_CATALOG = (
    """
    SELECT relname, concat(relkind, ' ', relrowsecurity, ' ', (
      SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), collname,
          CASE WHEN attnotnull THEN 'not null' END, pg_get_expr(adbin, adrelid)), ', ' ORDER BY attnum)
      FROM pg_attribute LEFT JOIN pg_collation k ON k.oid = attcollation AND attcollation <> 100
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
      WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped))
    FROM pg_class c WHERE _OURS_
    """,
    """
    SELECT concat(relname, ' ', conname), concat(pg_get_constraintdef(k.oid, true), ' ', convalidated)
    FROM pg_constraint k JOIN pg_class c ON c.oid = conrelid WHERE contype NOT IN ('n', 't') AND _OURS_
    """,
    """
    SELECT i.relname, concat(pg_get_indexdef(i.oid, 0, true), ' ', indisvalid) FROM pg_index
    JOIN pg_class i ON i.oid = indexrelid
    WHERE indrelid IN (SELECT oid FROM pg_class WHERE _OURS_)
    """,
    """
    SELECT tgname, concat(pg_get_triggerdef(t.oid, true), ' ', tgenabled)
    FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal AND _OURS_
    """,
    """
    SELECT concat('function ', proname), concat(prosrc, ' ', prosecdef, ' ', proconfig::text, ' ', lanname)
    FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE p.oid IN (
      SELECT tgfoid FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid WHERE NOT tgisinternal AND _OURS_)
    """,
    """
    SELECT concat('rule ', rulename), pg_get_ruledef(r.oid, true)
    FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class WHERE _OURS_
    """,
)  # fmt: skip


@dataclass(slots=True)
class Snapshot:
    """Parts that could not be read stay empty and are in `problems`."""

    where: str
    events: list[Event] = field(default_factory=list[Event])
    tables: dict[str, Mapping[str, Row]] = field(default_factory=dict[str, Mapping[str, Row]])
    head: Row | None = None
    checkpoints: list[Row] = field(default_factory=list[Row])
    problems: list[Problem] = field(default_factory=list[Problem])
    readable: bool = False
    """Whether the events could be read at all."""


def take(reg: Registry) -> Snapshot:
    """Read everything in one transaction."""
    found = Snapshot(reg.database.where)
    try:
        with reg.database.reading() as db:
            _lenient(db.connection)
            for part in (_structure, _schema, _events, _tables, _rest):
                _guarded(part, db, found)
    except RegistryError as error:
        found.problems.append(_unreadable(found, error))
    return found


def said(error: Exception) -> str:
    """What an error found."""
    return error.came if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"


def _guarded(part: Callable[[SqlTables, Snapshot], None], db: SqlTables, found: Snapshot) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        part(db, found)
    except (*DAMAGE, SQLAlchemyError) as error:
        found.problems.append(_unreadable(found, error))


def _structure(db: SqlTables, found: Snapshot) -> None:
    if db.connection.dialect.name != "sqlite":
        return
    for row in db.connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if row[0] != "ok":
            found.problems.append(Problem("database", found.where, "a sound database", str(row[0])))


def _schema(db: SqlTables, found: Snapshot) -> None:
    """A dropped trigger or index is how one would start to rewrite history."""
    read = _sqlite_schema if db.connection.dialect.name == "sqlite" else _postgres_schema
    expected, actual = read(db.connection)
    for name in sorted(expected.keys() | actual.keys()):
        if expected.get(name) != actual.get(name):
            values = (expected.get(name) or "nothing", actual.get(name) or "nothing")
            found.problems.append(Problem("schema", name, *values))


def _events(db: SqlTables, found: Snapshot) -> None:
    plain = " NOT INDEXED" if db.connection.dialect.name == "sqlite" else ""
    query = f"SELECT {', '.join(ALL['event'].columns)} FROM event{plain} ORDER BY seq"  # noqa: S608 - our names
    found.events, problems = chain.check(map(tuple, db.connection.exec_driver_sql(query).fetchall()))
    found.problems += problems
    found.readable = True


def _tables(db: SqlTables, found: Snapshot) -> None:
    for table in PROJECTIONS:
        found.tables[table.name] = db.dump(table.name)


def _rest(db: SqlTables, found: Snapshot) -> None:
    found.head = next(iter(db.dump("head").values()), None)
    found.checkpoints = sorted(db.dump("checkpoint").values(), key=lambda row: row["tree_size"])


def _sqlite_schema(connection: sa.Connection) -> tuple[dict[str, str], dict[str, str]]:
    return dict(_fresh_schema()), _statements(connection)


@cache
def _fresh_schema() -> tuple[tuple[str, str], ...]:
    """What the migrations make of an empty database: the same for as long as this version runs."""
    import sqlalchemy as sa

    from . import database

    fresh = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    try:
        with fresh.begin() as empty:
            database.migrate(empty)
            return tuple(_statements(empty).items())
    finally:
        fresh.dispose()


def _statements(connection: sa.Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master")
    return {str(row[0]): str(row[1]) for row in rows}


def _postgres_schema(connection: sa.Connection) -> tuple[dict[str, str], dict[str, str]]:
    return shipped_schema(), describe_postgres(connection)


def shipped_schema() -> dict[str, str]:
    """What the migrations make of an empty Postgres database, as `describe_postgres` says it: a test compares."""
    from .migrations import POSTGRES_SCHEMA

    lines = POSTGRES_SCHEMA.read_text(encoding="utf-8").splitlines()
    return dict(cast("tuple[str, str]", parse(line)) for line in lines)


def describe_postgres(connection: sa.Connection) -> dict[str, str]:
    """Tables with their columns, constraints, indexes, rules, triggers and functions, under their names, in words
    that are the same on every supported server and in every schema."""
    described: dict[str, str] = {}
    for query in _POSTGRES_CATALOG:
        rows = connection.exec_driver_sql(query.replace("_OURS_", _OURS))
        described |= {str(row[0]): str(row[1]) for row in rows}
    return described


def _lenient(connection: sa.Connection) -> None:
    """A flipped byte may be no UTF-8; reading it must not stop at that row."""
    if connection.dialect.name == "sqlite":
        driver = cast(sqlite3.Connection, connection.connection.driver_connection)
        driver.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")


def _unreadable(found: Snapshot, error: Exception) -> Problem:
    return Problem("database", found.where, "a readable database", said(error))
