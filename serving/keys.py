"""API keys of the gateway: who may ask which channels. The file holds hashes only.

    {"v": 1, "keys": [{"id": "team-a", "sha256": "…", "channels": ["prod"], "metrics": false}]}

`efface serve key` writes it. A key is 32 random bytes, so that one SHA-256 is enough: nothing can be guessed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from ..registry import durable
from .errors import ServingError
from .names import is_channel
from .plain import read_plain

_LARGEST = 1 << 20
_BEARER = re.compile(rb"[Bb]earer ([A-Za-z0-9_-]{20,200})")
_HEX = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key. ``sha256``: hex, of the key's text; ``metrics``: whether it may read ``/metrics``."""

    id: str
    sha256: str
    channels: tuple[str, ...]
    metrics: bool = False


def who(keys: Sequence[ApiKey], authorization: bytes | None) -> ApiKey | None:
    """Whose key the header carries; None for none, a malformed or an unknown one.

    Takes as long for a key that is nearly right as for any other: hashes are compared, each in constant time.
    """
    match = _BEARER.fullmatch(authorization or b"")
    digest = hashlib.sha256(match[1] if match else b"").hexdigest()
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found if match else None


def new_key(id: str, channels: Sequence[str], *, metrics: bool = False) -> tuple[str, ApiKey]:
    """The text to hand out, which is nowhere else, and the record to keep. Raises `ServingError` for a bad name."""
    text = f"efk_{secrets.token_urlsafe(32)}"
    record = ApiKey(id, hashlib.sha256(text.encode()).hexdigest(), tuple(sorted(set(channels))), metrics)
    try:
        return text, _key(asdict(record))
    except ValueError:
        raise ServingError(
            "expected an id and channels of letters, digits and . _ - (at most 64); such as --id team-a"
        ) from None


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in ``path``. Raises `ServingError` for a file that others may read or write, or that is no key file."""
    try:
        status, data = read_plain(path, _LARGEST + 1)
    except OSError as error:
        raise ServingError(
            f"expected a key file at {path}, got {error.strerror}; make one: efface serve key"
        ) from None
    _require_private(path, status)
    try:
        return _keys(json.loads(data))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ServingError(
            f"expected a key file of efface at {path}, got something else; make one: efface serve key"
        ) from None


class KeyFile:
    """The keys of a file as it is now: read again when it changes. Calling it raises what `read_keys` raises.

    A file that is broken lets nobody in: the key that was to be revoked could be in the old one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._keys: tuple[ApiKey, ...] = ()

    def __call__(self) -> tuple[ApiKey, ...]:
        """The keys."""
        try:
            status = self._path.stat()
        except OSError:
            status = None
        mark = (
            () if status is None else (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        )
        if not mark or mark != self._seen:
            self._seen, self._keys = (), ()
            self._keys = read_keys(self._path)
            self._seen = mark
        return self._keys


def write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    """Put ``keys`` in place of what is there, whole, readable by this user only."""
    data = json.dumps({"v": 1, "keys": [asdict(key) for key in keys]}, indent=1).encode()
    durable.write_file(path, data, 0o600)


@contextmanager
def changing(path: Path) -> Generator[None]:
    """Keep other changes of the key file out: one that read it before a revocation would write the old key back."""
    descriptor = os.open(
        path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_private(path: Path, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode) or mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise ServingError(
            f"expected a key file that only this user can read, got mode {mode:04o} of user {status.st_uid}; "
            f"chmod 600 {path}, and chown it to the gateway's user"
        )


def _keys(value: Any) -> tuple[ApiKey, ...]:
    if set(value) != {"v", "keys"} or value["v"] != 1 or not isinstance(value["keys"], list):
        raise ValueError("another object")
    keys = tuple(_key(one) for one in cast("list[Any]", value["keys"]))
    if len({key.id for key in keys}) != len(keys) or len({key.sha256 for key in keys}) != len(keys):
        raise ValueError("a key twice")
    return keys


def _key(value: Any) -> ApiKey:
    key = ApiKey(value["id"], value["sha256"], tuple(value["channels"]), value["metrics"])
    if set(value) != {"id", "sha256", "channels", "metrics"} or type(key.metrics) is not bool:
        raise ValueError("another object")
    if not _ID.fullmatch(key.id) or not _HEX.fullmatch(key.sha256) or not all(map(is_channel, key.channels)):
        raise ValueError("another key")
    return key
