"""Writing files so that after a crash at any moment a file is whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import RegistryError

TEMPORARY = ".tmp-"
"""Prefix of unfinished files; whatever carries it is a leftover of a crash and means nothing."""

_FULL = ("a full disk", "Free some space and run it again.")
_DENIED = ("no permission", "Run it as the user who owns the registry, or change the folder's owner.")
_DISK = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: ("a full quota", _FULL[1]),
    errno.EROFS: ("a read-only disk", "Mount it writable, or work on a copy of the registry."),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EIO: ("an input/output error", "Check the disk (`dmesg`, `smartctl`) before you run it again."),
}


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Create `folder` and its parents, each one durable in the folder above it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Put `data` at `path`, replacing what was there: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        _write_and_sync(temporary, data, mode)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # what stopped the write may stop this too; a leftover means nothing
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file for good; one that is absent is removed already, by a process that may not have synced."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(place: Path) -> Generator[None]:
    """Turn an OSError into a RegistryError that names the place and what to do about it."""
    try:
        yield
    except OSError as error:
        raise explained(place, error) from error


def explained(place: Path | str, error: OSError) -> RegistryError:
    """What the system refused at a place, and what to do about it; nothing of what was being written."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    came, then = _DISK.get(error.errno or 0, ("an error of the system", "Check the place and its disk."))
    if error.errno is not None and error.errno not in _DISK:
        came = os.strerror(error.errno)
    return RegistryError(f"to use {place}", f"{came} ({name})", then)


def _write_and_sync(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
