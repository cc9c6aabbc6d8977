"""The registry's tables as data, the few operations that the rest needs of them, and rows kept in memory.

Everything above works on `Tables`. Behind it is a database (`sql.SqlTables`) or plain dicts (`MemoryTables`, in
which `verify` replays the ledger), so one fold of events serves both. Columns hold whole numbers or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import BrokenRegistry

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its columns in order, those of whole numbers, and how many leading ones are the key."""

    name: str
    columns: tuple[str, ...]
    numbers: frozenset[str] = frozenset()
    keys: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        """The columns that identify a row."""
        return self.columns[: self.keys]


def _table(name: str, columns: str, numbers: str = "", keys: int = 1) -> Table:
    return Table(name, tuple(columns.split()), frozenset(numbers.split()), keys)


EVENT = _table("event", "seq v at kind actor subject_kind subject_id body prev_hash hash", "seq v")
HEAD = _table("head", "id seq hash", "id seq")
"""One row: the newest event. Writers lock it; `verify` compares it, so cutting off the newest events shows."""
CHECKPOINT = _table("checkpoint", "tree_size root at frontier envelope note", "tree_size")
"""Signed Merkle roots. They are made of events, but signatures cannot be replayed, so this is no projection."""

PROJECTIONS: tuple[Table, ...] = (
    _table("signing_key", "key_id name public roles valid_from valid_until revoked_at revoked_reason"),
    _table("base", "digest quantization", keys=2),
    _table("blob", "digest size media_type uses", "size uses"),
    _table(
        "forget_request",
        "id seq basis state n_items commitment subject_ref received_at due_at extended_to claim_level"
        " shredding_at shredded_at updated_at",
        "seq n_items",
    ),
    _table(
        "adapter", "digest seq kind base quantization trained_on error_bound manifest state sealed_at", "seq"
    ),
    _table("adapter_request", "adapter request", keys=2),
    _table("composition", "digest base quantization render"),
    _table("composition_part", "composition adapter weight", keys=2),
    _table(
        "audit",
        "digest seq composition precision suite seed verdict report environment at requests gates",
        "seq seed",
    ),
    _table("evidence", "digest seq request level record at", "seq"),
    _table("attestation", "digest seq about_kind about_id predicate keys at", "seq"),
    _table("channel", "channel versions active two_person gates", "versions active two_person"),
    _table(
        "release",
        "channel version composition rendered state audit reason created_by created_at approved_by activated_at",
        "version",
        keys=2,
    ),
)
"""In an order in which rows can be inserted; the reverse is one in which they can be deleted."""

ALL: Mapping[str, Table] = {table.name: table for table in (EVENT, HEAD, CHECKPOINT, *PROJECTIONS)}


class Tables(Protocol):
    """What the registry asks of its rows. Table and column names are ours, values are never part of a query."""

    def get(self, table: str, *key: object) -> Row | None:
        """The row with this key, or None: the caller's normal case."""
        ...

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
        """Rows whose columns equal `where` (a tuple or set: any of them).

        Sorted by the column `order` (the key by default), those beyond `after` only, at most `limit`.
        """
        ...

    def starting(self, table: str, prefix: str, limit: int) -> list[Row]:
        """Rows whose (text) key starts with `prefix`, sorted, at most `limit`."""
        ...

    def count(self, table: str, **where: object) -> int:
        """How many rows `find` would return."""
        ...

    def insert(self, table: str, **row: object) -> None:
        """Add a row. The rest of its columns are null."""
        ...

    def fill(self, table: str, rows: Iterable[Row]) -> None:
        """Add rows with all their columns."""
        ...

    def put(self, table: str, **row: object) -> None:
        """Add a row, or leave the one with the same key as it is."""
        ...

    def update(self, table: str, key: tuple[object, ...], **changes: object) -> None:
        """Change columns of the row with this key."""
        ...

    def clear(self, table: str) -> None:
        """Delete every row."""
        ...


_INDEXED: Mapping[str, tuple[str, ...]] = {
    "adapter_request": ("request", "adapter"),
    "composition_part": ("composition",),
    "evidence": ("request",),
    "release": ("state",),
}
"""Columns by which a fold looks rows up."""


class MemoryTables:
    """The projections as dicts, for replaying the ledger beside the database; only what a fold needs is fast."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[tuple[object, ...], dict[str, Any]]] = {name: {} for name in ALL}
        self._index: dict[tuple[str, str], dict[object, dict[tuple[object, ...], dict[str, Any]]]] = {
            (name, column): {} for name, columns in _INDEXED.items() for column in columns
        }

    def get(self, table: str, *key: object) -> Row | None:
        """See `Tables`."""
        return self._rows[table].get(key)

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
        """See `Tables`; reads every row, unless one of `_INDEXED` is asked for."""
        column = order or ALL[table].columns[0]
        rows = [row for row in self._among(table, where) if _matches(row, where)]
        rows.sort(key=lambda row: (row[column], *(row[name] for name in ALL[table].key)), reverse=descending)
        if after is not None:
            rows = [row for row in rows if (row[column] < after if descending else row[column] > after)]
        return list(rows if limit is None else rows[:limit])

    def starting(self, table: str, prefix: str, limit: int) -> list[Row]:
        """See `Tables`."""
        key = ALL[table].columns[0]
        return [row for row in self.find(table) if str(row[key]).startswith(prefix)][:limit]

    def count(self, table: str, **where: object) -> int:
        """See `Tables`."""
        return sum(_matches(row, where) for row in self._rows[table].values())

    def insert(self, table: str, **row: object) -> None:
        """See `Tables`. Raises BrokenRegistry for a key that is there."""
        key = tuple(row[name] for name in ALL[table].key)
        if key in self._rows[table]:
            raise BrokenRegistry(f"a new row of {table}", "one that is there already", "Run `efface verify`.")
        made = self._rows[table][key] = {**dict.fromkeys(ALL[table].columns), **row}
        for column in _INDEXED.get(table, ()):
            self._index[table, column].setdefault(made[column], {})[key] = made

    def fill(self, table: str, rows: Iterable[Row]) -> None:
        """See `Tables`."""
        for row in rows:
            self.insert(table, **row)

    def put(self, table: str, **row: object) -> None:
        """See `Tables`."""
        if tuple(row[name] for name in ALL[table].key) not in self._rows[table]:
            self.insert(table, **row)

    def update(self, table: str, key: tuple[object, ...], **changes: object) -> None:
        """See `Tables`."""
        row = self._rows[table][key]
        for column in _INDEXED.get(table, ()):
            if column in changes:
                del self._index[table, column][row[column]][key]
                self._index[table, column].setdefault(changes[column], {})[key] = row
        row.update(changes)

    def clear(self, table: str) -> None:
        """See `Tables`."""
        self._rows[table].clear()
        for column in _INDEXED.get(table, ()):
            self._index[table, column].clear()

    def _among(self, table: str, where: Mapping[str, object]) -> Iterable[dict[str, Any]]:
        """The rows that can match."""
        for column in _INDEXED.get(table, ()):
            value = where.get(column)
            if value is not None and not isinstance(value, (tuple, frozenset, set)):
                return self._index[table, column].get(value, {}).values()
        return self._rows[table].values()

    def dump(self, table: str) -> dict[str, Row]:
        """Every row under its key as text, as `sql.SqlTables.dump` gives them."""
        return {", ".join(map(str, key)): row for key, row in self._rows[table].items()}


def need(tables: Tables, table: str, *key: object) -> Row:
    """The row with this key. Raises BrokenRegistry: an event refers to something that no event before it made."""
    if (row := tables.get(table, *key)) is None:
        expected = f"an earlier event that makes the {table} it names"
        raise BrokenRegistry(expected, "none", "Run `efface verify`.")
    return row


def chunks(values: Iterator[Any] | list[Any], size: int = 500) -> Iterator[tuple[Any, ...]]:
    """The values in tuples of at most `size`: databases limit the number of parameters of a query."""
    found = list(values)
    for start in range(0, len(found), size):
        yield tuple(found[start : start + size])


def _matches(row: Row, where: Mapping[str, object]) -> bool:
    return all(
        row[name] in value if isinstance(value, (tuple, frozenset, set)) else row[name] == value
        for name, value in where.items()
    )
