"""What a person may write for a set of rows: a file, a folder, or a dataset id of the Hugging Face Hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from ..errors import DataError
from .files import Record, read_file, require_file

# The spelling of huggingface_hub's `HfFileSystem`; without its prefix, that of `datasets.load_dataset`.
_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_HUB = "hf://datasets/"
_COLUMNAR = (".parquet", ".arrow")
_LOCAL = (*_COLUMNAR, ".jsonl", ".json", ".csv", ".txt", ".gz")
_OPTIONS = ("config", "split", "columns")


@dataclass(frozen=True, slots=True)
class Source:
    """A place to read rows from. ``text`` is as it was written; exactly one of ``path`` and ``repo`` is set."""

    text: str
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What rows without an id are named after: the file's stem, or dataset and config."""
        if self.path is not None:
            return self.path.stem
        return ".".join(part for part in ((self.repo or "").rpartition("/")[2], self.config) if part)

    def records(self) -> Iterator[Record]:
        """Its rows, numbered from 1, as parsed JSON. Raises :class:`DataError` when it cannot be read."""
        if self.path is None or self.path.is_dir() or self.path.suffix.lower() in _COLUMNAR:
            from .hub import read_dataset

            if self.path is not None:
                require_file(self.path)
            return read_dataset(self)
        return read_file(self.path)


def parse_source(written: str | Path) -> Source:
    """Read ``written``: a path, ``org/name`` or ``hf://datasets/org/name@revision``, with options behind "?".

    ``org/name`` is a dataset only where nothing of that name is on disk. Raises :class:`DataError` for a
    malformed id or unknown options; that something is absent is found when it is read.
    """
    text, path = str(written), Path(written).expanduser()
    if isinstance(written, Path) or path.exists():
        return Source(text, path)
    head, mark, query = text.partition("?")
    at = Path(head).expanduser()
    found = _ID.fullmatch(head.removeprefix(_HUB))
    if head.startswith("hf:") and not (head.startswith(_HUB) and found):
        raise DataError([f"{text}: expected hf://datasets/org/name, perhaps with @revision"])
    if found and (head.startswith(_HUB) or not (at.suffix.lower() in _LOCAL or at.parent.is_dir())):
        return _with_options(Source(text, None, found["repo"], found["revision"]), query)
    if mark and (at.is_dir() or at.suffix.lower() in _COLUMNAR):
        return _with_options(Source(text, at), query)
    return Source(text, path)


def _with_options(source: Source, query: str) -> Source:
    try:
        pairs = parse_qsl(query, strict_parsing=True) if query else []
    except ValueError:
        raise DataError([f"{source.text}: expected options as config=NAME&split=NAME&columns=A,B"]) from None
    given = dict(pairs)
    problems = [f"{source.text}: `{key}` is no option{_nearest(key)}" for key in given if key not in _OPTIONS]
    if len(given) < len(pairs):
        problems.append(f"{source.text}: expected each option once")
    if problems:
        raise DataError(problems)
    return Source(
        source.text,
        source.path,
        source.repo,
        source.revision,
        given.get("config"),
        given.get("split"),
        tuple(filter(None, given.get("columns", "").split(","))),
    )


def _nearest(key: str) -> str:
    if key == "revision":
        return "; write it as org/name@revision"
    near = difflib.get_close_matches(key, _OPTIONS, 1)
    return f"; did you mean `{near[0]}`?" if near else f": expected {', '.join(_OPTIONS)}"
