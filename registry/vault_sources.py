"""Where a vault's master key is, and what may be done with it.

    EFFACE_VAULT_KEY_SOURCE    environment | file | keyring | kms:NAME
    EFFACE_VAULT_KEY           base64 of 32 bytes; being set, it is the source where none is named
    EFFACE_VAULT_KEY_FILE      a file with such text, of mode 0600; otherwise `master.key` in the vault's folder

`master.key` and the keyring's password are made with a new vault; a key in the environment, in a file that is
named, or in a KMS is yours to make. A provider only wraps and unwraps keys of 32 bytes, so with a KMS the
master key never comes here. `describe()` names source and key, `file:5b1c0de2a4f39e77`: each entry carries
the name of what wrapped it, so that a key from before a rotation is told apart from damage.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from . import durable, vault_files
from .errors import InvalidInput, NotFound

VARIABLE = "EFFACE_VAULT_KEY"
NEXT_VARIABLE = "EFFACE_VAULT_NEW_KEY"
FILE_VARIABLE = "EFFACE_VAULT_KEY_FILE"
SOURCE_VARIABLE = "EFFACE_VAULT_KEY_SOURCE"
MASTER_FILE = "master.key"
NEXT_FILE = "master.next"
"""The key that a rotation to `file` moves to; it becomes `master.key` when everything is under it."""
KEY_BYTES = 32
SOURCES = f"Set {VARIABLE}, {FILE_VARIABLE} or {SOURCE_VARIABLE} to the key it was made with."


@runtime_checkable
class KeyProvider(Protocol):
    """A master key as the vault sees it. What these methods raise must not repeat a key."""

    def wrap(self, key: bytes) -> bytes:
        """A 32-byte key, encrypted."""
        ...

    def unwrap(self, wrapped: bytes) -> bytes:
        """What `wrap` encrypted. Raises ValueError for anything else: damage, or another key's work."""
        ...

    def describe(self) -> str:
        """`source:key`, without secrets: at most 200 visible ASCII characters, the same at each call."""
        ...


@dataclass(frozen=True, slots=True)
class LocalKey:
    """A master key that this process holds; wraps by AES key wrap (RFC 3394)."""

    source: str
    key: bytes = field(repr=False)

    def wrap(self, key: bytes) -> bytes:
        """A key under this one."""
        from cryptography.hazmat.primitives.keywrap import aes_key_wrap

        return aes_key_wrap(self.key, key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """What `wrap` wrapped. Raises ValueError."""
        from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

        try:
            return aes_key_unwrap(self.key, wrapped)
        except InvalidUnwrap as error:
            raise ValueError("not wrapped by this key") from error

    def describe(self) -> str:
        """`source:` and 64 bits of a keyed hash, which says nothing about a random key."""
        name = hmac.new(self.key, b"efface vault key id v1", hashlib.sha256).hexdigest()
        return f"{self.source}:{name[:16]}"


def same_key(one: str, other: str) -> bool:
    """Whether two descriptions name one key, be it from two sources (a file put into the environment)."""
    return one.partition(":")[2] == other.partition(":")[2]


def find(folder: Path) -> KeyProvider:
    """The master key of the vault in `folder`. Raises NotFound, or InvalidInput when it is no key."""
    if (source := _chosen()).startswith("kms:"):
        from . import vault_kms

        return vault_kms.load(source.removeprefix("kms:"))
    if (text := _text(folder, source)) is None:
        raise NotFound("the vault's master key", f"none ({source})", SOURCES)
    return LocalKey(source, checked(text))


def find_or_make(folder: Path) -> KeyProvider:
    """`find` for a vault that has no keys yet: its folder is there, and a missing `master.key` is made."""
    source = _chosen()
    if source == "keyring":
        from . import vault_keyring

        vault_keyring.prepare(folder)
    elif source == "file" and FILE_VARIABLE not in os.environ and not (folder / MASTER_FILE).exists():
        write_key(folder / MASTER_FILE, secrets.token_bytes(KEY_BYTES))
    return find(folder)


def check(folder: Path) -> None:
    """Raise what `find_or_make` would, before anything is made."""
    if (source := _chosen()) == "keyring":
        from . import vault_keyring

        vault_keyring.probe()
    try:
        find(folder)
    except NotFound:
        if source != "keyring" and (source != "file" or FILE_VARIABLE in os.environ):
            raise


def half_rotated(folder: Path) -> Iterator[KeyProvider]:
    """The key of a rotation that did not end, where it lies beside the one `find` gives."""
    source = _chosen()
    if source == "file" and vault_files.exists(folder / NEXT_FILE):
        yield LocalKey("file", checked(vault_files.read_secret(folder / NEXT_FILE)))
    if source == "keyring":
        from . import vault_keyring

        if (text := vault_keyring.read_next(folder)) is not None:
            yield LocalKey("keyring", checked(text))


def write_key(path: Path, key: bytes) -> None:
    """A master key as a file of mode 0600."""
    durable.write_file(path, base64.b64encode(key), 0o600)


def checked(text: str) -> bytes:
    """The 32 bytes of a master key's text. Raises InvalidInput."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        expected = f"base64 of {KEY_BYTES} bytes as the master key"
        raise InvalidInput(expected, "another value", "Make one with `openssl rand -base64 32`.")
    return key


def _chosen() -> str:
    named = os.environ.get(SOURCE_VARIABLE)
    if named is None:
        return "environment" if VARIABLE in os.environ else "file"
    if named in ("environment", "file", "keyring") or (named.startswith("kms:") and len(named) > 4):
        return named
    expected = f"environment, file, keyring or kms:NAME in {SOURCE_VARIABLE}"
    raise InvalidInput(expected, "another value", "Set it to one of these, or unset it.")


def _text(folder: Path, source: str) -> str | None:
    if source == "environment":
        return os.environ.get(VARIABLE)
    if source == "keyring":
        from . import vault_keyring

        return vault_keyring.read(folder)
    named, own = os.environ.get(FILE_VARIABLE), folder / MASTER_FILE
    path = own if named is None else Path(named)
    text = _read(path, follow=named is not None)
    if text is not None and destroyed(text) and path.resolve() == own.resolve():
        return _read(folder / NEXT_FILE) or text
    return text


def destroyed(text: str) -> bool:
    """Whether a key file's text was overwritten: a rotation, or the end of one, was cut off there."""
    return "\0" in text


def _read(path: Path, *, follow: bool = False) -> str | None:
    try:
        return vault_files.read_secret(path, follow=follow)
    except FileNotFoundError:
        return None
