"""The keys of a vault: the master key, wherever it is, and the subject key that it wraps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import durable, vault_entries, vault_files, vault_id, vault_sources
from .errors import BrokenRegistry, InvalidInput, NotFound, RegistryError
from .vault_entries import NotOurs
from .vault_sources import KeyProvider

SUBJECT_FILE = "subject.key"
_SUBJECT = "subject"
_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of the vault in `folder`; `vault_sources` says where the master key is looked for."""

    folder: Path

    def at_hand(self) -> bool:
        """Whether there is a master key, right or wrong."""
        try:
            self.provider()
        except NotFound:
            return False
        except RegistryError:
            return True
        return True

    def prepare(self) -> None:
        """Check the keys, or make the folder and what is missing. Raises before it writes anything."""
        vault_files.check_folder(self.folder)
        if self.complete():
            self.subject()
            vault_id.make(self.folder)  # those of before vaults had one
            return
        if any(self.folder.glob("req-*")):
            raise BrokenRegistry(f"the vault's {SUBJECT_FILE}", "none", "Restore the vault from a backup.")
        vault_sources.check(self.folder)
        durable.make_folder(self.folder, 0o700)
        vault_id.make(self.folder)
        self.write_subject(vault_entries.new_key(), vault_sources.find_or_make(self.folder))

    def complete(self) -> bool:
        """Whether the keys have been made: the subject key is written last."""
        return vault_files.exists(self.folder / SUBJECT_FILE)

    def provider(self) -> KeyProvider:
        """The master key. Raises NotFound, or InvalidInput when it is no key."""
        return vault_sources.find(self.folder)

    def providers(self) -> Iterator[KeyProvider]:
        """The master key; then that of a rotation which has not ended, if it is at hand too."""
        yield self.provider()
        yield from vault_sources.half_rotated(self.folder)

    def subject(self) -> bytes:
        """The key of subject references. InvalidInput when the master key is not the one it was made with."""
        return self.subject_by(self.providers())

    def subject_by(self, providers: Iterator[KeyProvider]) -> bytes:
        """The same, by given keys. BrokenRegistry when it was damaged."""
        then = f"{vault_sources.SOURCES} Or restore its {SUBJECT_FILE}."
        try:
            data = vault_files.read_regular(self.folder / SUBJECT_FILE, _LIMIT)
            return _subject(data, providers)
        except NotOurs as error:
            expected = f"the vault's own master key{_named(error)}"
            raise InvalidInput(expected, "another key", then) from error
        except (FileNotFoundError, ValueError, BrokenRegistry) as error:
            raise BrokenRegistry(f"the vault's {SUBJECT_FILE}", "none or a damaged one", then) from error

    def check_form(self) -> None:
        """Raise BrokenRegistry unless the subject key's file could be one. Needs no key."""
        try:
            data = vault_files.read_regular(self.folder / SUBJECT_FILE, _LIMIT)
            if data.startswith(b"{"):
                vault_entries.read(_SUBJECT, data)
            elif not vault_entries.decode(data.decode("ascii")):
                raise ValueError("nothing")
        except (FileNotFoundError, ValueError, BrokenRegistry) as error:
            then = "Restore the vault from a backup."
            raise BrokenRegistry(f"the vault's {SUBJECT_FILE}", "none or a damaged one", then) from error

    def write_subject(self, subject: bytes, provider: KeyProvider) -> None:
        """Put the subject key under a master key."""
        data = vault_entries.seal(_SUBJECT, vault_entries.new_key(), subject, provider)
        durable.write_file(self.folder / SUBJECT_FILE, data, 0o600)


def _subject(data: bytes, providers: Iterator[KeyProvider]) -> bytes:
    """Version 1 is the wrapped key in base64 and nothing else, so damage looks like another master key."""
    if data.startswith(b"{"):
        return vault_entries.unseal(_SUBJECT, data, providers)[1]
    wrapped = vault_entries.decode(data.decode("ascii"))
    for provider in providers:
        try:
            return provider.unwrap(wrapped)
        except ValueError:
            continue
    raise NotOurs(None)


def _named(error: NotOurs) -> str:
    return "" if error.wrapped_by is None else f" ({error.wrapped_by})"
