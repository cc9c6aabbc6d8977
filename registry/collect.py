"""Garbage collection of a registry: what `gc` plans, from the ledger, and its execution under the write lock."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from . import gc, vault_files
from .canon import Digest
from .gc import MIN_AGE, GcDone, GcPlan
from .registry import Registry
from .tables import Tables


def plan_collection(reg: Registry, *, min_age: timedelta = MIN_AGE) -> GcPlan:
    """What no event needs any more: purged bytes, blobs whose event never came, unfinished writes, old caches."""
    with reg.read() as db:
        needed, purged = _reachable(db)
    return gc.plan(reg.blobs, needed, purged, caches=_caches(reg), min_age=min_age, now=reg.clock())


def collect(reg: Registry, plan: GcPlan, *, actor: str) -> GcDone:
    """Delete what was planned and is still not needed; twice is once. Nobody else writes meanwhile.

    Raises InvalidInput for a plan that was altered.
    """
    with reg.write(actor) as tx:
        done = gc.execute(reg.blobs, plan, _reachable(tx.db)[0], caches=_caches(reg))
        if reg.vault.folder.is_dir():
            vault_files.sweep(reg.vault.folder)
    return done


def _reachable(db: Tables) -> tuple[set[Digest], set[Digest]]:
    """The blobs that something uses, and those that everything that used them was purged of."""
    rows = db.find("blob")
    needed = {Digest(row["digest"]) for row in rows if row["uses"] > 0}
    return needed, {Digest(row["digest"]) for row in rows if row["uses"] == 0}


def _caches(reg: Registry) -> list[Path]:
    return [reg.root / "cache" / "adapters"]
