"""The vault: what a request asks to forget, encrypted, in a file of its own per request.

Each request has a random 256-bit data key. It encrypts the payload (AES-256-GCM), keys the commitment that
stands in the ledger, and is itself stored wrapped by the master key (`vault_entries` has the format,
`vault_sources` the places a master key may be in: environment, file, OS keyring, KMS). Destroying the file
destroys both the rows and the means to test a guess against the ledger.

    <folder>/req-000001.json            an entry
    <folder>/req-000001.shredded        that there was one, and when it was destroyed
    <folder>/req-000001.orphan-1.json   an entry that was in the way of another with its id (`Vault.leftover`)
    <folder>/subject.key                the key of subject references, wrapped as well
    <folder>/vault.id                   the vault's name, by which the registry knows it (`vault_binding`)
    <folder>/master.key                 the master key, unless it is elsewhere

What this protects: the rows are in no database page, blob, log or backup of those; a copy of the registry
without the key says nothing about them beyond their length. What it does not: with `master.key` in the
folder, whoever copies the folder has the key too. Then it separates data from records, and no more; keep the
key elsewhere if the disk is not trusted. It protects nothing from a process of the same user.

Reading and writing the entries imports `cryptography` only then: the registry opens without it.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from . import durable, vault_entries, vault_files, vault_tombs
from .errors import BrokenRegistry, Conflict, InvalidInput, NotFound
from .vault_entries import NotOurs
from .vault_keys import Keys
from .vault_tombs import Tombstone

DEFAULT_LIMIT = 1 << 30
_REQUEST = re.compile(r"req-[0-9]{6,18}")
_ENTRIES = "req-*.json"


@dataclass(frozen=True, slots=True)
class Vault:
    """The vault in `folder` (0700, made at the first write). Write only under the registry's write lock.

    `limit` is the size of the largest payload, in bytes. Whatever takes a request's id raises InvalidInput for
    one that is not `req-` and six or more digits, and for a folder that others may enter.
    """

    folder: Path
    limit: int = DEFAULT_LIMIT

    @property
    def size_limit(self) -> int:
        """The size of the largest entry, in bytes."""
        return self.limit // 3 * 4 + vault_entries.HEADER_LIMIT

    @property
    def keys(self) -> Keys:
        """Its master and subject keys."""
        return Keys(self.folder)

    def put(self, request_id: str, payload: bytes) -> str:
        """Encrypt `payload` for a request and return its commitment, `hmac-sha256:<hex>`.

        Raises InvalidInput for a payload beyond the limit, Conflict for a request that was shredded.
        """
        path = self.path(request_id)
        if len(payload) > self.limit:
            expected = f"a payload of at most {self.limit} bytes"
            raise InvalidInput(expected, f"{len(payload)}", "Split the request.")
        self.keys.prepare()
        if self.tombstone(request_id) is not None:
            then = "The vault is newer than the ledger: restore the newer ledger."
            raise Conflict(f"{request_id} not to be shredded", "a shredded one", then)
        key = vault_entries.new_key()
        durable.write_file(path, vault_entries.seal(request_id, key, payload, self.keys.provider()), 0o600)
        return _commitment(key, payload)

    def leftover(self, request_id: str, payload: bytes) -> str | None:
        """Make way for `put` where an entry has the id of a request that no event names; never destroys one.

        An entry of this very payload (a call that was cut off is repeated) stays, and this is its commitment. Any
        other may be a request of a newer ledger: it becomes `<id>.orphan-<n>.json`, which nothing reads or destroys.
        """
        path = self.path(request_id)
        refused = len(payload) > self.limit or self.tombstone(request_id) is not None  # put says why
        if refused or not vault_files.exists(path):
            return None
        try:
            key, stored = self._open(request_id)
        except (BrokenRegistry, InvalidInput):  # damaged, or under another key
            stored = key = None
        if key is not None and stored is not None and hmac.compare_digest(stored, payload):
            return _commitment(key, stored)
        self._set_aside(path)
        return None

    def read(self, request_id: str) -> tuple[bytes, str]:
        """A request's payload and the commitment recomputed from it.

        Raises NotFound without an entry or a key, or after it was shredded; InvalidInput for another vault's
        key or one from before a rotation; BrokenRegistry for a damaged entry.
        """
        key, payload = self._open(request_id)
        return payload, _commitment(key, payload)

    def confirm(self, request_id: str, payload: bytes) -> bool:
        """Whether `payload` is the request's, in constant time. Raises what `read` raises.

        It asks the vault, whose entry may have been replaced by one of the same request: for what the ledger
        says, compare the commitment that `read` returns.
        """
        key, stored = self._open(request_id)
        return hmac.compare_digest(_commitment(key, stored), _commitment(key, payload))

    def row_key(self, request_id: str) -> bytes:
        """A key for hashes of single rows of a request, which dies with its data. Raises what `read` raises."""
        key, _ = self._open(request_id)
        return hmac.new(key, b"efface row hashes 1", hashlib.sha256).digest()

    def shared_row_key(self) -> bytes:
        """A key for hashes of rows that no request asks to forget: the same as long as the vault is."""
        return hmac.new(self.keys.subject(), b"efface shared row hashes 1", hashlib.sha256).digest()

    def subject(self, clear: str) -> str:
        """`hmac-sha256:<hex>` of a subject's name under the vault's subject key: equal for equal names.

        Equal are names that Unicode calls canonically equivalent (NFC), but for white space at the ends.
        Capitals count: `Ana@x.org` and `ana@x.org` may be two mailboxes (RFC 5321, 2.4), so folding them is
        for the caller, who knows what kind of name it is.
        """
        try:
            name = unicodedata.normalize("NFC", clear.strip()).encode()
        except UnicodeEncodeError:  # its text quotes the name
            raise InvalidInput("a subject as Unicode text", "lone surrogates", "Re-type the name.") from None
        return "hmac-sha256:" + hmac.new(self.keys.subject(), name, hashlib.sha256).hexdigest()

    def shred(self, request_id: str, *, at: datetime | None = None) -> Tombstone:
        """Destroy a request's entry for good, and say so in a tombstone. Needs no key. Done twice is done once.

        Unfinished files of crashed writes, which may hold the same wrapped key, go first; then the entry is
        overwritten with zeros, the tombstone written, the entry deleted, each waiting for the disk. Cut off at
        any moment, it ends when it is called again; the tombstone comes only after the zeros.

        What that is worth: a journalling or copy-on-write filesystem, a snapshot, a backup and the spare blocks
        of an SSD may keep the old bytes, and no program can reach them. What remains then is ciphertext and a
        wrapped key: nobody can read it who does not also have the master key. So the erasure is
        cryptographic, and holds if no copy of the entry survives together with the master key (both lie in
        one folder, and one backup, with `master.key`). The stronger step, when the last entry is shredded or
        everything else has been rotated to another key: destroy the master key, or the KMS's key.

        Raises NotFound when there is neither an entry nor a tombstone, BrokenRegistry for a link in its place.
        """
        path = self.path(request_id)
        vault_files.check_folder(self.folder)
        vault_files.sweep(self.folder)
        if not vault_files.exists(path):
            return vault_tombs.read(self.folder, request_id) or self._missing(request_id)
        try:
            vault_files.zero(path)
        except ValueError as error:  # a link, whose target is not ours to overwrite
            raise vault_entries.damaged(request_id) from error
        stone = vault_tombs.place(self.folder, request_id, at or datetime.now(UTC))
        vault_files.destroy(path)
        return stone

    def mark(self, request_id: str, *, at: datetime) -> Tombstone:
        """The tombstone of an entry that is gone: the one that is there, or a new one for a lost or damaged one."""
        vault_files.check_folder(self.folder)
        if vault_files.exists(self.path(request_id)):
            raise Conflict(f"no vault entry for {request_id}", "an entry", "Shred it.")
        return vault_tombs.place(self.folder, request_id, at)

    def tombstone(self, request_id: str) -> Tombstone | None:
        """When the request's entry was shredded; None when it was not. BrokenRegistry for a damaged one."""
        self.path(request_id)
        return vault_tombs.read(self.folder, request_id)

    def has(self, request_id: str) -> bool:
        """Whether there is an entry for the request; False for what is no request's id."""
        return bool(_REQUEST.fullmatch(request_id)) and self.path(request_id).is_file()

    def discard(self, request_id: str) -> None:
        """Destroy the entry of a request that came to nothing: no tombstone."""
        path = self.path(request_id)
        try:
            vault_files.destroy(path)
        finally:
            path.unlink(missing_ok=True)  # where it cannot be overwritten: a full disk

    def requests(self) -> list[str]:
        """The ids of all requests with an entry, sorted; not of those whose shredding was cut off."""
        found = {path.name.removesuffix(".json") for path in self.folder.glob(_ENTRIES)}
        found.difference_update(vault_tombs.shredded(self.folder))
        return sorted(name for name in found if _REQUEST.fullmatch(name))

    def path(self, request_id: str) -> Path:
        """Where the request's entry is or would be."""
        if not _REQUEST.fullmatch(request_id):
            expected = "a request's id: req- and at least six digits"
            raise InvalidInput(expected, "other text", "List them with `efface request list`.")
        return self.folder / f"{request_id}.json"

    def stored(self, request_id: str) -> bytes:
        """The bytes of an entry as they are on disk. Raises NotFound, BrokenRegistry for what is no file."""
        path = self.path(request_id)
        vault_files.check_folder(self.folder)
        if (stone := self.tombstone(request_id)) is not None:
            came = f"one that was shredded at {stone.at}"
            raise NotFound(f"a vault entry for {request_id}", came, "Nothing brings it back.")
        try:
            return vault_files.read_regular(path, self.size_limit)
        except FileNotFoundError:
            return self._missing(request_id)
        except ValueError as error:
            raise vault_entries.damaged(request_id) from error

    def _set_aside(self, path: Path) -> None:
        names = (path.with_suffix(f".orphan-{number}.json") for number in itertools.count(1))
        path.rename(next(name for name in names if not vault_files.exists(name)))
        durable.sync_folder(self.folder)

    def _open(self, request_id: str) -> tuple[bytes, bytes]:
        data = self.stored(request_id)
        try:
            return vault_entries.unseal(request_id, data, self.keys.providers())
        except NotOurs as error:
            if error.wrapped_by is None:
                self.keys.subject()  # raises for a wrong key, which an entry of version 1 cannot tell
            raise error.error(request_id) from error

    def _missing(self, request_id: str) -> NoReturn:
        then = "Restore the vault folder from a backup, or open the request again."
        raise NotFound(f"a vault entry for {request_id}", "none", then)


def _commitment(key: bytes, payload: bytes) -> str:
    """Keyed by a key derived from the data key: one key must not serve two purposes."""
    derived = hmac.new(key, b"efface request commitment v1", hashlib.sha256).digest()
    return "hmac-sha256:" + hmac.new(derived, payload, hashlib.sha256).hexdigest()
