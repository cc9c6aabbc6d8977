"""`Tables` on a database, with SQLAlchemy Core. Imported when a registry is opened, not before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from .tables import ALL, Row, Table, chunks

METADATA = sa.MetaData()


def _described(table: Table) -> sa.Table:
    """Enough of a table to write queries with; the migrations create it."""
    columns = [
        sa.Column(
            name, sa.BigInteger() if name in table.numbers else sa.Text(), primary_key=name in table.key
        )
        for name in table.columns
    ]
    return sa.Table(table.name, METADATA, *columns)


TABLES = {name: _described(table) for name, table in ALL.items()}


class SqlTables:
    """The rows that one connection sees, inside its transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def get(self, table: str, *key: object) -> Row | None:
        """See `tables.Tables`."""
        row = self.connection.execute(sa.select(TABLES[table]).where(*_is(table, key))).mappings().first()
        return None if row is None else dict(row)

    def find(
        self,
        table: str,
        *,
        order: str | None = None,
        descending: bool = False,
        after: object | None = None,
        limit: int | None = None,
        **where: object,
    ) -> list[Row]:
        """See `tables.Tables`."""
        query = sa.select(TABLES[table]).where(*_equal(table, where))
        names = [order] if order else list(ALL[table].key)
        columns = [TABLES[table].c[name] for name in names]
        if after is not None:
            query = query.where(columns[0] < after if descending else columns[0] > after)
        query = query.order_by(*(column.desc() if descending else column for column in columns))
        if limit is not None:
            query = query.limit(limit)
        return [dict(row) for row in self.connection.execute(query).mappings()]

    def starting(self, table: str, prefix: str, limit: int) -> list[Row]:
        """See `tables.Tables`. By range, so that the key's index serves it whatever the collation of LIKE."""
        key = TABLES[table].c[ALL[table].columns[0]]
        query = sa.select(TABLES[table]).where(key >= prefix, key < prefix + "\x7f").order_by(key)
        return [dict(row) for row in self.connection.execute(query.limit(limit)).mappings()]

    def count(self, table: str, **where: object) -> int:
        """See `tables.Tables`."""
        query = sa.select(sa.func.count()).select_from(TABLES[table]).where(*_equal(table, where))
        return int(self.connection.execute(query).scalar_one())

    def insert(self, table: str, **row: object) -> None:
        """See `tables.Tables`."""
        self.connection.execute(TABLES[table].insert(), row)

    def fill(self, table: str, rows: Iterable[Row]) -> None:
        """See `tables.Tables`."""
        for some in chunks(iter(rows), 10_000):
            self.connection.execute(TABLES[table].insert(), list(some))

    def put(self, table: str, **row: object) -> None:
        """See `tables.Tables`."""
        if self.get(table, *(row[name] for name in ALL[table].key)) is None:
            self.insert(table, **row)

    def update(self, table: str, key: tuple[object, ...], **changes: object) -> None:
        """See `tables.Tables`."""
        self.connection.execute(TABLES[table].update().where(*_is(table, key)).values(changes))

    def clear(self, table: str) -> None:
        """See `tables.Tables`."""
        self.connection.execute(TABLES[table].delete())

    def events(self, after: int = 0) -> sa.CursorResult[Any]:
        """The rows of the ledger beyond `after`, in order, as tuples, fetched as they are read."""
        table = TABLES["event"]
        query = sa.select(table).where(table.c.seq > after).order_by(table.c.seq)
        return self.connection.execute(query.execution_options(yield_per=1000))

    def dump(self, table: str) -> dict[str, Row]:
        """Every row under its key as text, read without an index: a damaged one must not hide a row."""
        names, count = ALL[table].columns, ALL[table].keys
        plain = " NOT INDEXED" if self.connection.dialect.name == "sqlite" else ""
        query = f"SELECT {', '.join(names)} FROM {table}{plain}"  # noqa: S608 - our own names
        return {
            ", ".join(str(cell) for cell in row[:count]): dict(zip(names, row, strict=True))
            for row in self.connection.exec_driver_sql(query).fetchall()
        }


def _is(table: str, key: tuple[object, ...]) -> list[sa.ColumnElement[bool]]:
    return [TABLES[table].c[name] == value for name, value in zip(ALL[table].key, key, strict=True)]


def _equal(table: str, where: dict[str, object]) -> list[sa.ColumnElement[bool]]:
    columns = TABLES[table].c
    return [
        columns[name].in_(list(value))  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, (tuple, frozenset, set))
        else columns[name] == value
        for name, value in where.items()
    ]
