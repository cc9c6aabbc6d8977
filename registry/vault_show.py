"""What may be shown of a vault: which keys wrap its entries, and how many; no payload is opened."""

from __future__ import annotations

from dataclasses import dataclass

from . import vault_entries, vault_files, vault_id, vault_tombs
from .errors import NotFound
from .vault import Vault


@dataclass(frozen=True, slots=True)
class VaultSummary:
    """A vault for people: whether its key is at hand, and how many entries each key wraps."""

    id: str | None
    """Of the vault (`vault_id`); None for one of before vaults had them."""
    key: str | None
    entries: int
    shredded: int
    wrapped_by: tuple[tuple[str, int], ...]


def summary(vault: Vault) -> VaultSummary:
    """What `efface vault show` prints: no payload is opened. BrokenRegistry for a damaged header."""
    vault_files.check_folder(vault.folder)
    counts: dict[str, int] = {}
    for name in vault.requests():
        counts[by] = counts.get(by := _wrapper(vault, name), 0) + 1
    shredded = len(vault_tombs.shredded(vault.folder))
    wrapped_by = tuple(sorted(counts.items()))
    return VaultSummary(
        vault_id.read(vault.folder), _description(vault), sum(counts.values()), shredded, wrapped_by
    )


def _wrapper(vault: Vault, name: str) -> str:
    start = vault_files.read_start(vault.path(name), vault_entries.HEADER_LIMIT)
    return vault_entries.wrapper(name, start) or "not said (version 1)"


def _description(vault: Vault) -> str | None:
    try:
        return vault.keys.provider().describe()
    except NotFound:
        return None
