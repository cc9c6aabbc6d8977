"""Adapter folders put together from blobs. Nothing here is precious: a folder that differs is made again."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from . import durable
from .blob_store import BlobStore
from .blobs import file_digest
from .canon import Digest
from .types import Adapter


def holds(folder: Path, files: Mapping[str, Digest]) -> bool:
    """Whether the folder has exactly these files, none of them a link, each with its digest."""
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return False
    paths = {name: folder / name for name in files}
    return names == set(files) and all(
        not path.is_symlink() and file_digest(path) == files[name] for name, path in paths.items()
    )


def materialise(store: BlobStore, adapter: Adapter, folder: Path) -> None:
    """Build beside and rename in. A process that was faster is left in place: its files are the same.

    Raises BrokenRegistry for a missing or damaged blob, RegistryError when the disk does not let us.
    """
    with durable.disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=durable.TEMPORARY, dir=folder.parent)
        with _turn(folder.parent), beside as work:
            if holds(folder, adapter.files):
                return
            fresh, stale = Path(work) / "fresh", Path(work) / "stale"
            fresh.mkdir()
            for name, digest in adapter.files.items():
                (fresh / name).write_bytes(store.read(digest))
            with suppress(FileNotFoundError):
                folder.rename(stale)
            _place(fresh, folder, adapter.files)
            shutil.rmtree(stale, ignore_errors=True)


def _place(fresh: Path, folder: Path, files: Mapping[str, Digest]) -> None:
    try:
        fresh.rename(folder)
    except OSError:
        if not holds(folder, files):
            raise


@contextmanager
def _turn(folder: Path) -> Generator[None]:
    """One process at a time, by a lock on the folder itself: it leaves no file and ends with the process.

    Where the file system has no such locks the renames still keep every folder whole.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
