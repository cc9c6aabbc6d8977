"""Folders that appear whole or not at all.

Each is built beside its place, under a lock that ends with its process: what a kill leaves is told by that from what
another process is still writing, and removed by whoever next makes the same folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CompositionError
from .tensors import sync_folder


@contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """Yield an empty folder beside ``out`` that is renamed to ``out`` at the end, or removed on any error.

    Raises `CompositionError` for a full disk, and when ``out`` exists (a version is never rewritten: servers read
    adapter files again whenever they reload one) or its parent does not.
    """
    require_free(out)
    _sweep(out)
    lock, staging = None, out
    try:
        lock, staging = _staging(out)
        yield staging
        sync_folder(staging)
        require_free(out)
        staging.rename(out)
    except BaseException as error:
        if staging != out:
            shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CompositionError(
                f"expected room for {out.name} in {out.parent}, got a full disk; free some, or name another disk"
            ) from error
        raise
    finally:
        if lock is not None:
            os.close(lock)
    sync_folder(out.parent)


def _staging(out: Path) -> tuple[int, Path]:
    """A new folder beside ``out`` and the descriptor that holds its lock; another name where a sweep was faster."""
    while True:
        folder = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
        folder.mkdir()
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a disk without locks: nobody can sweep there either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return lock, folder
            os.close(lock)


def _sweep(out: Path) -> None:
    """Remove folders that were to become ``out`` and whose process is gone."""
    name = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}\.tmp")
    for entry in list(out.parent.iterdir()):
        if name.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):
                _remove_unlocked(entry)


def _remove_unlocked(folder: Path) -> None:
    """Remove ``folder`` unless another process holds its lock: an `OSError` then."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def require_free(out: Path) -> None:
    """Raise `CompositionError` unless ``out`` is free and its parent folder exists."""
    if not out.name or out.name == "..":
        raise CompositionError(f"expected the path of a new folder, got {str(out)!r}; give the folder a name")
    if os.path.lexists(out):
        raise CompositionError(
            f"expected a new folder, but {out} exists; choose another name, it is not rewritten"
        )
    if not out.parent.is_dir():
        raise CompositionError(
            f"expected {out.parent} to be a folder to write {out.name} in; create it first"
        )
