"""Tombstones: that a vault entry was shredded, and when. No text, no key, no length."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from . import durable, vault_files
from .canon import canonical, parse, timestamp
from .errors import BrokenRegistry, RegistryError

_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The entry of `request_id` was destroyed `at` (UTC, RFC 3339)."""

    request_id: str
    at: str


def read(folder: Path, request_id: str) -> Tombstone | None:
    """A request's tombstone; None without. BrokenRegistry for one that we did not write."""
    try:
        data = vault_files.read_regular(_path(folder, request_id), _LIMIT)
        return _parsed(request_id, data)
    except FileNotFoundError:
        return None
    except (RegistryError, ValueError) as error:
        then = "Shred it again, or restore the vault from a backup."
        raise BrokenRegistry(f"the tombstone of {request_id}", "a damaged one", then) from error


def place(folder: Path, request_id: str, at: datetime) -> Tombstone:
    """Write a request's tombstone durably, unless it has one: the first moment counts."""
    try:
        if (found := read(folder, request_id)) is not None:
            return found
    except BrokenRegistry:
        pass  # replaced: it stood for an entry that is only now destroyed
    stone = Tombstone(request_id, timestamp(at))
    durable.write_file(_path(folder, request_id), _bytes(stone), 0o600)
    return stone


def shredded(folder: Path) -> list[str]:
    """The ids of all requests with a tombstone, sorted."""
    return sorted(path.name.removesuffix(".shredded") for path in folder.glob("req-*.shredded"))


def _parsed(request_id: str, data: bytes) -> Tombstone:
    fields = parse(data)
    at = fields.get("shredded_at") if isinstance(fields, dict) else None
    if not isinstance(at, str):
        raise ValueError("other fields")
    stone = Tombstone(request_id, timestamp(datetime.fromisoformat(at)))
    if _bytes(stone) != data:
        raise ValueError("not the bytes that we write")
    return stone


def _bytes(stone: Tombstone) -> bytes:
    return canonical({"v": 1, "request": stone.request_id, "shredded_at": stone.at})


def _path(folder: Path, request_id: str) -> Path:
    return folder / f"{request_id}.shredded"
