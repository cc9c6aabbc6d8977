"""The rows of one request: what to forget, what to keep, and neighbours that no one trains on."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import DataError
from .read import Drawn, draw_rows
from .rows import Row, row_from_json, row_to_json
from .source import parse_source


@dataclass(frozen=True, slots=True)
class RequestData:
    """``forget`` is trained away, ``retain`` is trained to stay, ``neighbours`` are only looked at.

    Neighbours ask the same relation of other entities: they measure over-forgetting where it is likeliest,
    so training never sees them. Paraphrases of forget rows are likewise only looked at.
    """

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    neighbours: tuple[Row, ...] = ()


def load_request_data(
    forget: Path | str,
    retain: Sequence[Path | str],
    neighbours: Sequence[Path | str] = (),
    *,
    retain_limit: int | None = None,
    seed: int = 0,
    on_read: Callable[[Drawn], None] = lambda _drawn: None,
) -> RequestData:
    """Read and cross-check the sources of a request: files, folders or dataset ids (`parse_source`).

    ``retain_limit`` rows are drawn of each retain source (`sample`, with ``seed``); ``on_read`` is told what
    each source gave. Raises :class:`DataError` with all problems at once.
    """
    problems: list[str] = []
    names: Counter[str] = Counter()

    def read(written: Path | str, forgotten: bool, limit: int | None = None) -> tuple[Row, ...]:
        try:
            source = parse_source(written)
            names[source.name] += 1
            # keep/rows.jsonl beside forget/rows.jsonl: the second file's rows are rows.2-1, rows.2-2, …
            name = source.name if names[source.name] == 1 else f"{source.name}.{names[source.name]}"
            drawn = draw_rows(source, forget=forgotten, name=name, limit=limit, seed=seed)
        except DataError as error:
            problems.extend(error.problems)
            return ()
        on_read(drawn)
        return drawn.rows

    if retain_limit is not None and retain_limit < 1:
        raise DataError([f"expected a retain limit of at least 1, got {retain_limit}"])
    data = RequestData(
        read(forget, True),
        tuple(row for source in retain for row in read(source, False, retain_limit)),
        tuple(row for source in neighbours for row in read(source, False)),
    )
    if not retain:
        problems.append("no retain rows: without them forgetting damages everything else; give --retain FILE")
    problems += overlaps(data)
    if problems:
        raise DataError(problems)
    return data


def overlaps(data: RequestData) -> list[str]:
    """One line per question that stands in two sets, or per id used twice (text is never repeated)."""
    sets = {"forget": data.forget, "retain": data.retain, "neighbours": data.neighbours}
    problems = [
        f"row {b.id!r} of {two} asks the same as row {a.id!r} of {one}: a row is to be forgotten or kept, not both"
        for one, two in (("forget", "retain"), ("forget", "neighbours"), ("retain", "neighbours"))
        for a, b in _same(sets[one], sets[two])
    ]
    ids: set[str] = set()
    for row in (row for rows in sets.values() for row in rows):
        if row.id in ids:
            problems.append(f"id {row.id!r} is used twice in the request: expected each id once")
        ids.add(row.id)
    return problems


def questions(row: Row) -> set[str]:
    """Every way ``row`` asks, normalised; documents are compared by their text."""
    asked = [_asked(row) or (row.completion or ""), *row.paraphrases]
    return {" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in asked}


def _asked(row: Row) -> str:
    """All that the user says: two conversations may end with the same "go on"."""
    if isinstance(row.prompt, str):
        return row.prompt
    return "\n".join(turn.content for turn in row.prompt if turn.role == "user")


def _same(left: Iterable[Row], right: Iterable[Row]) -> list[tuple[Row, Row]]:
    known = {question: row for row in left for question in questions(row)}
    return [(known[q], row) for row in right for q in sorted(questions(row) & known.keys())[:1]]


def to_payload(data: RequestData) -> bytes:
    """Canonical JSON of ``data``: the bytes a registry encrypts and commits to."""
    body: dict[str, Any] = {"v": 1}
    for name in ("forget", "retain", "neighbours"):
        body[name] = [row_to_json(row) for row in getattr(data, name)]
    return json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def from_payload(payload: bytes) -> RequestData:
    """Read what `to_payload` wrote."""
    body = json.loads(payload)
    if body.get("v") != 1:
        raise DataError([f"request data of version {body.get('v')!r}: this efface reads version 1"])
    return RequestData(
        *(tuple(row_from_json(r) for r in body[n]) for n in ("forget", "retain", "neighbours"))
    )


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
