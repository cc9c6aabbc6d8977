"""Which vault holds a registry's rows, so that a second host does not put some of them into a vault of its own.

Database and blobs may be on servers; the vault is a folder (`Registry.root`). Each request's first event names the
vault that its rows went into; `vault.bound` (`vault_bind`), which a person asks for, names one too. The newest counts.
A host without any vault (an auditor's, one that serves) may do everything but open requests. One with another vault
may do nothing until the right one is mounted there, or somebody says that this is the one from now on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from . import vault_id
from .canon import parse
from .errors import Conflict, RegistryError
from .tables import Row, Tables
from .types import Event
from .vault import Vault

BOUND = "vault.bound"
SUBJECT = "vault"
"""The subject of those events: there is one vault at a time."""
NO_ID = "a vault without an id"
_THEN = (
    "Mount or restore that vault's folder here, or name it (root= in the URL, EFFACE_ROOT); if it is lost for good, "
    "`efface vault bind` takes the one that is here."
)


def identity(vault: Vault) -> str | None:
    """The id of the vault that is here, `NO_ID` for one of before vaults had them; None when there is none."""
    found = vault_id.read(vault.folder)
    return NO_ID if found is None and vault.keys.complete() else found


def recorded(db: Tables) -> str | None:
    """The id of the registry's vault; None where no event names one: new, or of before vaults had ids.

    An event that cannot be read names none: `verify` is there to say so.
    """
    requests = db.find("forget_request", order="seq", descending=True, limit=1)
    opened = [row for one in requests if (row := db.get("event", one["seq"])) is not None]
    bound = db.find("event", subject_id=SUBJECT, kind=BOUND, descending=True, limit=1)
    newest = sorted((*opened, *bound), key=lambda row: row["seq"], reverse=True)
    return next((found for row in newest if (found := _named(row)) is not None), None)


def named_by(events: Iterable[Event]) -> str | None:
    """The same of events in order."""
    found = None
    for event in events:
        if event.kind in ("request.received", BOUND):
            found = _vault_of(event.body) or found
    return found


def check(db: Tables, vault: Vault) -> None:
    """Raise Conflict when the vault that is here is not the registry's; none at all, or none of this user, is fine."""
    try:
        here = identity(vault)
    except PermissionError:
        return
    if here is not None and (wanted := recorded(db)) is not None and here != wanted:
        raise _other(wanted, vault, here)


def prepare(db: Tables, vault: Vault) -> str:
    """Make the vault's keys ready for a new request's rows, and return its id.

    Raises Conflict, before anything is written, unless this is the registry's vault: its id, or, where no event names
    one yet, the entry of its newest request that is not shredded.
    """
    here, wanted = identity(vault), recorded(db)
    if wanted is not None and here != wanted:
        raise _other(wanted, vault, here)
    if wanted is None:
        kept = db.find("forget_request", order="seq", descending=True, limit=1, shredding_at=None)
        if kept and not vault.has(kept[0]["id"]):
            raise _other(f"with the rows of {kept[0]['id']}", vault, here)
    vault.keys.prepare()
    return vault_id.make(vault.folder)


def _other(wanted: str, vault: Vault, here: str | None) -> Conflict:
    return Conflict(f"the vault {wanted} of this registry at {vault.folder}", here or "no vault", _THEN)


def _named(row: Row) -> str | None:
    try:
        return _vault_of(parse(row["body"]))
    except (RegistryError, TypeError, ValueError):
        return None


def _vault_of(body: object) -> str | None:
    value = cast(Mapping[str, Any], body).get("vault") if isinstance(body, Mapping) else None
    return value if vault_id.well_formed(value) else None
