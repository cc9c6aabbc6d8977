"""Figures of rows on disk, so that no audit measures the same row of the same composition twice.

An entry is found by a keyed hash of everything that decides it: base, adapters, weights and precision (the digest of
the composition), how rows are measured, with which libraries and on what device, and the row. It holds figures only: no
prompt, no reference, no answer. The key of a request's rows dies with its data (`efface.registry.row_key`), so nobody
can ask the cache for a guess afterwards.

    <folder>/rows.db    the entries, SQLite; each carries a keyed checksum, and one that does not fit was never there
    <folder>/rows.key   the key of the checksums, and of rows that belong to no request

It may be deleted at any time. It is as trustworthy as the user who runs audits: whoever can read `rows.key` can write
entries. An audit that is to convince somebody else is run with `--no-cache`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from ..adapters import Encoded
from ..audits import AuditError, Membership, Method, Probe, RowScore, hash_row

FIGURES = "2"
"""Raise it when a figure of `RowScore` comes to mean something else: older entries are not used then."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "rouge-score")
_NAMES = ("id", "request", "group")
_TEXTS = ("prompt", "reference", "answer")
FIELDS = tuple(f.name for f in fields(RowScore) if f.name not in (*_NAMES, *_TEXTS))
_WAIT_SECONDS = 30.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowCache:
    """A cache in ``folder``; open it with `open_cache`."""

    folder: Path
    key: bytes = field(repr=False)

    def find(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The figures of the entries of these names that are there and whole."""
        asked = list(dict.fromkeys(names))
        query = "SELECT name, body, mac FROM entry WHERE name = ?"
        rows = self._do(lambda db: [row for name in asked for row in db.execute(query, (name,))])
        found = {row[0]: self._figures(*row) for row in rows}
        return {name: figures for name, figures in found.items() if figures is not None}

    def put(self, scores: Mapping[str, RowScore]) -> None:
        """Add entries, on disk when this returns."""
        rows: list[tuple[str, str, str]] = []
        for name, score in scores.items():
            body = json.dumps({key: _plain(getattr(score, key)) for key in FIELDS}, allow_nan=False)
            rows.append((name, body, self._mac(name, body)))
        self._do(lambda db: db.executemany("INSERT OR REPLACE INTO entry VALUES (?, ?, ?)", rows))

    def count(self) -> int:
        """How many entries there are."""
        return int(self._do(lambda db: db.execute("SELECT count(*) FROM entry").fetchone()[0]))

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """``work`` in a transaction; a database that cannot be read is set aside as `rows.db.damaged` first."""
        path = self.folder / "rows.db"
        try:
            return _worked(path, work)
        except sqlite3.OperationalError as error:
            raise AuditError(_refused(self.folder, str(error))) from error
        except sqlite3.DatabaseError:
            path.replace(path.with_name("rows.db.damaged"))
            return _worked(path, work)

    def _figures(self, name: object, body: object, mac: object) -> dict[str, Any] | None:
        if not (isinstance(name, str) and isinstance(body, str) and isinstance(mac, str)):
            return None
        if not hmac.compare_digest(mac, self._mac(name, body)):
            return None
        figures: dict[str, Any] = json.loads(body)
        return figures if tuple(figures) == FIELDS else None

    def _mac(self, name: str, body: str) -> str:
        said = f"{name}\n{body}".encode()
        return hmac.new(self.key, b"efface row cache 1\n" + said, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class RowMemory:
    """A cache as one audit uses it: the keys of its requests, and how many rows it had already.

    ``cache``: one that is open, or what opens it when the first row is looked for: what fails before leaves no folder.
    ``key``: of a request's rows, `efface.registry.row_key`; None stands for rows of no request. ``reads``: False where
    answers are to be shown, which the cache does not have.
    """

    key: Callable[[str | None], bytes] = field(repr=False)
    cache: RowCache | Callable[[], RowCache] | None = None
    reads: bool = True
    hits: dict[str, int] = field(default_factory=dict[str, int])

    def name(self, composition: str, method: str, probe: Probe, row: Encoded) -> str:
        """The name of an entry: everything that decides its figures, hashed under the row's key."""
        item = probe.item
        said = (item.completion, sorted(item.keywords))
        return hash_row(
            self.key(probe.request), composition, method, row.prompt, row.answer, row.document, said
        )

    def find(self, names: Mapping[str, Probe], composition: str) -> dict[str, RowScore]:
        """What the cache has of these entries, as scores without an answer."""
        cache = self._opened()
        if cache is None or not self.reads:
            return {}
        found = cache.find(list(names))
        self.hits[composition] = self.hits.get(composition, 0) + len(found)
        return {name: _score(names[name], figures) for name, figures in found.items()}

    def put(self, scores: Mapping[str, RowScore]) -> None:
        """Keep these."""
        cache = self._opened()
        if cache is not None:
            cache.put(scores)

    def _opened(self) -> RowCache | None:
        return self.cache() if callable(self.cache) else self.cache


def one_key(key: bytes | None = None) -> Callable[[str | None], bytes]:
    """The same key for rows of every request, a random one where none is given."""
    chosen = key or secrets.token_bytes(32)

    def of(_request: str | None) -> bytes:
        return chosen

    return of


def open_cache(folder: Path) -> RowCache:
    """The cache in ``folder`` (made if need be, readable by its owner only). Raises `AuditError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return RowCache(folder, _key(folder / "rows.key"))
    except OSError as error:
        raise AuditError(_refused(folder, error.strerror or "no access")) from error


def method_digest(method: Method, device: str) -> str:
    """``sha256:<hex>`` of how rows are measured: settings, libraries and device, all of which can move a figure."""
    batch = ("generate_batch", "score_batch")  # only the last bits depend on them
    settings = {name: value for name, value in asdict(method).items() if name not in batch}
    versions = {name: version(name) for name in PACKAGES}
    said = json.dumps([FIGURES, FIELDS, settings, versions, device], sort_keys=True)
    return f"sha256:{hashlib.sha256(said.encode()).hexdigest()}"


def _worked(path: Path, work: Callable[[sqlite3.Connection], T]) -> T:
    with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as db, db:
        db.execute("PRAGMA secure_delete = ON")
        db.execute(
            "CREATE TABLE IF NOT EXISTS entry "
            "(name TEXT PRIMARY KEY, body TEXT NOT NULL, mac TEXT NOT NULL) WITHOUT ROWID"
        )
        return work(db)


def _key(path: Path) -> bytes:
    """The key in ``path``, made once: two processes that start together agree on the first one's."""
    if (found := _read_key(path)) is not None:
        return found
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(beside, path)
    beside.unlink()
    if (made := _read_key(path)) is None:  # damaged: its entries are lost with it
        path.unlink()
        return _key(path)
    return made


def _read_key(path: Path) -> bytes | None:
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        return data if len(data) == 32 else None
    return None


def _score(probe: Probe, figures: Mapping[str, Any]) -> RowScore:
    item = probe.item
    texts = {"prompt": item.text, "reference": item.completion, "answer": ""}
    scores = figures["membership"] and Membership(**figures["membership"])
    rest = {name: value for name, value in figures.items() if name != "membership"}
    return RowScore(id=item.id, request=probe.request, group=probe.group, **texts, **rest, membership=scores)


def _plain(value: Any) -> Any:
    if isinstance(value, Membership):
        return value.to_json(reveal=True)  # with the score that reports leave out: a cache is read back whole
    return value.item() if hasattr(value, "item") else value


def _refused(folder: Path, why: str) -> str:
    then = "name another with --cache, or take --no-cache"
    return f"expected a row cache that can be read and written in {folder}, got: {why}; {then}"
