"""Files that others may have put something else in place of: read without waiting, and without losing a descriptor."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_plain(path: Path, most: int) -> tuple[os.stat_result, bytes]:
    """Status and the first ``most`` bytes of the file at ``path``; no bytes of a pipe, folder or device.

    Opening a pipe would wait for its writer. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return status, b""
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return status, file.read(most)
    finally:
        os.close(descriptor)
