"""The vault: what a request asks to forget, encrypted, in a file of its own per request.

Each request has a random 256-bit data key. It encrypts the payload (AES-256-GCM, the request id as associated
data), keys the commitment that stands in the ledger, and is itself stored wrapped (AES key wrap, RFC 3394) by
the master key. Destroying the file destroys both the rows and the means to test a guess against the ledger.

The master key is `EFFACE_VAULT_KEY` (base64 of 32 bytes), or else the file `master.key` beside the
ciphertexts, made at the first use.

What this protects: the rows are in no database page, blob, log or backup of those; a copy of the registry
without the key says nothing about them beyond their length. What it does not: with `master.key` in the
folder, whoever copies the folder has the key too. Then it separates data from records, and no more; keep the
key in the environment if the disk is not trusted. It protects nothing from a process of the same
user.

Reading and writing the entries imports `cryptography` only then: the registry opens without it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import durable, vault_keys
from .canon import canonical, parse
from .errors import BrokenRegistry, NotFound, RegistryError
from .vault_keys import Keys, decode, encode

_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Vault:
    """The vault in `folder` (0700, made at the first write). Write only under the registry's write lock."""

    folder: Path

    @property
    def keys(self) -> Keys:
        """Its master and subject keys."""
        return Keys(self.folder)

    def put(self, request_id: str, payload: bytes) -> str:
        """Encrypt `payload` for a request and return its commitment, `hmac-sha256:<hex>`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.keys.prepare()
        key, nonce = secrets.token_bytes(vault_keys.KEY_BYTES), secrets.token_bytes(_NONCE_BYTES)
        entry: dict[str, Any] = {
            "v": 1,
            "request": request_id,
            "key": encode(self.keys.wrap(key)),
            "nonce": encode(nonce),
            "data": encode(AESGCM(key).encrypt(nonce, payload, _associated(request_id))),
        }
        durable.write_file(self.path(request_id), canonical(entry), 0o600)
        return _commitment(key, payload)

    def read(self, request_id: str) -> tuple[bytes, str]:
        """A request's payload and the commitment recomputed from it.

        Raises NotFound without an entry or a key, InvalidInput for another vault's key, BrokenRegistry for a
        damaged entry.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        entry = self._entry(request_id)
        self.keys.subject()  # tells a wrong key from a damaged entry
        try:
            key = self.keys.unwrap(decode(entry["key"]))
            data, nonce = decode(entry["data"]), decode(entry["nonce"])
            payload = AESGCM(key).decrypt(nonce, data, _associated(request_id))
        except (InvalidTag, KeyError, TypeError, ValueError) as error:
            raise _damaged(request_id) from error
        return payload, _commitment(key, payload)

    def subject(self, clear: str) -> str:
        """`hmac-sha256:<hex>` of a subject's name under the vault's subject key: equal for equal names."""
        name = unicodedata.normalize("NFC", clear.strip()).encode()
        return "hmac-sha256:" + hmac.new(self.keys.subject(), name, hashlib.sha256).hexdigest()

    def has(self, request_id: str) -> bool:
        """Whether there is an entry for the request."""
        return self.path(request_id).is_file()

    def discard(self, request_id: str) -> None:
        """Delete the entry of a request that came to nothing."""
        self.path(request_id).unlink(missing_ok=True)

    def path(self, request_id: str) -> Path:
        """Where the request's entry is or would be."""
        return self.folder / f"{request_id}.json"

    def _entry(self, request_id: str) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], parse(self.path(request_id).read_bytes()))
        except FileNotFoundError as error:
            then = "Restore the vault folder from a backup, or open the request again."
            raise NotFound(f"a vault entry for {request_id}", "none", then) from error
        except RegistryError as error:
            raise _damaged(request_id) from error


def _commitment(key: bytes, payload: bytes) -> str:
    """Keyed by a key derived from the data key: one key must not serve two purposes."""
    derived = hmac.new(key, b"efface request commitment v1", hashlib.sha256).digest()
    return "hmac-sha256:" + hmac.new(derived, payload, hashlib.sha256).hexdigest()


def _associated(request_id: str) -> bytes:
    return f"efface vault v1 {request_id}".encode()


def _damaged(request_id: str) -> BrokenRegistry:
    expected = f"a readable vault entry for {request_id}"
    return BrokenRegistry(expected, "a damaged one", "Restore the vault from a backup.")
