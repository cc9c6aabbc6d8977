"""Rows of requests, and of the evidence for what is claimed of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import compositions, states, support
from .canon import canonical, parse
from .errors import BrokenRegistry
from .tables import Tables, need
from .types import Event

_OPENING = ("basis", "n_items", "commitment", "received_at", "due_at")


def received(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A new request. Efface 0.1.0 put who asked into this event too."""
    opening = {name: body[name] for name in _OPENING} | {"subject_ref": body.get("subject_ref")}
    db.insert(
        "forget_request", id=event.subject_id, seq=event.seq, state="RECEIVED", updated_at=event.at, **opening
    )


def identified(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """Who asked, as a keyed reference."""
    if need(db, "forget_request", event.subject_id)["subject_ref"] is not None:
        raise BrokenRegistry("a request that is identified once", "a second time", "Run `efface verify`.")
    db.update("forget_request", (event.subject_id,), subject_ref=body["subject_ref"], updated_at=event.at)


def extended(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A later date by which the request is due."""
    need(db, "forget_request", event.subject_id)
    db.update("forget_request", (event.subject_id,), extended_to=body["until"], updated_at=event.at)


def moved(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """The next state. A claim stands while the request is closed, and is one that its evidence shows then."""
    row = need(db, "forget_request", event.subject_id)
    state = states.step("request", row["state"], states.named_by(event.kind))
    if state == "CLOSED" and row["shredded_at"] is None:
        raise BrokenRegistry(
            "a request that is shredded before it is closed", row["state"], "Run `efface verify`."
        )
    claim = body.get("claim") if state == "CLOSED" else None
    if state == "CLOSED":
        support.check_claim(claim, support.supported(db, event.subject_id))
    db.update("forget_request", (event.subject_id,), state=state, claim_level=claim, updated_at=event.at)


def claimed(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """More is claimed of a closed request, as its evidence shows by now."""
    before = need(db, "forget_request", event.subject_id)["claim_level"]  # of closed ones only
    support.check_raised(body["claim"], before, support.supported(db, event.subject_id))
    db.update("forget_request", (event.subject_id,), claim_level=body["claim"], updated_at=event.at)


def shredding(db: Tables, event: Event, _body: Mapping[str, Any]) -> None:
    """Its rows are about to go: from here on a crash may leave them half destroyed."""
    row = need(db, "forget_request", event.subject_id)
    if row["state"] not in states.SHREDDABLE or row["shredded_at"] is not None:
        raise BrokenRegistry("a request that may be shredded", row["state"], "Run `efface verify`.")
    db.update("forget_request", (event.subject_id,), shredding_at=event.at, updated_at=event.at)


def shredded(db: Tables, event: Event, _body: Mapping[str, Any]) -> None:
    """Its rows are gone."""
    row = need(db, "forget_request", event.subject_id)
    if row["shredding_at"] is None or row["shredded_at"] is not None:
        came = "one without a beginning, or a second one"
        raise BrokenRegistry("a shredding that has begun", came, "Run `efface verify`.")
    changes = {"state": states.after_shredding(row["state"]), "shredded_at": event.at, "updated_at": event.at}
    db.update("forget_request", (event.subject_id,), **changes)


def evidence(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A merge or an erasure that happened outside of the registry, with its audit."""
    record = body["record"]
    request = need(db, "forget_request", record["request"])
    audit = need(db, "audit", record["audit"])
    alone = compositions.compose(record["artefact"], audit["precision"], []).digest
    measured: Any = None if audit["requests"] is None else parse(audit["requests"])
    support.check_evidence(record, alone, audit, measured, shredded=request["shredded_at"] is not None)
    db.put(
        "evidence",
        digest=event.subject_id,
        seq=event.seq,
        request=record["request"],
        level=record["level"],
        record=canonical(record).decode(),
        at=event.at,
    )
