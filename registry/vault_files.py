"""Private files: what the vault asks of its folder and its files, and how a file's bytes are destroyed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from . import durable
from .errors import InvalidInput

_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 20


def check_folder(folder: Path) -> None:
    """Raise InvalidInput unless `folder` is absent, or a folder that this user and nobody else may enter."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise _of_another_user(folder, "one that cannot be looked at") from error
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidInput(f"a vault folder at {folder}", "something else", "Move it away.")
    if os.geteuid() not in (0, status.st_uid):
        raise _of_another_user(folder, f"one of user {status.st_uid}")
    if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        expected = "a vault folder that only its owner may enter"
        raise InvalidInput(expected, f"mode {mode:04o}", f"Run `chmod 700 {folder}`.")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file. ValueError for a link, a device, or more than `limit` bytes."""
    with os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ValueError("larger than expected")
        return file.read()


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file. ValueError for a link or a device."""
    with os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
        return file.read(count)


def read_secret(path: Path, *, follow: bool = False) -> str:
    """The text of a short file that only its owner may read; InvalidInput for any other, a link too.

    `follow` allows a link: a file that the user named, which container platforms mount that way.
    """
    try:
        path = path.resolve(strict=True) if follow else path
        descriptor = _open(path, os.O_RDONLY)
    except PermissionError as error:
        raise _of_another_user(path, "one that this user may not read") from error
    except ValueError as error:
        raise _no_key_file(path) from error
    with os.fdopen(descriptor, "rb") as file:
        if (mode := stat.S_IMODE(os.fstat(file.fileno()).st_mode)) & 0o077:
            expected = "a key file that only its owner may read"
            raise InvalidInput(expected, f"mode {mode:04o}", f"Run `chmod 600 {path}`.")
        return file.read(4096).decode("utf-8", errors="replace")


def exists(path: Path) -> bool:
    """Whether something has this name, be it a link that leads nowhere."""
    return os.path.lexists(path)


def zero(path: Path) -> None:
    """Overwrite a file's bytes with zeros, durably. ValueError for a link; nothing for an absent file."""
    try:
        descriptor = _open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    try:
        zero_descriptor(descriptor)
    finally:
        os.close(descriptor)


def zero_regular(path: Path) -> None:
    """The same, but a link or a special file is left alone: its bytes are not ours."""
    if path.is_file() and not path.is_symlink():
        zero(path)


def zero_descriptor(descriptor: int) -> None:
    """Overwrite an open regular file's bytes with zeros and wait for the disk."""
    left = os.fstat(descriptor).st_size
    os.lseek(descriptor, 0, os.SEEK_SET)
    while left > 0:
        left -= os.write(descriptor, bytes(min(left, _CHUNK)))
    os.fsync(descriptor)


def destroy(path: Path) -> None:
    """Overwrite with zeros, delete, and make both durable; an absent file is fine, a half-done one too.

    A link is deleted, and what it leads to left alone.
    """
    if not exists(path):
        return
    if not path.is_symlink():
        zero(path)
    path.unlink(missing_ok=True)
    durable.sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Destroy the unfinished files of crashed writes: they may hold wrapped keys."""
    for leftover in sorted(folder.glob(f"{durable.TEMPORARY}*")):
        destroy(leftover)


def _open(path: Path, flags: int) -> int:
    """Open a regular file, not following a link nor waiting at a pipe; ValueError for another kind."""
    try:
        descriptor = os.open(path, flags | _OPEN)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise ValueError("not a regular file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def _of_another_user(path: Path, came: str) -> InvalidInput:
    then = "Run as the user who made the vault, or give this user a vault of its own."
    return InvalidInput(f"a vault of this user at {path}", came, then)


def _no_key_file(path: Path) -> InvalidInput:
    return InvalidInput(f"a key file at {path}", "a link, a folder or a device", "Put the key's file there.")
