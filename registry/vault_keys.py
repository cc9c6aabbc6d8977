"""The keys of a vault: the master key, and the subject key that it wraps."""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from . import durable
from .errors import BrokenRegistry, InvalidInput, NotFound

VARIABLE = "EFFACE_VAULT_KEY"
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the vault in `folder`. The environment's master key goes before that in `master.key`."""

    folder: Path

    def at_hand(self) -> bool:
        """Whether there is a master key, right or wrong."""
        return VARIABLE in os.environ or (self.folder / "master.key").is_file()

    def prepare(self) -> None:
        """Check the keys, or make the folder and what is missing. Raises before it writes anything."""
        if self.complete():
            self.subject()
            return
        if any(self.folder.glob("*.json")):
            raise BrokenRegistry("the vault's subject.key", "none", "Restore the vault from a backup.")
        given = self._given()
        durable.make_folder(self.folder, 0o700)
        master = given or secrets.token_bytes(KEY_BYTES)
        if given is None:
            durable.write_file(self.folder / "master.key", encode(master).encode(), 0o600)
        wrapped = encode(_wrap(master, secrets.token_bytes(KEY_BYTES)))
        durable.write_file(self.folder / "subject.key", wrapped.encode(), 0o600)

    def complete(self) -> bool:
        """Whether the keys have been made: the subject key is written last."""
        return (self.folder / "subject.key").is_file()

    def wrap(self, key: bytes) -> bytes:
        """`key` under the master key (AES key wrap, RFC 3394)."""
        return _wrap(self.master(), key)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The key that `wrap` wrapped. Raises ValueError when it was damaged or wrapped by another key."""
        from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

        try:
            return aes_key_unwrap(self.master(), wrapped)
        except InvalidUnwrap as error:
            raise ValueError("not wrapped by this key") from error

    def master(self) -> bytes:
        """The master key. Raises NotFound, or InvalidInput when it is no key."""
        if (key := self._given()) is None:
            raise NotFound("the vault's master key", "none", f"Set {VARIABLE} to the key it was made with.")
        return key

    def subject(self) -> bytes:
        """The key of subject references. InvalidInput when the master key is not the one it was made with."""
        try:
            return self.unwrap(decode((self.folder / "subject.key").read_text(encoding="ascii")))
        except (FileNotFoundError, ValueError) as error:
            then = f"Set {VARIABLE} to the key this vault was made with, or restore its subject.key."
            raise InvalidInput("the vault's own master key", "another key", then) from error

    def _given(self) -> bytes | None:
        if (text := os.environ.get(VARIABLE)) is None:
            path = self.folder / "master.key"
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        return None if text is None else _checked(text)


def encode(data: bytes) -> str:
    """Base64 text."""
    return base64.b64encode(data).decode("ascii")


def decode(text: str) -> bytes:
    """The bytes of base64 text. Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError("not base64") from error


def _checked(text: str) -> bytes:
    try:
        key = decode(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        expected = f"base64 of {KEY_BYTES} bytes in {VARIABLE} or master.key"
        raise InvalidInput(expected, "another value", "Make one with `openssl rand -base64 32`.")
    return key


def _wrap(master: bytes, key: bytes) -> bytes:
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap

    return aes_key_wrap(master, key)
