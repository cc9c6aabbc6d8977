"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
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
    staging = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
    try:
        staging.mkdir()
        yield staging
        sync_folder(staging)
        require_free(out)
        staging.rename(out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CompositionError(
                f"expected room for {out.name} in {out.parent}, got a full disk; free some, or name another disk"
            ) from error
        raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(out.parent)


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
