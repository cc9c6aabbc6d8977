"""Rotation: everything in a vault under another master key, the payloads and commitments unchanged.

Each file is replaced as a whole, requests first and the subject key last, so a rotation that is cut off leaves
every file whole under one of the two keys; the same call then goes on. Until then only a rotation to `file` or
to `keyring` leaves everything readable, for it keeps both keys at hand.

The old master key still opens old copies of the vault (backups, snapshots): a rotation is over when it is
destroyed. Call under the registry's write lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from . import durable, vault_entries, vault_files, vault_sources, vault_targets
from .errors import BrokenRegistry, Conflict, InvalidInput
from .vault import Vault
from .vault_entries import NotOurs
from .vault_sources import MASTER_FILE, NEXT_FILE, KeyProvider, LocalKey

Side = Literal["old", "new", "empty"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """What is still under the old key: requests in `todo`, and the subject key if `subject`.

    Those in `empty` hold nothing but zeros, from a shredding that was cut off, and are left to it.
    """

    old: str
    new: str
    todo: tuple[str, ...]
    done: tuple[str, ...]
    subject: bool
    empty: tuple[str, ...] = ()


def plan_rotation(vault: Vault, old: KeyProvider, new: KeyProvider) -> Rotation:
    """Open every entry under one of the two keys and say which are to be rewrapped. Writes nothing.

    Raises InvalidInput for an entry that neither key opens, BrokenRegistry for a damaged one.
    """
    vault_files.check_folder(vault.folder)
    subject = _subject_side(vault, old, new)
    sides = {name: _side(vault, name, old, new) for name in vault.requests()}
    return Rotation(
        old.describe(),
        new.describe(),
        tuple(name for name, side in sides.items() if side == "old"),
        tuple(name for name, side in sides.items() if side == "new"),
        subject == "old",
        tuple(name for name, side in sides.items() if side == "empty"),
    )


def rotate(vault: Vault, old: KeyProvider, new: KeyProvider) -> Rotation:
    """Put everything under `new`; returns the plan that was carried out. Call again after a crash."""
    plan = plan_rotation(vault, old, new)
    for name in plan.todo:
        key, payload = vault_entries.unseal(name, vault.stored(name), (old,))
        durable.write_file(vault.path(name), vault_entries.seal(name, key, payload, new), 0o600)
    _rewrap_aside(vault, old, new)
    if plan.subject:
        vault.keys.write_subject(vault.keys.subject_by(iter((old,))), new)
    vault_files.sweep(vault.folder)
    vault_targets.settle(vault.folder, new)
    return plan


def drop_master_file(vault: Vault) -> bool:
    """Destroy a `master.key` that a rotation to another place left behind; whether there was one.

    Raises Conflict unless the master key at hand is another one and opens everything.
    """
    path = vault.folder / MASTER_FILE
    if not vault_files.exists(path):
        return False
    text = vault_files.read_secret(path)
    if vault_sources.destroyed(text) and not vault_files.exists(vault.folder / NEXT_FILE):
        vault_files.destroy(path)  # a call that was cut off
        return True
    old = LocalKey("file", vault_sources.checked(text))
    new = vault.keys.provider()
    if vault_sources.same_key(old.describe(), new.describe()):
        raise Conflict("another master key than this file", "the same", "Rotate to another one first.")
    plan = plan_rotation(vault, old, new)
    if plan.subject or plan.todo:
        raise Conflict("nothing under the old key", "entries of it", "Run `efface vault rotate` again.")
    vault_files.destroy(path)
    return True


def _rewrap_aside(vault: Vault, old: KeyProvider, new: KeyProvider) -> None:
    """Entries that were set aside (`Vault.leftover`), as far as the old key opens them: no request names them."""
    for path in sorted(vault.folder.glob("req-*.orphan-*.json")):
        name = path.name.partition(".")[0]
        try:
            data = vault_files.read_regular(path, vault.size_limit)
            key, payload = vault_entries.unseal(name, data, (old,))
        except (BrokenRegistry, ValueError):  # a link, damage, or another key's
            continue
        durable.write_file(path, vault_entries.seal(name, key, payload, new), 0o600)


def _side(vault: Vault, name: str, old: KeyProvider, new: KeyProvider) -> Side:
    data = vault.stored(name)
    if data and not any(data[: vault_entries.HEADER_LIMIT]):  # the wrapped key went first
        return "empty"
    for side, provider in _sides(vault_entries.read(name, data).wrapped_by, old, new):
        try:
            vault_entries.unseal(name, data, (provider,))
        except NotOurs:
            continue
        return side
    raise NotOurs(vault_entries.read(name, data).wrapped_by or "of another vault").error(name)


def _sides(by: str | None, old: KeyProvider, new: KeyProvider) -> Iterator[tuple[Side, KeyProvider]]:
    """The key that an entry names goes first: each try may be a call over a network."""
    pairs: list[tuple[Side, KeyProvider]] = [("old", old), ("new", new)]
    moved = by is not None and vault_sources.same_key(by, new.describe())
    yield from reversed(pairs) if moved else pairs


def _subject_side(vault: Vault, old: KeyProvider, new: KeyProvider) -> Side:
    try:
        vault.keys.subject_by(iter((new,)))
    except InvalidInput:
        vault.keys.subject_by(iter((old,)))
        return "old"
    return "new"
