"""The end of adapters: rejected, retired, purged. Their rows and their events stay; bytes go with a purge."""

from __future__ import annotations

from . import adapters, checks, compactions, ledger, states
from .canon import JSON
from .errors import Conflict
from .registry import Registry
from .tables import Tables
from .types import Adapter

_SERVED = ("CANDIDATE", "APPROVED", "ACTIVE")
_CHUNK = 500
"""Values in one query: databases take no more than some thousands."""


def reject_adapter(reg: Registry, ref: str, *, reason: str, actor: str) -> Adapter:
    """Record that a sealed adapter is not to be released. Raises Conflict when one holds it or it is past that."""
    return _end(reg, ref, "REJECTED", reason, actor)


def retire_adapter(reg: Registry, ref: str, *, reason: str, actor: str) -> Adapter:
    """Take an adapter out of use for good; it can still be read. Raises Conflict when a release needs it."""
    return _end(reg, ref, "RETIRED", reason, actor)


def purge_adapter(reg: Registry, ref: str, *, reason: str, actor: str) -> Adapter:
    """Give up the bytes of a retired adapter: `gc` deletes what no other record uses. The row stays.

    Versions of a channel that held it can then not be returned to. Raises Conflict for one that is not retired.
    """
    return _end(reg, ref, "PURGED", reason, actor)


def needed_by(db: Tables, adapter: Adapter) -> list[str]:
    """The releases that serve this adapter or may come to, as `channel@version`."""
    held = {
        row["composition"] for row in db.find("composition_part", order="composition", adapter=adapter.digest)
    }
    rows = db.find("release", state=_SERVED)
    return [
        f"{row['channel']}@{row['version']}"
        for row in rows
        if row["composition"] in held or row["rendered"] == adapter.digest
    ]


def trained_on_it(db: Tables, adapter: Adapter) -> list[str]:
    """Adapters in use that were trained on a composition that holds this one."""
    held = {
        row["composition"] for row in db.find("composition_part", order="composition", adapter=adapter.digest)
    }
    names = sorted(held)
    rows = [
        row
        for start in range(0, len(names), _CHUNK)
        for row in db.find("adapter", trained_on=frozenset(names[start : start + _CHUNK]))
    ]
    used = (row for row in rows if row["state"] in ("SEALED", "QUALIFIED"))
    return [row["digest"] for row in sorted(used, key=lambda row: row["seq"])]


def check_end(db: Tables, adapter: Adapter, state: str) -> None:
    """Raise Conflict unless an adapter may become REJECTED, RETIRED or PURGED now."""
    states.step("adapter", adapter.state, state)
    _check_unused(db, adapter)


def _end(reg: Registry, ref: str, state: str, reason: str, actor: str) -> Adapter:
    body: dict[str, JSON] = {"reason": checks.reason(reason)}
    with reg.write(actor) as tx:
        adapter = adapters.load(tx.db, adapters.resolve(tx.db, "adapter", ref))
        check_end(tx.db, adapter, state)
        ledger.append(tx, f"adapter.{state.lower()}", adapter.digest, body)
        return adapters.load(tx.db, adapter.digest)


def _check_unused(db: Tables, adapter: Adapter) -> None:
    if holding := needed_by(db, adapter):
        then = "Roll back or withdraw those first."
        raise Conflict("an adapter that no release needs", f"one in {', '.join(holding)}", then)
    if above := trained_on_it(db, adapter):
        then = "Retire those first: without it they cannot be audited or rolled back to."
        raise Conflict("an adapter that none is trained on", f"one under {', '.join(above)}", then)
    if into := compactions.compacted_into(db, adapter.digest):
        then = "Retire those first: a request leaves a compaction by going back to its originals."
        raise Conflict("an adapter that no compaction is made from", f"one in {', '.join(into)}", then)
