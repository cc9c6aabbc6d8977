"""Rows of releases, of the compositions they hold, and of channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import gates, states, support
from .canon import digest_json, parse
from .errors import BrokenRegistry
from .tables import Row, Tables, need
from .types import Event


def ruled(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """The rule of a channel, which may have no release yet."""
    if not isinstance(body["two_person"], bool):
        raise BrokenRegistry("a rule that is true or false", "another value", "Run `efface verify`.")
    db.put("channel", channel=event.subject_id, versions=0, active=None)
    db.update("channel", (event.subject_id,), two_person=int(body["two_person"]))


def gated(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """The gates of a channel, which may have no release yet."""
    db.put("channel", channel=event.subject_id, versions=0, active=None)
    db.update("channel", (event.subject_id,), gates=gates.text_of(body["gates"]))


def candidate(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """The next version of a channel."""
    name, version = body["channel"], body["version"]
    db.put("channel", channel=name, versions=0, active=None)
    last = need(db, "channel", name)["versions"]
    if version != last + 1:
        raise BrokenRegistry(f"version {last + 1} of {name}", f"version {version}", "Run `efface verify`.")
    db.update("channel", (name,), versions=version)
    if digest_json(body["composition"]) != body["digest"]:
        raise BrokenRegistry("the digest of the composition", "another", "Run `efface verify`.")
    composition(db, body["digest"], body["composition"])
    if body["rendered"] is not None:
        need(db, "adapter", body["rendered"])
    db.insert(
        "release",
        channel=name,
        version=version,
        composition=body["digest"],
        rendered=body["rendered"],
        state="CANDIDATE",
        reason=body["reason"],
        created_by=event.actor,
        created_at=event.at,
    )


def moved(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """The next state, approved and served on an audit that carries it.

    A channel never has two active releases, not even between two events.
    """
    key = (body["channel"], body["version"])
    row = need(db, "release", *key)
    state = states.step("release", row["state"], states.named_by(event.kind))
    changes: dict[str, Any] = {"state": state}
    if state == "APPROVED":
        _gate(db, row, body["audit"], event.actor)
        _cover(db, row, body["audit"])
        changes |= {"audit": body["audit"], "approved_by": event.actor}
    if state == "ACTIVE":
        _gate(db, row, row["audit"], row["approved_by"])
        _turn(db, *key, turning=True)
        changes |= {"activated_at": event.at}
    elif row["state"] == "ACTIVE":
        _turn(db, *key, turning=False)
    db.update("release", key, **changes)


def _gate(db: Tables, release: Row, audit: str, approver: str) -> None:
    """What `release_checks` asked before the event was appended."""
    quantization = need(db, "composition", release["composition"])["quantization"]
    support.check_release(release, quantization, need(db, "audit", audit))
    support.check_approver(
        need(db, "channel", release["channel"])["two_person"], release["created_by"], approver
    )
    judged = need(db, "audit", audit)["gates"]
    gates.check_gates(
        gates.of_channel(db, release["channel"]),
        None if judged is None else gates.stored(judged),
        bare=not db.count("composition_part", composition=release["composition"]),
    )


def _cover(db: Tables, release: Row, audit: str) -> None:
    """Asked once: of what the audit passed over, shredding only ever takes away."""
    named = need(db, "audit", audit)["requests"]
    measured: Any = None if named is None else parse(named)
    parts = db.find("composition_part", composition=release["composition"])
    support.check_covered(support.passed_over(db, (part["adapter"] for part in parts), measured))


def _turn(db: Tables, name: str, version: int, *, turning: bool) -> None:
    active = need(db, "channel", name)["active"]
    if active != (None if turning else version):
        raise BrokenRegistry(f"one active release on {name}", f"version {active} too", "Run `efface verify`.")
    db.update("channel", (name,), active=version if turning else None)


def composition(db: Tables, digest: str, record: Mapping[str, Any]) -> None:
    """The composition and its parts, once."""
    if db.get("composition", digest) is not None:
        return
    db.put("base", digest=record["base"], quantization=record["quantization"])
    head = {name: record[name] for name in ("base", "quantization", "render")}
    db.insert("composition", digest=digest, **head)
    for part in record["parts"]:
        need(db, "adapter", part["adapter"])
        db.insert("composition_part", composition=digest, adapter=part["adapter"], weight=part["weight"])
