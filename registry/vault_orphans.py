"""Vault entries that belong to no request: what a crash left, or what was in the way of another (`Vault.leftover`).

Each holds rows, encrypted, that no event of this ledger names. That may also be a request of a *newer* ledger, when the
one here is a backup: so they are listed, and destroyed only when somebody says so. The ledger gets no event: there is
no request to record it of, and nothing that the ledger says changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import vault_files
from .errors import NotFound
from .registry import Registry
from .tables import Tables

_ASIDE = re.compile(r"req-[0-9]{6,18}\.orphan-[1-9][0-9]{0,9}\.json")
_ENTRY = re.compile(r"(req-[0-9]{6,18})\.json")


@dataclass(frozen=True, slots=True)
class Orphan:
    """An entry without a request. `name` is its file's in the vault, `size` its bytes."""

    name: str
    size: int
    set_aside: bool
    """Whether it made way for a request with the same id; else no event names its id."""


def list_orphans(reg: Registry, names: Sequence[str] | None = None) -> list[Orphan]:
    """The entries that belong to no request, by name: all, or those with these `names`.

    Raises NotFound for a name that is no orphan's, InvalidInput for a folder that others may enter.
    """
    with reg.read() as db:
        found = _orphans(reg, db)
    return found if not names else _named(found, names)


def drop_orphans(reg: Registry, names: Sequence[str], *, actor: str) -> list[Orphan]:
    """Overwrite and delete the orphans with these names, and say which those were. There is no way back.

    Nobody opens a request meanwhile, so an entry that waits for its event is none of them. Raises NotFound, with
    nothing destroyed, for a name that is no orphan's.
    """
    with reg.write(actor) as tx:
        dropped = _named(_orphans(reg, tx.db), names)
        for orphan in dropped:
            vault_files.destroy(reg.vault.folder / orphan.name)
    return dropped


def _named(found: Sequence[Orphan], names: Sequence[str]) -> list[Orphan]:
    if set(names) - {orphan.name for orphan in found}:
        then = "Look at the plan: efface vault drop-orphans"
        raise NotFound("the names of entries without a request", "another name", then)
    return [orphan for orphan in found if orphan.name in names]


def _orphans(reg: Registry, db: Tables) -> list[Orphan]:
    vault_files.check_folder(reg.vault.folder)
    found: list[Orphan] = []
    for path in sorted(reg.vault.folder.glob("req-*.json")):
        entry = _ENTRY.fullmatch(path.name)
        if path.is_symlink() or not path.is_file():
            continue  # nothing that we write: `verify --deep` lists it
        if _ASIDE.fullmatch(path.name) or (entry and db.get("forget_request", entry[1]) is None):
            found.append(Orphan(path.name, path.stat().st_size, entry is None))
    return found
