"""Adapter folders put together from blobs. Nothing here is precious: a folder that differs is made again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import durable
from .blobs import Blobs, file_digest
from .canon import Digest
from .types import Adapter


def holds(folder: Path, files: Mapping[str, Digest]) -> bool:
    """Whether the folder has exactly these files, none of them a link, each with its digest."""
    if not folder.is_dir() or {entry.name for entry in folder.iterdir()} != set(files):
        return False
    paths = {name: folder / name for name in files}
    return all(not path.is_symlink() and file_digest(path) == files[name] for name, path in paths.items())


def materialise(blobs: Blobs, adapter: Adapter, folder: Path) -> None:
    """Build beside and rename in. A process that was faster is left in place: its files are the same."""
    contents = {name: blobs.read(digest) for name, digest in adapter.files.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=durable.TEMPORARY, dir=folder.parent) as work:
        fresh, stale = Path(work) / "fresh", Path(work) / "stale"
        fresh.mkdir()
        for name, data in contents.items():
            (fresh / name).write_bytes(data)
        if folder.exists() and not holds(folder, adapter.files):
            folder.rename(stale)
        try:
            fresh.rename(folder)
        except OSError:
            if not holds(folder, adapter.files):
                raise
        shutil.rmtree(stale, ignore_errors=True)
