"""Rows through `datasets`: Hub ids, folders, parquet and arrow files. The extra ``efface[data]`` brings it.

Always streamed: a prepared dataset would leave the rows to be forgotten in its Arrow cache, in plain text.
Dataset scripts are never run: `datasets` 4 and later cannot.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .files import MAX_LINE_BYTES, Bad, Record

if TYPE_CHECKING:
    from .source import Source

_DATA = (".parquet", ".arrow", ".jsonl", ".json", ".csv", ".gz", ".zst")


def read_dataset(source: Source) -> Iterator[Record]:
    """The rows of one split, numbered from 1, without their nulls.

    Raises :class:`DataError`: no `datasets` here, no such dataset, config, split or column, a broken file.
    """
    if source.path and source.path.is_dir() and not any(p.suffix in _DATA for p in source.path.rglob("*")):
        raise DataError([f"{source.text}: cannot be read: Is a directory without data files"])
    if source.path and not source.path.exists():
        raise DataError([f"{source.text}: cannot be read: No such file or directory"])
    datasets, number = _library(source), 0
    try:
        with _quiet(datasets.logging):
            rows = _split(source, _load(datasets, source))
            blank = rows.info.builder_name == "csv"
            for number, row in enumerate(rows, 1):
                yield number, _record(source, row, blank)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - its readers raise anything, and their messages quote the row
        raise DataError([f"{source.text}:{number + 1}: cannot be read ({type(error).__name__})"]) from None


def _library(source: Source) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            [f"{source.text}: reading it needs the `datasets` library: pip install 'efface[data]'"]
        ) from None
    return datasets


@contextmanager
def _quiet(log: Any) -> Generator[None]:
    """Keep the library's log off stderr: what it says of a broken file may quote the row."""
    before = log.get_verbosity()
    log.set_verbosity(log.CRITICAL)
    try:
        yield
    finally:
        log.set_verbosity(before)


def _load(datasets: Any, source: Source) -> Any:
    path = source.path
    try:
        if path and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            return datasets.load_from_disk(str(path))
        place: dict[str, Any] = {"path": source.repo or str(path), "revision": source.revision}
        if path and path.is_file():
            place = {"path": path.suffix[1:].lower(), "data_files": str(path)}
        place |= {"name": source.config, "streaming": True}
        found = datasets.load_dataset(**place)
        if any(rows.info.builder_name == "csv" for rows in found.values()):
            # Otherwise the texts "None", "NA" and "null" would count as no text.
            found = datasets.load_dataset(**place, keep_default_na=False)
    except Exception as error:  # noqa: BLE001 - its HTTP and file libraries' errors too
        raise DataError([_unopened(source, error)]) from None
    return found


def _unopened(source: Source, error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if source.repo is None:
        return f"{source.text}: cannot be read as a dataset: {said}"
    return f"{source.text}: no file of that name, and the Hub gave no such dataset: {said}"


def _split(source: Source, found: Any) -> Any:
    if not isinstance(found, Mapping):  # one split, as `save_to_disk` wrote it
        found = {str(found.split or "train"): found}
    names = [str(name) for name in found]
    name = source.split or ("train" if "train" in names or len(names) != 1 else names[0])
    if name not in names:
        raise DataError(
            [f"{source.text}: no split {name!r}: expected split=NAME, one of {', '.join(sorted(names))}"]
        )
    return found[name]


def _record(source: Source, row: Mapping[str, Any], blank: bool) -> Any:
    absent = [column for column in source.columns if column not in row]
    if absent:
        raise DataError(
            [f"{source.text}: no column {absent[0]!r}: expected some of {', '.join(sorted(row))}"]
        )
    kept = {key: value for key, value in row.items() if key in source.columns or not source.columns}
    data = {key: value for key, value in _present(kept).items() if value != "" or not blank}
    size = len(json.dumps(data, default=str))
    return (
        data if size <= MAX_LINE_BYTES else Bad(f"a row of {size} bytes: expected at most {MAX_LINE_BYTES}")
    )


def _present(value: Any) -> Any:
    """``value`` without the nulls that a column puts where a row has no such field."""
    if isinstance(value, Mapping):
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    return [_present(inner) for inner in value] if isinstance(value, list) else value
