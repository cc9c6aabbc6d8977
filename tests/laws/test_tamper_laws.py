"""Any byte of the database file: `verify` names the row that is another one now, or nothing has another meaning."""

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from story_kit import scratch
from tamper_kit import Rows, changed, everything_happened, rows

from efface.registry import Registry, RegistryError, verify

PAGE = 4096


class Whole:
    """The registry before anything happens to it. No dataclass: hypothesis would print all of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = (root / "registry.db").read_bytes()
        self.rows: Rows = rows(root / "registry.db")

    @property
    def pages(self) -> int:
        return len(self.file) // PAGE


@pytest.fixture(scope="module")
def whole() -> Iterator[Whole]:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        yield Whole(everything_happened(Path(folder)))


@contextmanager
def damaged(whole: Whole, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch()) as folder:
        root = Path(shutil.copytree(whole.root, Path(folder) / "copy"))
        (root / "registry.db").write_bytes(data)
        yield root


def check(whole: Whole, data: bytes) -> None:
    """Never a crash, and never a registry that is called whole while it says something else."""
    with damaged(whole, data) as root:
        try:
            with Registry.open(root) as reg:
                problems = verify(reg).problems
        except RegistryError:
            return
        try:
            after = rows(root / "registry.db")
        except sqlite3.Error:
            assert problems
            return
    found = changed(whole.rows, after)
    assert bool(problems) or not found, found
    named = {problem.where for problem in problems}
    if len(found) == 1 and all(whole.rows[name].keys() == after[name].keys() for name in after):
        assert found <= named, problems


def flipped(data: bytes, offset: int, mask: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


masks = st.sampled_from([1, 2, 4, 0x20, 0x80, 0xFF])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99), masks)
@example(18, 3)  # read as WAL
@example(56, 2)  # another encoding
@example(28, 1)
@example(60, 1)
def test_the_header_of_the_file(whole: Whole, offset: int, mask: int) -> None:
    check(whole, flipped(whole.file, offset, mask))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 40), masks)
def test_headers_and_cell_pointers_of_pages(whole: Whole, page: int, offset: int, mask: int) -> None:
    page %= whole.pages
    start = page * PAGE + (100 if page == 0 else 0)
    check(whole, flipped(whole.file, start + offset, mask))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1000), st.integers(0, PAGE - 1), masks)
def test_any_byte(whole: Whole, page: int, offset: int, mask: int) -> None:
    check(whole, flipped(whole.file, page % whole.pages * PAGE + offset, mask))


@settings(max_examples=100, deadline=None)
@given(st.data(), masks)
def test_bytes_of_rows(whole: Whole, data: st.DataObject, mask: int) -> None:
    """Where text of some row is stored: in its table, in an index, or in a page that overflowed."""
    table = data.draw(st.sampled_from(sorted(name for name, found in whole.rows.items() if found)))
    row = data.draw(st.sampled_from(sorted(whole.rows[table].items())))[1]
    text = data.draw(st.sampled_from([cell for cell in row if isinstance(cell, bytes) and len(cell) > 2]))
    places = [match.start() for match in re.finditer(re.escape(text[:24]), whole.file)] or [0]
    start = data.draw(st.sampled_from(places))
    check(whole, flipped(whole.file, start + data.draw(st.integers(0, min(len(text), 24) - 1)), mask))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_regions(whole: Whole, data: st.DataObject) -> None:
    """Overwritten, moved, cut off or grown."""
    start = data.draw(st.integers(0, len(whole.file) - 1))
    length = data.draw(st.sampled_from([2, 16, 100, 512, PAGE, 3 * PAGE]))
    end = min(start + length, len(whole.file))
    source = data.draw(st.integers(0, len(whole.file) - (end - start)))
    new = data.draw(
        st.sampled_from(
            [bytes(end - start), b"\xff" * (end - start), whole.file[source : source + end - start]]
        )
    )
    kind = data.draw(st.sampled_from(["overwrite", "cut", "truncate", "grow"]))
    check(
        whole,
        {
            "overwrite": whole.file[:start] + new + whole.file[end:],
            "cut": whole.file[:start] + whole.file[end:],
            "truncate": whole.file[:start],
            "grow": whole.file + new,
        }[kind],
    )


def test_unused_space_means_nothing(whole: Whole) -> None:
    """Free space inside pages: whatever stands there, the rows are the same, and nothing is called damaged."""
    seen = 0
    for page in range(whole.pages):
        start = page * PAGE
        header = start + (100 if page == 0 else 0)
        kind = whole.file[header]
        if kind not in (2, 5, 10, 13):
            continue
        cells = int.from_bytes(whole.file[header + 3 : header + 5])
        content = int.from_bytes(whole.file[header + 5 : header + 7]) or 65536
        free = header + (12 if kind in (2, 5) else 8) + 2 * cells
        if (size := start + content - free) < 8:
            continue
        data = whole.file[:free] + b"\xa5" * size + whole.file[free + size :]
        with damaged(whole, data) as root, Registry.open(root) as reg:
            assert verify(reg).ok
            assert not changed(whole.rows, rows(root / "registry.db"))
        seen += 1
    assert seen > 10
