"""The vault's files as bytes: sealing a payload under a data key that a provider wraps, and opening it.

Version 2, written now: one line of canonical JSON, a newline, then the ciphertext and its tag.

    {"key":…,"name":"req-000001","nonce":…,"v":2,"wrapped_by":"file:5b1c0de2a4f39e77"}

`key` is the data key as `wrapped_by` wrapped it. The line is the associated data of the AES-256-GCM ciphertext,
so none of it can be changed, nor one request's file be put in another's place.

Version 1, read only: one JSON object with the ciphertext in base64; it does not say what wrapped its key.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from .canon import canonical, parse
from .errors import BrokenRegistry, InvalidInput, RegistryError
from .vault_sources import KEY_BYTES, SOURCES, KeyProvider, same_key

HEADER_LIMIT = 16 * 1024
_NONCE_BYTES = 12
_TAG_BYTES = 16
_WRAPPER = re.compile(r"[\x21-\x7e]{1,200}")


class NotOurs(ValueError):
    """No key at hand opens the entry. `wrapped_by` says which would; None for version 1, which does not."""

    def __init__(self, wrapped_by: str | None) -> None:
        super().__init__("wrapped by another key")
        self.wrapped_by = wrapped_by

    def error(self, name: str) -> RegistryError:
        """The error for people."""
        if self.wrapped_by is None:
            return damaged(name)
        expected = f"the key {self.wrapped_by}, by which {name} is wrapped"
        then = f"{SOURCES} If a rotation was cut off, run `efface vault rotate` again."
        return InvalidInput(expected, "another key", then)


@dataclass(frozen=True, slots=True)
class Entry:
    """A parsed entry, nothing of it authenticated yet."""

    wrapped: bytes
    wrapped_by: str | None
    nonce: bytes
    data: bytes | memoryview
    associated: bytes


def new_key() -> bytes:
    """A data key."""
    return secrets.token_bytes(KEY_BYTES)


def seal(name: str, key: bytes, payload: bytes, provider: KeyProvider) -> bytes:
    """An entry of version 2. At its peak this holds the payload, the ciphertext and the entry."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    header = canonical(
        {
            "v": 2,
            "name": name,
            "wrapped_by": provider.describe(),
            "key": encode(provider.wrap(key)),
            "nonce": encode(nonce),
        }
    )
    return b"\n".join((header, AESGCM(key).encrypt(nonce, payload, header)))


def unseal(name: str, data: bytes, providers: Iterable[KeyProvider]) -> tuple[bytes, bytes]:
    """An entry's data key and payload, by the first provider that opens it.

    Raises BrokenRegistry for a damaged entry, and NotOurs when none of the providers wrapped it.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    entry = read(name, data)
    key = _unwrapped(name, entry, providers)
    try:
        return key, AESGCM(key).decrypt(entry.nonce, entry.data, entry.associated)
    except (InvalidTag, ValueError) as error:
        raise damaged(name) from error


def read(name: str, data: bytes) -> Entry:
    """Parse an entry, strictly. Raises BrokenRegistry."""
    end = data.find(b"\n", 0, HEADER_LIMIT)
    try:
        return _version_1(name, data) if end < 0 else _version_2(name, data, end)
    except (RegistryError, ValueError) as error:
        raise damaged(name) from error


def wrapper(name: str, start: bytes) -> str | None:
    """Which key wrapped an entry, from its first `HEADER_LIMIT` bytes; None for version 1."""
    end = start.find(b"\n")
    return None if end < 0 else read(name, start).wrapped_by


def encode(data: bytes) -> str:
    """Base64 text."""
    return base64.b64encode(data).decode("ascii")


def decode(text: object) -> bytes:
    """The bytes of what `encode` wrote. Raises ValueError for other text, spare bits in the padding too."""
    try:
        data = base64.b64decode(cast(str, text), validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError("not base64") from error
    if encode(data) != text:
        raise ValueError("not the base64 that we write")
    return data


def damaged(name: str) -> BrokenRegistry:
    """An entry is not what was written."""
    then = "Restore the vault from a backup; or, if its shredding was cut off, shred it again."
    return BrokenRegistry(f"a readable vault entry for {name}", "a damaged one", then)


def _unwrapped(name: str, entry: Entry, providers: Iterable[KeyProvider]) -> bytes:
    for provider in providers:
        try:
            key = provider.unwrap(entry.wrapped)
        except ValueError:
            if entry.wrapped_by is not None and same_key(entry.wrapped_by, provider.describe()):
                raise damaged(name) from None
            continue
        if len(key) != KEY_BYTES:
            raise damaged(name)
        return key
    raise NotOurs(entry.wrapped_by)


def _version_1(name: str, data: bytes) -> Entry:
    fields = _fields(name, data, 1, {"v", "request", "key", "nonce", "data"}, "request")
    associated = f"efface vault v1 {name}".encode()
    return _entry(fields, None, decode(fields["data"]), associated)


def _version_2(name: str, data: bytes, end: int) -> Entry:
    line = data[:end]
    fields = _fields(name, line, 2, {"v", "name", "wrapped_by", "key", "nonce"}, "name")
    wrapped_by = fields["wrapped_by"]
    if canonical(fields) != line or not isinstance(wrapped_by, str) or not _WRAPPER.fullmatch(wrapped_by):
        raise ValueError("not the header that we write")
    return _entry(fields, wrapped_by, memoryview(data)[end + 1 :], line)


def _fields(name: str, text: bytes, version: int, keys: set[str], named: str) -> Mapping[str, Any]:
    fields = parse(text)
    if not isinstance(fields, Mapping) or set(fields) != keys or fields[named] != name:
        raise ValueError("other fields")
    if type(fields["v"]) is not int or fields["v"] != version:
        raise ValueError("another version")
    return fields


def _entry(fields: Mapping[str, Any], by: str | None, data: bytes | memoryview, associated: bytes) -> Entry:
    nonce = decode(fields["nonce"])
    if len(nonce) != _NONCE_BYTES or len(data) < _TAG_BYTES:
        raise ValueError("another length")
    return Entry(decode(fields["key"]), by, nonce, data, associated)
