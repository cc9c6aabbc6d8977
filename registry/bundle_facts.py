"""What the events in a bundle say, as plain JSON: derived by who exports it, and again by who verifies it.

Pure. Every step of a subject is checked against its state table, so an event that was left out in the middle shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from . import compositions, gates, states, support
from .canon import digest_json
from .errors import BrokenRegistry
from .types import Event

Facts = dict[str, Any]
Rows = dict[str, dict[str, Any]]
OPENING = ("basis", "n_items", "commitment", "received_at", "due_at")
"""What a bundle says of how a request came in: never who asked, not even keyed."""
_ANSWERS = ("RELEASED", "REFUSED", "WITHDRAWN")


def facts(events: Sequence[Event], stated: Mapping[str, Mapping[str, Any]]) -> Facts:
    """The facts in these events, in their order.

    `stated` has the opening of each request whose first event is withheld: the registry's word. Raises BrokenRegistry
    for events that cannot follow one another, KeyError or TypeError for bodies that are none of ours.
    """
    rows: dict[str, Rows] = {name: {} for name in ("request", "adapter", "audit", "evidence", "release")}
    rows["attestation"] = {}
    rows["channel"], rows["shredding"] = {}, {}
    for request_id, opening in stated.items():
        rows["request"][request_id] = _opened(request_id, opening, proven=False)
    for event in events:
        if event.subject_kind != "key":
            _handler(event)(rows, event, cast(Mapping[str, Any], event.body))
    del rows["shredding"]  # held to, and not listed
    found: Facts = {f"{name}s" if name != "evidence" else name: _listed(name, rows[name]) for name in rows}
    for request in found["requests"]:
        request["supported"] = _supported(request["id"], rows)
    return found


def _handler(event: Event) -> Callable[[dict[str, Rows], Event, Mapping[str, Any]], None]:
    handler = _HANDLERS.get(event.kind) or _MOVERS.get(event.subject_kind)
    if handler is None:
        raise BrokenRegistry("events of this version", "another kind", "Install a newer efface.")
    return handler


def _opened(request_id: str, opening: Mapping[str, Any], *, proven: bool) -> dict[str, Any]:
    return {
        "id": request_id,
        **{name: opening[name] for name in OPENING},
        "opening": "proven" if proven else "stated",
        "state": "RECEIVED",
        "extended_to": None,
        "answered_at": None,
        "shredded_at": None,
        "claim": None,
    }


def _received(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    _new(rows["request"], event.subject_id, _opened(event.subject_id, body, proven=True))


def _extended(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    rows["request"][event.subject_id]["extended_to"] = body["until"]


def _claimed(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    row = rows["request"][event.subject_id]
    support.check_raised(body["claim"], row["claim"], _most(rows, event.subject_id))
    row["claim"] = body["claim"]


def _shredded(rows: dict[str, Rows], event: Event, _body: Mapping[str, Any]) -> None:
    row = rows["request"][event.subject_id]
    row["shredded_at"] = event.at
    row["state"] = states.after_shredding(row["state"])


def _shredding(rows: dict[str, Rows], event: Event, _body: Mapping[str, Any]) -> None:
    rows["shredding"][event.subject_id] = {"at": event.at}


def _nothing(_rows: dict[str, Rows], _event: Event, _body: Mapping[str, Any]) -> None:
    """A beginning that says nothing yet."""


def _request_moved(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    """Answered when it was last released, refused or withdrawn, unless it was opened again since."""
    row = rows["request"][event.subject_id]
    row["state"] = states.step("request", row["state"], states.named_by(event.kind))
    row["claim"] = body.get("claim") if row["state"] == "CLOSED" else None
    if row["state"] == "CLOSED":
        support.check_claim(row["claim"], _most(rows, event.subject_id))
    if row["state"] in _ANSWERS:
        row["answered_at"] = event.at
    if row["state"] == "REOPENED":
        row["answered_at"] = None


def _sealed(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    manifest = body["manifest"]
    names = ("kind", "base", "quantization", "requests", "trained_on", "files")
    described = {name: manifest[name] for name in names}
    row = {"digest": event.subject_id, **described, "state": "SEALED", "sealed_at": event.at}
    _new(rows["adapter"], event.subject_id, row)


def _adapter_moved(rows: dict[str, Rows], event: Event, _body: Mapping[str, Any]) -> None:
    row = rows["adapter"][event.subject_id]
    row["state"] = states.step("adapter", row["state"], states.named_by(event.kind))


def _audited(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    _new(rows["audit"], event.subject_id, {"digest": event.subject_id, **body["record"], "at": event.at})


def _evidence(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    record = body["record"]
    audit = _audit(rows, record["audit"])
    alone = compositions.compose(record["artefact"], audit["precision"], []).digest
    gone = rows["request"][record["request"]]["shredded_at"] is not None
    support.check_evidence(record, alone, audit, audit.get("requests"), shredded=gone)
    _new(rows["evidence"], event.subject_id, {"digest": event.subject_id, **record, "at": event.at})


def _attested(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    row = {"digest": event.subject_id, "at": event.at, "seq": event.seq}
    described = {name: body[name] for name in ("about", "predicate", "keys")}
    _new(rows["attestation"], event.subject_id, row | described)


# The keys of gates come with the first gate only: what is said of channels without any stays as it was.
_NO_RULE: Mapping[str, Any] = {"two_person": None, "since": None, "by": None, "reason": None}


def _ruled(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    rule = {"two_person": body["two_person"], "since": event.at, "by": event.actor, "reason": body["reason"]}
    before = rows["channel"].get(event.subject_id, {"channel": event.subject_id})
    rows["channel"][event.subject_id] = {**before, **rule}


def _gated(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    gates.text_of(body["gates"])
    row = {
        "gates": body["gates"],
        "gates_since": event.at,
        "gates_by": event.actor,
        "gates_reason": body["reason"],
    }
    rows["channel"][event.subject_id] = {
        **rows["channel"].get(event.subject_id, {"channel": event.subject_id, **_NO_RULE}),
        **row,
    }


def _candidate(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    names = ("channel", "version", "composition", "digest", "rendered", "reason")
    if digest_json(body["composition"]) != body["digest"]:
        raise BrokenRegistry("the digest of the composition", "another", "Ask for the bundle again.")
    row = {
        **{name: body[name] for name in names},
        "state": "CANDIDATE",
        "created_by": event.actor,
        "created_at": event.at,
        "audit": None,
        "approved_by": None,
        "activated_at": None,
    }
    _new(rows["release"], event.subject_id, row)


def _release_moved(rows: dict[str, Rows], event: Event, body: Mapping[str, Any]) -> None:
    row = rows["release"][event.subject_id]
    row["state"] = states.step("release", row["state"], states.named_by(event.kind))
    if row["state"] == "APPROVED":
        _gate(rows, row, body["audit"], event.actor)
        support.check_covered(_passed_over(rows, row, _audit(rows, body["audit"]).get("requests")))
        row |= {"audit": body["audit"], "approved_by": event.actor}
    if row["state"] == "ACTIVE":
        _gate(rows, row, row["audit"], row["approved_by"])
        row["activated_at"] = event.at


def _gate(rows: dict[str, Rows], row: Mapping[str, Any], audit: str, approver: str) -> None:
    rule = rows["channel"].get(row["channel"], {}).get("two_person")
    support.check_approver(rule, row["created_by"], approver)
    quantization = row["composition"]["quantization"]
    support.check_release({"composition": row["digest"]}, quantization, _audit(rows, audit))
    asked = rows["channel"].get(row["channel"], {}).get("gates", {})
    gates.check_gates(asked, _audit(rows, audit).get("gates"), bare=not row["composition"]["parts"])


def _passed_over(rows: Mapping[str, Rows], row: Mapping[str, Any], measured: Any) -> list[str]:
    """As `support.passed_over`, as far as requests and adapters are here."""
    if measured is None:
        return []
    held = (rows["adapter"][one]["requests"] for one in _parts(row) if one in rows["adapter"])
    asked = {request for found in held for request in found} & rows["request"].keys()
    return sorted(asked - {*measured} - rows["shredding"].keys())


def _audit(rows: dict[str, Rows], digest: str) -> Mapping[str, Any]:
    if digest not in rows["audit"]:
        raise BrokenRegistry("the audit that an event names, before it", "none", "Ask for the bundle again.")
    return rows["audit"][digest]


def _most(rows: dict[str, Rows], request_id: str) -> str | None:
    """More than suppressed needs evidence, which is all here. A bundle of a channel may lack others that suppress."""
    return support.highest({_supported(request_id, rows) or "suppressed", "suppressed"})


def _new(rows: Rows, key: str, row: dict[str, Any]) -> None:
    if key in rows:
        raise BrokenRegistry("one beginning of each subject", "a second one", "Export the bundle again.")
    rows[key] = row


def _listed(name: str, rows: Rows) -> list[dict[str, Any]]:
    """Requests by id, releases by version (not as text: prod@10 comes after prod@2), the rest as it happened."""
    found = list(rows.values())
    if name == "channel":
        return sorted(found, key=lambda row: row["channel"])
    if name == "request":
        return sorted(found, key=lambda row: row["id"])
    return sorted(found, key=lambda row: (row["channel"], row["version"])) if name == "release" else found


def _supported(request_id: str, rows: Mapping[str, Rows]) -> str | None:
    """The most that can be claimed, by the rule of `support.supported`, as far as the releases here show it."""
    mine = {row["digest"] for row in rows["adapter"].values() if request_id in row["requests"]}
    active = [row for row in rows["release"].values() if row["state"] == "ACTIVE"]
    bases = {row["composition"]["base"] for row in active}
    before = {rows["adapter"][adapter]["base"] for adapter in mine}
    recorded = [row for row in rows["evidence"].values() if row["request"] == request_id]
    levels = {row["level"] for row in recorded if support.counts(row, before, bases)}
    if any(mine & _parts(row) for row in active):
        levels.add("suppressed")
    return support.highest(levels)


def _parts(release: Mapping[str, Any]) -> set[str]:
    parts: Iterable[Mapping[str, str]] = release["composition"]["parts"]
    return {part["adapter"] for part in parts}


_HANDLERS: Mapping[str, Callable[[dict[str, Rows], Event, Mapping[str, Any]], None]] = {
    "request.received": _received,
    "request.identified": _nothing,
    "request.extended": _extended,
    "request.shredding": _shredding,
    "request.shredded": _shredded,
    "request.claimed": _claimed,
    "evidence.recorded": _evidence,
    "adapter.sealed": _sealed,
    "audit.recorded": _audited,
    "attestation.recorded": _attested,
    "release.candidate": _candidate,
    "channel.ruled": _ruled,
    "channel.gated": _gated,
}
_MOVERS: Mapping[str, Callable[[dict[str, Rows], Event, Mapping[str, Any]], None]] = {
    "request": _request_moved,
    "adapter": _adapter_moved,
    "release": _release_moved,
}
