"""Whether every release that took a request's forgetting away says so: the one omission that states alone do not show.

A request that is released, shredded or closed is forgotten by an active release: by an adapter in it, or by a base that
was made for it. When the last such release is superseded, `request.reopened` follows in the same breath, before any
event of another kind. Every version of efface wrote its ledgers so. An event that was never appended breaks no chain
and forbids no step, so it is looked for here, beside the replay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from . import states
from .errors import BrokenRegistry
from .tables import Tables, need
from .types import Event

_SAME_BREATH = ("release.active", "adapter.qualified", "request.reopened")
"""What follows one release superseding another, in one transaction."""


class Reopenings:
    """Fed each event after it was applied. It keeps what is served as counts, so a step costs what changed."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[str, ...]] = {}  # adapter → its requests
        self._made: dict[str, set[str]] = {}  # base → requests that evidence says it forgets
        self._holds: dict[str, tuple[str, frozenset[str]]] = {}  # composition → base, adapters
        self._forgets: Counter[str] = Counter()  # request → adapters in active releases that answer it
        self._bases: Counter[str] = Counter()  # base → active releases on it
        self._active: dict[str, str] = {}  # channel → composition
        self._owed: set[str] = set()
        self._at = 0

    def event(self, db: Tables, event: Event) -> None:
        """Take an event in. Raises BrokenRegistry when one that was due has not come before it."""
        if event.kind not in _SAME_BREATH:
            self.settle(db)
        body = cast(Mapping[str, Any], event.body)
        if event.kind == "adapter.sealed":
            self._answers[event.subject_id] = tuple(body["manifest"]["requests"])
        elif event.kind == "evidence.recorded":
            self._made.setdefault(body["record"]["artefact"], set()).add(body["record"]["request"])
        elif event.kind == "release.candidate":
            composition = body["composition"]
            parts = frozenset(part["adapter"] for part in composition["parts"])
            self._holds[body["digest"]] = (composition["base"], parts)
        elif event.subject_kind == "release":
            self._released(db, event, body["channel"], body["version"])

    def settle(self, db: Tables) -> None:
        """Raise BrokenRegistry for a request that should have been reopened by now."""
        for request_id in sorted(self._owed):
            if need(db, "forget_request", request_id)["state"] in states.IN_FORCE and not self._in(
                request_id
            ):
                came = f"none, after event {self._at} left nothing that forgets {request_id}"
                raise BrokenRegistry(f"request.reopened for {request_id}", came, "Look at who released it.")
        self._owed.clear()

    def _released(self, db: Tables, event: Event, channel: str, version: int) -> None:
        state = states.named_by(event.kind)
        if state == "ACTIVE":
            self._active[channel] = need(db, "release", channel, version)["composition"]
            self._count(self._active[channel], 1)
        elif state in ("SUPERSEDED", "WITHDRAWN") and need(db, "channel", channel)["active"] is None:
            if (gone := self._active.pop(channel, None)) is None:  # a candidate, where nothing is served
                return
            base, _ = self._holds[gone]
            self._at = event.seq
            self._owed |= self._count(gone, -1) | self._made.get(base, set())

    def _count(self, composition: str, change: int) -> set[str]:
        base, adapters = self._holds[composition]
        answered = [request for adapter in adapters for request in self._answers[adapter]]
        self._bases[base] += change
        for request in answered:
            self._forgets[request] += change
        return set(answered)

    def _in(self, request_id: str) -> bool:
        made = (base for base, requests in self._made.items() if request_id in requests)
        return self._forgets[request_id] > 0 or any(self._bases[base] > 0 for base in made)
