"""Saying which vault is a registry's from now on: after the one before was lost, or to name it without a request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import checks, ledger, vault_binding, vault_id
from .errors import NotFound
from .registry import Registry
from .tables import Tables


@dataclass(frozen=True, slots=True)
class Binding:
    """What binding the vault that is here means. `old` is None where no event names a vault."""

    old: str | None
    new: str | None
    """None where the vault has no id yet: it gets one."""
    missing: tuple[str, ...]
    """Requests whose rows should be in the vault and are not: `verify` will go on naming them."""


def plan_binding(reg: Registry) -> Binding:
    """What `bind_vault` would record. Raises NotFound without a vault here."""
    _require(reg)
    with reg.read() as db:
        return _plan(reg, db)


def bind_vault(reg: Registry, *, reason: str, actor: str) -> Binding:
    """Record that the vault here is the registry's from now on; once it is, again changes nothing.

    `reg` is one that was opened with `any_vault`. Rows that only the vault before has stay there: this does not bring
    them over. Raises NotFound without a vault here, and what its keys raise when they do not fit.
    """
    checks.reason(reason)
    _require(reg)
    with reg.write(actor) as tx:
        reg.vault.keys.prepare()
        found = _plan(reg, tx.db)
        new = vault_id.make(reg.vault.folder)
        if found.old != new:
            body = {"vault": new, "reason": reason}
            ledger.append(tx, vault_binding.BOUND, vault_binding.SUBJECT, body)
        return Binding(found.old, new, found.missing)


def _plan(reg: Registry, db: Tables) -> Binding:
    return Binding(vault_binding.recorded(db), vault_id.read(reg.vault.folder), tuple(_missing(reg, db)))


def _missing(reg: Registry, db: Tables) -> Iterator[str]:
    for row in db.find("forget_request", order="seq", shredding_at=None):
        if not reg.vault.has(row["id"]):
            yield row["id"]


def _require(reg: Registry) -> None:
    if not reg.vault.keys.complete():
        then = "Restore one; without any, a new one is made with the first request of a new registry."
        raise NotFound(f"a vault at {reg.vault.folder}", "none", then)
