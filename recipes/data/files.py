"""Rows of local text files, one at a time: JSON lines, a JSON array, CSV.

Read here and not by `datasets`, so that a value stays the text that it was (`datasets` infers a type per
column: 007 becomes 7 and "None" nothing), and a bad line is named by its number.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError

MAX_LINE_BYTES = 1_000_000
MAX_FILE_BYTES = 2**34  # read one line at a time
MAX_ARRAY_BYTES = 2**29  # held in memory at once
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong with a record that could not be read."""

    what: str


Record = tuple[int, Any]  # the number of its line or row, and parsed JSON or `Bad`


def read_file(path: Path) -> Iterator[Record]:
    """The records of ``path``, numbered by line (by row in a JSON array), in constant memory but for arrays.

    Raises :class:`DataError` for a file that cannot be read or is not UTF-8, and as `require_file` does.
    """
    require_file(path)
    try:
        if path.suffix.lower() == ".csv":
            yield from _csv(path)
        elif path.suffix.lower() == ".json" and _first_byte(path) == b"[":
            yield from _array(path)
        else:
            yield from _json_lines(path)
    except OSError as error:
        raise DataError([f"{path}: cannot be read: {error.strerror}. Expected a JSONL file"]) from None


def require_file(path: Path, most: int = MAX_FILE_BYTES) -> None:
    """Raise :class:`DataError` for a device, a pipe (reading may never end) or a file beyond ``most`` bytes.

    What is not there, or not to be looked at, is for reading it to say.
    """
    try:
        status = path.stat()
    except OSError:
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise DataError(
            [f"{path}: expected a regular file, found a device or a pipe: write the rows to a file"]
        )
    if stat.S_ISREG(status.st_mode) and status.st_size > most:
        raise DataError([f"{path}: expected at most {most} bytes, found {status.st_size}: split the file"])


def _open(path: Path) -> BinaryIO:
    """``path`` for reading, without waiting where it has turned into a pipe; and then it is none to be read."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise DataError([f"{path}: expected a regular file, found something else"])


def _json_lines(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if isinstance(line, Bad):
            yield number, line
        elif line.strip():
            yield number, _parsed(line)


def _array(path: Path) -> Iterator[Record]:
    require_file(path, MAX_ARRAY_BYTES)
    with _open(path) as file:
        data = file.read()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError([f"{path}: not JSON{where}: expected one array of objects"]) from None
    yield from enumerate(rows, 1)


def _csv(path: Path) -> Iterator[Record]:
    reader = csv.reader(_whole_lines(path), strict=True)
    try:
        header = next(reader, [])
        if len({*header}) < len(header) or "" in header:
            raise DataError([f"{path}:1: expected a header that names every column once"])
        for cells in reader:
            if len(cells) == len(header):
                yield reader.line_num, {key: cell for key, cell in zip(header, cells, strict=True) if cell}
            elif cells:
                yield (
                    reader.line_num,
                    Bad(f"expected {len(header)} cells as in the header, found {len(cells)}"),
                )
    except csv.Error as error:
        yield reader.line_num, Bad(f"not CSV: {error}")


def _whole_lines(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        if isinstance(line, Bad):
            raise DataError([f"{path}:{number}: {line.what}"])
        yield line + "\n"


def _lines(path: Path) -> Iterator[tuple[int, str | Bad]]:
    """Each line without its end. No more than `MAX_LINE_BYTES` of one are ever held."""
    start = 0
    with _open(path) as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            size, whole = len(line), line.endswith(b"\n") or len(line) <= MAX_LINE_BYTES
            if whole:
                yield number, _decoded(path, line.removesuffix(b"\n"), start)
            else:
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    size += len(line)
                yield number, Bad(f"a line of {size} bytes: expected at most {MAX_LINE_BYTES}")
            start += size


def _decoded(path: Path, line: bytes, start: int) -> str:
    bom = len(_BOM) if start == 0 and line.startswith(_BOM) else 0
    try:
        return line[bom:].decode()
    except UnicodeDecodeError as error:
        place = start + bom + error.start
        raise DataError([f"{path}: expected UTF-8 text, byte {place} is not"]) from None


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        where = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        return Bad(f"not JSON{where}: expected one JSON object per line")


def _first_byte(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(4096).removeprefix(_BOM).lstrip()[:1]
