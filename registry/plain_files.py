"""Folders that may come from anyone, read once and without following anything; folders written whole or not at all.

Names are opened relative to a descriptor of the folder, so nothing that happens to the folder's path in the
meantime leads outside it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import durable
from .errors import InvalidInput

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EBUSY)
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}


@dataclass(frozen=True, slots=True)
class Source:
    """What is being read, as errors name it: never its contents. `then` is what to do about a fault."""

    name: str
    then: str

    def bad(self, expected: str, came: str) -> InvalidInput:
        """The error for one fault of this source."""
        return InvalidInput(f"{expected} in {self.name}", came, self.then)


@contextmanager
def opened(folder: Path | str, source: Source, *, inside: int | None = None) -> Generator[int]:
    """A descriptor of `folder` (relative to the folder `inside`). Raises InvalidInput for a link or no folder."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        descriptor = os.open(folder, flags, dir_fd=inside)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{source.name} in a folder that is no link", "none that can be read", source.then
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_entries(folder: int, then: str) -> None:
    """Raise InvalidInput when a link, pipe, socket, device or pickle lies in the folder, whatever its name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            _check_entry(entry, Source(ascii(entry.name)[:80], then))


def read_file(folder: int, source: Source, limit: int) -> bytes:
    """The bytes of the plain file `source.name`, of 1 to `limit` bytes.

    Raises InvalidInput for a link, a hard link (its other name may be anywhere), a pipe (O_NONBLOCK: opening
    one must not hang) and everything else that is no plain file. What the file becomes later does not matter.
    """
    try:
        descriptor = os.open(source.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except (OSError, ValueError) as error:
        raise source.bad("a readable file", type(error).__name__) from error
    try:
        size = _plain_size(os.fstat(descriptor), source, limit)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(size)
    finally:
        os.close(descriptor)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` (by relative path) into the new or empty `folder`: all of them, or nothing.

    Built beside and renamed in. Raises InvalidInput when something is there already, RegistryError for a disk that
    is full or not writable.
    """
    with durable.disk_errors(folder.parent):
        durable.make_folder(folder.parent)
    work = folder.parent / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
    try:
        for name, data in files.items():
            durable.make_folder((work / name).parent)
            durable.write_file(work / name, data, 0o644)
        work.rename(folder)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise durable.explained(folder, error) from error
        raise InvalidInput(
            "a new or empty folder to write to", type(error).__name__, "Name another."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    durable.sync_folder(folder.parent)


def _plain_size(status: os.stat_result, source: Source, limit: int) -> int:
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= limit:
        raise source.bad(f"a plain file of 1 to {limit} bytes", "something else")
    if status.st_nlink != 1:
        raise source.bad("a file of one name", "a hard link")
    return status.st_size


def _check_entry(entry: os.DirEntry[str], source: Source) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        raise source.bad("plain files", "a link")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise source.bad("plain files", "a pipe, socket or device")
    if stat.S_ISREG(mode) and Path(entry.name).suffix.lower() in _PICKLES:
        raise source.bad("safetensors only", "a file that may hold a pickle")
