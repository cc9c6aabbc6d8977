"""Rows of a source, checked one by one, all of them or a uniform draw in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeVar

from ..errors import DataError
from .files import Bad, Record
from .formats import parse_row
from .rows import Row
from .source import Source, parse_source

MAX_PROBLEMS = 100  # of one source: a source of millions of bad rows must not fill memory or screen
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drawn:
    """The ``rows`` kept of ``source`` (as it was written), in its order, and how many it has (``seen``)."""

    source: str
    rows: tuple[Row, ...]
    seen: int


def read_rows(source: Path | str, *, answers_required: bool, name: str | None = None) -> tuple[Row, ...]:
    """Every row of a file, folder or dataset. Rows without ``id`` are named ``<name>-<line>``.

    ``answers_required`` for forget rows. ``name`` is the file's stem, or the dataset's and config's name.
    Raises :class:`DataError` with every bad row at once (the first hundred): source, line or row, what was
    expected, what came. The message never repeats a row's text (it may be what must be forgotten).
    """
    return draw_rows(parse_source(source), forget=answers_required, name=name).rows


def draw_rows(
    source: Source, *, forget: bool, name: str | None = None, limit: int | None = None, seed: int = 0
) -> Drawn:
    """At most ``limit`` rows of ``source``, drawn by `sample`; all of them without a limit.

    Every row is read and checked, ``limit`` are held. Raises :class:`DataError` as `read_rows` does.
    """
    problems = _Problems()
    checked = _checked(source, name or source.name, forget, problems)
    kept, seen = sample(checked, limit, seed)
    for problem in _duplicates(source.text, kept):
        problems.add(problem)
    if not kept and not problems.found:
        problems.add(
            f"{source.text}: no rows: expected JSON lines such as " + '{"prompt": "…", "completion": "…"}'
        )
    problems.stop(source.text)
    return Drawn(source.text, tuple(kept), seen)


def sample(items: Iterable[T], limit: int | None, seed: int) -> tuple[list[T], int]:
    """A uniform draw of ``limit`` items without replacement, in their order, and how many there were.

    Reservoir sampling (Algorithm R, Vitter 1985) over ``random.Random(seed)``: one pass, ``limit`` items held,
    the same for the same items, limit and seed in every process.
    """
    if limit is None:
        every = list(items)
        return every, len(every)
    random = Random(seed)  # noqa: S311 - a draw of rows, not a secret
    kept: list[tuple[int, T]] = []
    seen = 0
    for seen, item in enumerate(items, 1):
        place = seen - 1 if seen <= limit else random.randrange(seen)
        if place < limit:
            kept[place : place + 1] = [(seen, item)]
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])], seen


class _Problems:
    """The first `MAX_PROBLEMS` problems and the number of all."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.found = 0

    def add(self, problem: str) -> None:
        self.found += 1
        if len(self.shown) < MAX_PROBLEMS:
            self.shown.append(problem)

    def stop(self, source: str) -> None:
        """Raise what was found, if anything was."""
        more = self.found - len(self.shown)
        rest = [f"{source}: {more} more problems of this kind"] if more else []
        if self.shown:
            raise DataError([*self.shown, *rest])


def _checked(source: Source, name: str, forget: bool, problems: _Problems) -> Iterator[Row]:
    records: Iterator[Record] = source.records()
    for number, data in records:
        row, wrong = (
            (None, [data.what])
            if isinstance(data, Bad)
            else parse_row(data, f"{name}-{number}", forget=forget)
        )
        for what in wrong:
            problems.add(f"{source.text}:{number}: {what}")
        if row is not None:
            yield row


def _duplicates(source: str, rows: Iterable[Row]) -> Iterator[str]:
    seen: set[str] = set()
    asked: dict[tuple[str, str | None], str] = {}
    for row in rows:
        if row.id in seen:
            yield f"{source}: id {row.id!r} is used twice: expected each id once"
        key = (str(row.prompt), row.completion)
        if key in asked:
            yield f"{source}: rows {asked[key]!r} and {row.id!r} are the same: expected each row once"
        seen.add(row.id)
        asked[key] = row.id
