"""One controller per channel and folder: by a lock that ends with its process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..registry import durable
from .errors import ServingError


@contextmanager
def alone(root: Path, channel: str) -> Generator[None]:
    """Hold the lock of ``channel`` in ``root``. Raises `ServingError` when another process does."""
    durable.make_folder(root)
    descriptor = os.open(root / f"{channel}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _take(descriptor, root, channel)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, root: Path, channel: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServingError(
            f"expected to be the only controller of {channel} in {root}, got another one running; "
            "stop it, or give this server a --root of its own"
        ) from None
