"""`efface vault drop-orphans | bind`: entries that no request names, and which vault is the registry's."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Registry, vault_bind
from ..registry.vault_orphans import Orphan, drop_orphans, list_orphans
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    ReasonOption,
    RegistryOption,
    YesOption,
)
from .output import emit, talk
from .record_acts import BindRecord, OrphanRecord, OrphansRecord

DROP_EXAMPLE = "Example: efface vault drop-orphans req-000007.json --yes"
BIND_EXAMPLE = "Example: efface vault bind --reason 'the disk of host a is lost' --yes"


def drop_orphans_(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Of the plan; all of it by default.")
    ] = None,
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Destroy vault entries that belong to no request: a crash left them, or they made way for another.

    Under a ledger that is older than its vault (a backup) such an entry may be a request of the newer ledger. No event
    is written: what the ledger says does not change.
    """
    with Registry.open(registry) as reg:
        planned = list_orphans(reg, names)
        if yes and planned:
            planned = drop_orphans(reg, [orphan.name for orphan in planned], actor=actor)
    record: OrphansRecord = {"done": yes, "plan": [_orphan(orphan) for orphan in planned]}
    lines = [f"{one.name}  {one.size} bytes{_why(one)}{'  destroyed' if yes else ''}" for one in planned]
    emit(record, format, "\n".join(lines) or "no entry without a request")
    if planned and not yes:
        talk.print("Nothing was destroyed. Do it with --yes; there is no way back.")


def bind(
    reason: ReasonOption,
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Record that the vault here is the registry's from now on, where the one before is lost for good.

    Rows that only the vault before has stay there: `verify` goes on naming those requests.
    """
    with Registry.open(registry, any_vault=True) as reg:
        found = (
            vault_bind.bind_vault(reg, reason=reason, actor=actor) if yes else vault_bind.plan_binding(reg)
        )
    record: BindRecord = {
        "done": yes,
        "plan": {"old": found.old, "new": found.new, "missing": list(found.missing)},
    }
    lines = [
        f"from {found.old or 'no vault named yet'}",
        f"to   {found.new or 'a new id'}",
        *(f"{request} has no entry here" for request in found.missing),
    ]
    emit(record, format, "\n".join(lines))
    if not yes:
        talk.print("Nothing was changed. Do it with --yes.")


def _orphan(orphan: Orphan) -> OrphanRecord:
    return {"name": orphan.name, "size": orphan.size, "set_aside": orphan.set_aside}


def _why(orphan: Orphan) -> str:
    return "  it made way for a request with its id" if orphan.set_aside else "  no event names its id"
