"""What `verify` looks at in the vault's folder, with its master key and without, and files that belong to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import vault_binding, vault_entries
from .blobs import Blobs
from .errors import RegistryError
from .registry import Registry
from .snapshot import said
from .tables import Row
from .types import Problem
from .vault_id import ID_FILE
from .vault_keys import SUBJECT_FILE
from .vault_sources import MASTER_FILE, NEXT_FILE

_KEYS = (SUBJECT_FILE, MASTER_FILE, NEXT_FILE, ID_FILE)


@dataclass(frozen=True, slots=True)
class VaultCheck:
    """What is wrong in a vault, and how many entries were opened to find out, of those that there should be."""

    problems: Sequence[Problem]
    opened: int
    unopened: int


def check(reg: Registry, requests: Sequence[Row], *, deep: bool, vault: str | None = None) -> VaultCheck:
    """Look at the entry of each request; `deep` reads each, and opens it where the master key is at hand.

    `vault` is the id of the one that the events name.
    """
    wanted = sum(row["shredding_at"] is None and row["shredded_at"] is None for row in requests)
    if not reg.vault.folder.is_dir():
        return VaultCheck((), 0, wanted)
    key = deep and reg.vault.keys.at_hand()
    problems = [*_id_problems(reg, vault), *_subject_problems(reg, key)]
    opened = 0
    for row in requests:
        try:
            found = _entry_problem(reg, row, deep)
            if found is None and key and row["shredding_at"] is None and row["shredded_at"] is None:
                opened += 1
                found = _payload_problem(reg, row)
        except (RegistryError, OSError) as error:  # a damaged mark, or an id that an event was given
            found = Problem("vault-damaged", row["id"], "an entry that can be looked at", said(error))
        problems += [] if found is None else [found]
    return VaultCheck(problems, opened, wanted - opened)


def strays(reg: Registry, requests: Sequence[Row]) -> Iterator[str]:
    """`vault/NAME` and `blobs/NAME`: files that are neither entry nor mark of a request, key, blob nor leftover.

    Among them are entries set aside (`Vault.leftover`), and those of an `open_request` that was cut off.
    """
    known = {f"{row['id']}{suffix}" for row in requests for suffix in (".json", ".shredded")}
    for name in _files(reg.vault.folder):
        if name not in known and name not in _KEYS:
            yield _shown(f"vault/{name}")
    if isinstance(reg.blobs, Blobs):
        for name in _files(reg.blobs.folder):
            if not reg.blobs.owns(name):
                yield _shown(f"blobs/{name}")


def _id_problems(reg: Registry, wanted: str | None) -> Iterator[Problem]:
    """Another vault than the registry's: a second host with one of its own, or a folder mixed up."""
    try:
        found = vault_binding.identity(reg.vault)
    except (RegistryError, OSError) as error:
        yield Problem("vault-damaged", ID_FILE, "the id of the vault", said(error))
        return
    if wanted is not None and found is not None and found != wanted:
        yield Problem("vault-other", ID_FILE, f"the vault {wanted}", found)


def _subject_problems(reg: Registry, key: bool) -> Iterator[Problem]:
    """No new request can be opened without the subject key, and no earlier one of a subject be found."""
    if not any(reg.vault.folder.glob("req-*")):
        return
    wanted = "the key of subject references"
    if not reg.vault.keys.complete():
        yield Problem("vault-missing", SUBJECT_FILE, wanted, "none")
        return
    try:
        reg.vault.keys.check_form()
        if key:
            reg.vault.keys.subject()
    except (RegistryError, OSError) as error:
        yield Problem("vault-damaged", SUBJECT_FILE, wanted, said(error))


def _entry_problem(reg: Registry, row: Row, deep: bool) -> Problem | None:
    """Between the events that begin and end a shredding the entry may be whole, zeros or gone."""
    request_id = row["id"]
    here, mark = reg.vault.has(request_id), reg.vault.tombstone(request_id) is not None
    if row["shredded_at"] is not None:
        if here or not mark:
            came = "an entry in the vault" if here else "neither entry nor mark"
            return Problem("vault-damaged", request_id, "the mark of shredded rows alone", came)
        return None
    if row["shredding_at"] is not None:
        return None
    if mark:
        came = "the mark that they are shredded, without an event"
        return Problem("vault-missing", request_id, "its rows", came)
    if not here:
        return Problem("vault-missing", request_id, "an entry in the vault", "none")
    if deep:
        vault_entries.read(request_id, reg.vault.stored(request_id))
    return None


def _payload_problem(reg: Registry, row: Row) -> Problem | None:
    try:
        found = reg.vault.read(row["id"])[1]
    except (RegistryError, OSError) as error:
        found = said(error)
    if found == row["commitment"]:
        return None
    return Problem("vault-damaged", row["id"], row["commitment"], found)


def _files(folder: Path) -> Iterator[str]:
    """Names below a folder, sorted, with `/`; links are names, and not followed."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*files, *links]):
            yield (here / name).relative_to(folder).as_posix()


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
