"""The single checks of a bundle's members against its proven events. Each raises, or says nothing is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from . import approvals, bundle_facts, bundle_members, bundle_summary, dsse, statements
from .bundle_ledger import Ledger
from .bundle_members import member
from .bundle_read import Bundle
from .canon import canonical, digest_bytes, digest_json, parse
from .errors import GateFailed
from .log_checkpoints import SignedCheckpoint
from .signatures import REVOKED, Known, accepted

_FIX = "Ask for the bundle again."


def keys(bundle: Bundle, ledger: Ledger) -> Known:
    """The keys that the events add and revoke are those that `keys.json` lists."""
    found, added = bundle_members.keys_of(ledger.events)
    _same("the keys of the events", [key.record() for key in found], bundle.keys)
    return Known(found, added)


def subject(bundle: Bundle) -> None:
    """It is about what it says: one request, or every version of one channel up to the last one here."""
    if bundle.kind == "request":
        _same("the request alone", [bundle.id], [row["id"] for row in bundle.facts["requests"]])
        return
    versions = [(row["channel"], row["version"]) for row in bundle.facts["releases"]]
    wanted = [(bundle.id, number) for number in range(1, len(versions) + 1)]
    if not versions or versions != wanted:
        raise GateFailed("every version of the channel", "others", _FIX)


def facts(bundle: Bundle, ledger: Ledger) -> None:
    """`facts.json` is what the events say; of a request whose first event is withheld it has the registry's word."""
    hidden = {one.request for one in ledger.withheld}
    rows = [row for row in bundle.facts["requests"] if row["id"] in hidden]
    if len(rows) != len(hidden):
        raise GateFailed("the request of each event that is withheld", "another", _FIX)
    derived = bundle_facts.facts(ledger.events, {row["id"]: row for row in rows})
    _same("what the events say", derived, bundle.facts)


def records(bundle: Bundle, ledger: Ledger) -> None:
    """Every member is a record of an event, a report or a statement that one names, and has that digest."""
    names: set[str] = set(bundle_members.ONE_OF)
    for folder, digest, data in (*_records(ledger), *_blobs(bundle)):
        name = member(folder, digest)
        found = bundle.members.get(name)
        if found is None or digest_bytes(found) != digest or (data is not None and data != found):
            raise GateFailed(f"the record in {folder} that an event names", "none or another", _FIX)
        names.add(name)
    if set(bundle.members) != names:
        raise GateFailed("members that an event names", "further ones", _FIX)
    for row in bundle.facts["releases"]:
        _same("the composition of a release", digest_json(row["composition"]), row["digest"])
    for row in bundle.facts["audits"]:
        parse(bundle.members[member("reports", row["report"])])


def attestations(bundle: Bundle, ledger: Ledger, known: Known) -> dict[str, list[str]]:
    """The keys of every statement, with what they signed; each is by a key of the role, and says what the events do.

    A signature that a compromised key took with it is passed over where another one stands for the same.
    """
    signed: dict[str, list[str]] = {}
    refused: list[tuple[tuple[Any, ...], GateFailed]] = []
    good: set[tuple[Any, ...]] = set()
    subjects = dict(_subjects(bundle, ledger))
    for row in bundle.facts["attestations"]:
        about = (row["about"]["kind"], row["about"]["id"])
        try:
            for key_id in _attestation(bundle, known, row, subjects[about]):
                signed.setdefault(key_id, []).append(" ".join(about))
            good.add((*about, row["predicate"]))
        except GateFailed as error:
            if error.came != REVOKED:
                raise
            refused.append(((*about, row["predicate"]), error))
    for about, error in refused:
        if about not in good:
            raise error
    return signed


def summary(bundle: Bundle, known: Known, newest: SignedCheckpoint | None) -> None:
    """The page is the one that follows from the facts, byte for byte."""
    signers = [key for key in known.keys if newest and key.key_id in newest.keys]
    proof = bundle_summary.proof_of(bundle.ledger, newest and newest.checkpoint, signers)
    if bundle_summary.html(bundle.about, bundle.facts, proof) != bundle.members["summary.html"]:
        raise GateFailed("the summary that follows from the events", "another", _FIX)


def _records(ledger: Ledger) -> Iterator[tuple[str, str, bytes | None]]:
    for event in ledger.events:
        if event.kind in bundle_members.RECORDS:
            folder, name = bundle_members.RECORDS[event.kind]
            yield folder, event.subject_id, canonical(event.body[name])


def _blobs(bundle: Bundle) -> Iterator[tuple[str, str, bytes | None]]:
    yield from (("reports", row["report"], None) for row in bundle.facts["audits"])
    yield from (("attestations", row["digest"], None) for row in bundle.facts["attestations"])


def _subjects(bundle: Bundle, ledger: Ledger) -> Iterator[tuple[tuple[str, str], Mapping[str, Any]]]:
    """What can be attested, and what the ledger says of it."""
    for event in ledger.events:
        body: Any = event.body
        if event.kind == "adapter.sealed":
            yield ("adapter", event.subject_id), body["manifest"]
        if event.kind == "audit.recorded":
            yield ("audit", event.subject_id), body["record"]
    for row in bundle.facts["releases"]:
        record = {
            "composition": row["digest"],
            **{name: row[name] for name in ("channel", "version", "audit")},
        }
        yield ("release", f"{row['channel']}@{row['version']}"), record


def _attestation(
    bundle: Bundle, known: Known, row: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[str, ...]:
    kind = row["about"]["kind"]
    envelope = dsse.parse(bundle.members[member("attestations", row["digest"])])
    role = approvals.ROLES[kind]
    signed = accepted(envelope, known, role, row["at"], row["seq"], statements.PAYLOAD_TYPE)
    approvals.check(kind, record, envelope.payload)
    _same("the predicate and keys that the event names", [approvals.PREDICATES[kind], list(signed)],
          [row["predicate"], row["keys"]])  # fmt: skip
    return signed


def _same(expected: str, wanted: Any, found: Any) -> None:
    if canonical(wanted) != canonical(found):
        raise GateFailed(expected, "something else", _FIX)
