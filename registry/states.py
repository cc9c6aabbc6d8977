"""The life of a request, an adapter and a release, as data, and the one function that moves them.

A request: RECEIVED → VERIFIED → ACCEPTED → TRAINED → AUDITED → RELEASED → SHREDDED → CLOSED. It goes back to
TRAINED when another adapter is trained for it, and to REOPENED when the last active release that forgets it is
rolled back, however far it had come. Released again after its rows were shredded, it is closed from RELEASED.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from .errors import BrokenRegistry, Conflict, InvalidInput

Kind = Literal["request", "adapter", "release"]
Table = Mapping[str, tuple[str, ...]]

REQUEST: Table = {
    "RECEIVED": ("VERIFIED", "REFUSED", "WITHDRAWN"),
    "VERIFIED": ("ACCEPTED", "REFUSED", "WITHDRAWN"),
    "ACCEPTED": ("TRAINED", "REFUSED", "WITHDRAWN"),
    "TRAINED": ("AUDITED", "WITHDRAWN"),
    "AUDITED": ("RELEASED", "TRAINED", "WITHDRAWN"),
    "RELEASED": ("SHREDDED", "CLOSED", "REOPENED"),
    "SHREDDED": ("CLOSED", "REOPENED"),
    "CLOSED": ("REOPENED",),
    "REOPENED": ("TRAINED", "REFUSED", "WITHDRAWN"),
    "REFUSED": (),
    "WITHDRAWN": (),
}
ENDED = ("REFUSED", "WITHDRAWN")
"""A request in one of these is answered without forgetting anything."""
IN_FORCE = ("RELEASED", "SHREDDED", "CLOSED")
"""A request in one of these is forgotten by an active release."""
SHREDDABLE = ("RELEASED", *ENDED)
"""Rows are needed for training and auditing before, and are gone after."""
ADAPTER: Table = {
    "STAGED": ("SEALED",),
    "SEALED": ("QUALIFIED", "REJECTED", "RETIRED"),
    "QUALIFIED": ("RETIRED",),
    "REJECTED": ("RETIRED",),
    "RETIRED": ("PURGED",),
    "PURGED": (),
}
RELEASE: Table = {
    "CANDIDATE": ("APPROVED", "WITHDRAWN"),
    "APPROVED": ("ACTIVE", "WITHDRAWN"),
    "ACTIVE": ("SUPERSEDED", "WITHDRAWN"),
    "SUPERSEDED": (),
    "WITHDRAWN": (),
}
TABLES: Mapping[Kind, Table] = {"request": REQUEST, "adapter": ADAPTER, "release": RELEASE}


def step(kind: Kind, state: str, to: str) -> str:
    """`to`, if a `kind` in `state` may move there. Raises Conflict, or InvalidInput for an unknown state."""
    table = TABLES[kind]
    if state not in table:
        raise BrokenRegistry(f"a {kind} state", f"{state!r}", "Run `efface verify`.")
    if to not in table:
        raise InvalidInput(f"one of {', '.join(table)}", "another word", f"Name a state of a {kind}.")
    if to not in table[state]:
        allowed = " or ".join(table[state]) or "no further step"
        raise Conflict(f"{allowed} after {state} for a {kind}", to, "Look at its history with `efface log`.")
    return to


def after_shredding(state: str) -> str:
    """The state of a request whose rows are gone now. A released one moves on; any other stays what it is.

    That is one that was refused or withdrawn, or that was rolled back while a cut-off shredding waited for its end.
    """
    return step("request", state, "SHREDDED") if state == "RELEASED" else state


def path(kind: Kind, state: str, to: str) -> tuple[str, ...]:
    """The shortest steps from `state` to `to`, the last one included; Conflict when there is no way."""
    ways: dict[str, tuple[str, ...]] = {state: ()}
    for here in (queue := [state]):
        for following in TABLES[kind].get(here, ()):
            if following not in ways:
                ways[following] = (*ways[here], following)
                queue.append(following)
    if to not in ways:
        raise Conflict(f"a {kind} that can still become {to}", state, "Open a new one instead.")
    return ways[to]


def named_by(kind: str) -> str:
    """The state that an event is named for: `RELEASED` for `request.released`."""
    return kind.partition(".")[2].upper()
