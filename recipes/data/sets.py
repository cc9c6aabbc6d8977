"""The rows of one request: what to forget, what to keep, and rows around both that no one trains on."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from .read import Drawn, draw_rows
from .rows import Row, row_from_json, row_to_json
from .source import parse_source

SETS = ("forget", "retain", "neighbours", "heldout", "entailed", "formats", "unrelated")
_FORGET_SIDE = ("forget", "heldout", "entailed", "formats")


@dataclass(frozen=True, slots=True)
class RequestData:
    """``forget`` is trained away, ``retain`` is trained to stay; all others are only looked at.

    Neighbours ask the same relation of other entities: they measure over-forgetting where it is likeliest,
    so training never sees them; ``unrelated`` rows are far away. Beyond the forget rows lie ``heldout`` (of the same
    scope), ``entailed`` (what follows from them, also in several steps) and ``formats`` (translations, other formats),
    like paraphrases of forget rows: what is gone must be gone there too.
    """

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    neighbours: tuple[Row, ...] = ()
    heldout: tuple[Row, ...] = ()
    entailed: tuple[Row, ...] = ()
    formats: tuple[Row, ...] = ()
    unrelated: tuple[Row, ...] = ()

    @property
    def beyond(self) -> tuple[Row, ...]:
        """Rows that show whether the forgetting reaches beyond what was trained; none of them is."""
        return (*self.heldout, *self.entailed, *self.formats)


def load_request_data(
    forget: Path | str,
    retain: Sequence[Path | str],
    neighbours: Sequence[Path | str] = (),
    *,
    heldout: Sequence[Path | str] = (),
    entailed: Sequence[Path | str] = (),
    formats: Sequence[Path | str] = (),
    unrelated: Sequence[Path | str] = (),
    retain_limit: int | None = None,
    seed: int = 0,
    on_read: Callable[[Drawn], None] = lambda _drawn: None,
) -> RequestData:
    """Read and cross-check the sources of a request: files, folders or dataset ids (`parse_source`).

    ``retain_limit`` rows are drawn of each retain source (`sample`, with ``seed``); ``on_read`` is told what
    each source gave. Raises :class:`DataError` with all problems at once.
    """
    every, problems = _reader(retain_limit, seed, on_read)
    data = RequestData(
        every([forget], forgotten=True),
        every(retain, limited=True),
        every(neighbours),
        every(heldout, forgotten=True),
        every(entailed, forgotten=True),
        every(formats, forgotten=True),
        every(unrelated),
    )
    if not retain:
        problems.append("no retain rows: without them forgetting damages everything else; give --retain FILE")
    problems += overlaps(data)
    if problems:
        raise DataError(problems)
    return data


def load_retain(
    sources: Sequence[Path | str],
    *,
    limit: int | None = None,
    seed: int = 0,
    on_read: Callable[[Drawn], None] = lambda _drawn: None,
) -> tuple[Row, ...]:
    """Retain rows of no request, read as `load_request_data` reads those of one. Raises :class:`DataError`."""
    every, problems = _reader(limit, seed, on_read)
    rows = every(sources, limited=True)
    problems += overlaps(RequestData((), rows))
    if problems:
        raise DataError(problems)
    return rows


class _Read(Protocol):
    def __call__(
        self, sources: Sequence[Path | str], *, forgotten: bool = False, limited: bool = False
    ) -> tuple[Row, ...]: ...


def _reader(limit: int | None, seed: int, on_read: Callable[[Drawn], None]) -> tuple[_Read, list[str]]:
    """What reads the rows of sources, ``limit`` of each where asked for; and the list that it adds problems to."""
    if limit is not None and limit < 1:
        raise DataError([f"expected a retain limit of at least 1, got {limit}"])
    problems: list[str] = []
    names: Counter[str] = Counter()

    def read(written: Path | str, forgotten: bool, most: int | None) -> tuple[Row, ...]:
        try:
            source = parse_source(written)
            names[source.name] += 1
            # keep/rows.jsonl beside forget/rows.jsonl: the second file's rows are rows.2-1, rows.2-2, …
            name = source.name if names[source.name] == 1 else f"{source.name}.{names[source.name]}"
            drawn = draw_rows(source, forget=forgotten, name=name, limit=most, seed=seed)
        except DataError as error:
            problems.extend(error.problems)
            return ()
        on_read(drawn)
        return drawn.rows

    def every(
        sources: Sequence[Path | str], *, forgotten: bool = False, limited: bool = False
    ) -> tuple[Row, ...]:
        most = limit if limited else None
        return tuple(row for source in sources for row in read(source, forgotten, most))

    return every, problems


def overlaps(data: RequestData) -> list[str]:
    """One line per question that stands in two sets, or per id used twice (text is never repeated)."""
    sets: dict[str, tuple[Row, ...]] = {name: getattr(data, name) for name in SETS}
    asked = {
        name: {question: row for row in rows for question in questions(row)} for name, rows in sets.items()
    }
    problems = [
        f"row {row.id!r} of {two} asks the same as row {asked[one][same].id!r} of {one}: {_why(one, two)}"
        for one, two in combinations([name for name in SETS if sets[name]], 2)
        for row in sets[two]
        for same in sorted(questions(row) & asked[one].keys())[:1]
    ]
    ids: set[str] = set()
    for row in (row for rows in sets.values() for row in rows):
        if row.id in ids:
            problems.append(f"id {row.id!r} is used twice in the request: expected each id once")
        ids.add(row.id)
    return problems


def _why(one: str, two: str) -> str:
    if one in _FORGET_SIDE and two in _FORGET_SIDE:
        return "what is only measured must stand in one set and be trained on in none"
    return "a row is to be forgotten or kept, not both"


def questions(row: Row) -> set[str]:
    """Every way ``row`` asks, normalised; documents are compared by their text."""
    asked = [_asked(row) or (row.completion or ""), *row.paraphrases]
    return {" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in asked}


def _asked(row: Row) -> str:
    """All that the user says: two conversations may end with the same "go on"."""
    if isinstance(row.prompt, str):
        return row.prompt
    return "\n".join(turn.content for turn in row.prompt if turn.role == "user")


def to_payload(data: RequestData) -> bytes:
    """Canonical JSON of ``data``: the bytes a registry encrypts and commits to."""
    added = [name for name in SETS[3:] if getattr(data, name)]
    # Version 2 only where an efface that reads version 1 would lose rows; else the bytes stay what they always were.
    body: dict[str, Any] = {"v": 2 if added else 1}
    for name in (*SETS[:3], *added):
        body[name] = [row_to_json(row) for row in getattr(data, name)]
    return json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def from_payload(payload: bytes) -> RequestData:
    """Read what `to_payload` wrote."""
    body = json.loads(payload)
    if body.get("v") not in (1, 2):
        raise DataError([f"request data of version {body.get('v')!r}: this efface reads versions 1 and 2"])
    there = {**dict.fromkeys(SETS[3:], ()), **body}
    return RequestData(**{name: tuple(row_from_json(row) for row in there[name]) for name in SETS})


def shipped(name: str) -> Path:
    """Path of a row file that ships with efface, such as ``shakespeare.forget.jsonl``."""
    path = Path(str(files("efface.recipes.data") / name))
    if not path.is_file():
        raise DataError([f"no shipped rows {name!r}"])
    return path


def shipped_request(name: str) -> RequestData:
    """The demo's request ``shakespeare`` or ``harry_potter``, from the rows that ship with efface.

    Both keep the same things: everyday facts, other authors and other fantasy. Neighbours in the form of the
    question matter as much as neighbours in topic (docs/LOG.md).
    """
    return load_request_data(
        shipped(f"{name}.forget.jsonl"),
        [shipped(f"{kept}.retain.jsonl") for kept in ("general", "authors", "fantasy")],
        [shipped("general.neighbours.jsonl"), shipped(f"{name}.neighbours.jsonl")],
    )
