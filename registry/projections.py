"""The fold of events into tables. `apply` is the only code that writes projected rows.

Dropping every row and applying the events again gives the same tables; `verify` does that in memory and compares. So
an event must hold everything its rows need: no clock, no random number, no file is read here; and what must hold
between events (a request is known, a channel has one active release) is checked here too, not only in SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from . import fold_records, fold_releases, fold_requests
from .errors import BrokenRegistry
from .tables import PROJECTIONS, Tables
from .types import Event

Handler = Callable[[Tables, Event, Mapping[str, Any]], None]

_HANDLERS: Mapping[str, Handler] = {
    "request.received": fold_requests.received,
    "request.identified": fold_requests.identified,
    "request.extended": fold_requests.extended,
    "request.shredding": fold_requests.shredding,
    "request.shredded": fold_requests.shredded,
    "request.claimed": fold_requests.claimed,
    "evidence.recorded": fold_requests.evidence,
    "adapter.sealed": fold_records.adapter_sealed,
    "audit.recorded": fold_records.audit_recorded,
    "attestation.recorded": fold_records.attested,
    "key.added": fold_records.key_added,
    "key.revoked": fold_records.key_revoked,
    "checkpoint.signed": fold_records.checkpoint_signed,
    "vault.bound": fold_records.vault_bound,
    "release.candidate": fold_releases.candidate,
    "channel.ruled": fold_releases.ruled,
    "channel.gated": fold_releases.gated,
}
_MOVERS: Mapping[str, Handler] = {
    "request": fold_requests.moved,
    "adapter": fold_records.adapter_moved,
    "release": fold_releases.moved,
}
"""Every other event of these subjects moves it to the state that the event is named for."""


def apply(db: Tables, event: Event) -> None:
    """Write the rows that follow from one event. Raises BrokenRegistry for an event it does not know."""
    handler = _HANDLERS.get(event.kind) or _MOVERS.get(event.subject_kind)
    if handler is None:
        raise BrokenRegistry("an event kind of this version", event.kind, "Install a newer efface.")
    handler(db, event, cast(Mapping[str, Any], event.body))


def clear(db: Tables) -> None:
    """Delete every projected row."""
    for table in reversed(PROJECTIONS):
        db.clear(table.name)
