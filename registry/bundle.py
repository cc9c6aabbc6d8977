"""Evidence bundles: one file that shows what became of a request, or what a channel is, to someone without a registry.

It holds no rows, no weights, nothing of the vault, and nothing of who asked: the event with the keyed reference is left
out, unless `with_subject` says that it may go along. (Efface 0.1.0 put the reference into a request's first event: that
one is there as a hash.) The same registry gives the same bytes. `bundle_members` says what is inside, `bundle_verify`
reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import (
    bundle_facts,
    bundle_gather,
    bundle_members,
    bundle_summary,
    durable,
    log_checkpoints,
    merkle,
)
from .bundle_gather import Concerned
from .canon import JSON, canonical, digest_bytes, parse
from .errors import Conflict, GateFailed, InvalidInput
from .log_checkpoints import SignedCheckpoint
from .registry import Registry
from .tables import Tables
from .types import Event

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_CHECKPOINTS = 256
"""So many of the newest are put in; each one costs a consistency proof."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A bundle that was written. `signed_size`: how many events its checkpoint covers; None without one."""

    path: Path
    digest: str
    size: int
    events: int
    withheld: int
    tree_size: int
    signed_size: int | None


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one transaction reads."""

    concerned: Concerned
    events: list[Event]
    hashes: list[str]
    checkpoints: list[SignedCheckpoint]

    @property
    def signed_size(self) -> int | None:
        """The size of the newest checkpoint in it."""
        return self.checkpoints[-1].checkpoint.tree_size if self.checkpoints else None

    @property
    def covered(self) -> bool:
        """Whether that is the whole tree of the bundle."""
        return self.signed_size == len(self.hashes)


def export_bundle(
    reg: Registry,
    path: Path,
    *,
    request: str | None = None,
    channel: str | None = None,
    private: Ed25519PrivateKey | None = None,
    origin: str | None = None,
    with_subject: bool = False,
) -> Exported:
    """Write the evidence about a request or a channel to the new file `path` (`NAME.efface.zip`).

    When no checkpoint covers its events yet, one is signed with the `private` key of the log, if there is one (for
    the first, name the log's `origin`); without, every event's hash goes in, so that the chain can be checked, and
    the summary says that nobody signed it. Raises NotFound, InvalidInput, KeyRefused, and Conflict when another file
    is there.
    """
    if (request is None) == (channel is None):
        raise InvalidInput("a request or a channel", "both or neither", "Name one of them.")
    about: dict[str, JSON] = {"kind": "request" if channel is None else "channel", "id": request or channel}
    taken = _take(reg, request, channel, with_subject=with_subject)
    if private is not None and not taken.covered:
        log_checkpoints.make_checkpoint(reg, private, origin=_origin(taken, origin))
        taken = _take(reg, request, channel, with_subject=with_subject)
    members = _members(reg, about, taken, with_subject=with_subject)
    data = bundle_members.sealed(about, members)
    _write(Path(path), data)
    return Exported(
        path=Path(path),
        digest=digest_bytes(data),
        size=len(data),
        events=len(taken.events),
        withheld=0 if with_subject else sum(map(_names_subject, taken.events)),
        tree_size=len(taken.hashes),
        signed_size=taken.signed_size,
    )


def _take(reg: Registry, request: str | None, channel: str | None, *, with_subject: bool) -> _Taken:
    with reg.read() as db:
        concerned = (
            bundle_gather.of_request(db, request or "")
            if channel is None
            else bundle_gather.of_channel(db, channel)
        )
        newest = log_checkpoints.newest_trusted(db)
        signers = newest.keys if newest else ()
        events = bundle_gather.events_of(db, concerned, signers, with_subject=with_subject)
        hashes = list(log_checkpoints.hashes_of(db))
        if newest is not None and bundle_gather.covers(newest, events):
            hashes = hashes[: newest.checkpoint.tree_size]
        return _Taken(concerned, events, hashes, _checkpoints(db, newest, events))


def _checkpoints(
    db: Tables, newest: SignedCheckpoint | None, events: Sequence[Event]
) -> list[SignedCheckpoint]:
    """The newest one that counts and those before it that the same keys signed."""
    if newest is None:
        return []
    rows = bundle_gather.checkpoint_rows(db, newest.checkpoint.tree_size, MOST_CHECKPOINTS)
    keys, _ = bundle_members.keys_of([event for event in events if event.subject_kind == "key"])
    found: list[SignedCheckpoint] = []
    for one in map(log_checkpoints.stored, rows):
        try:
            log_checkpoints.check_signatures(one, keys)
        except GateFailed:
            continue
        found.append(one)
    return found


def _origin(taken: _Taken, origin: str | None) -> str:
    if origin is not None:
        return origin
    if not taken.checkpoints:
        raise InvalidInput("the origin of the log's first checkpoint", "none", "Name it: --origin NAME")
    return taken.checkpoints[-1].checkpoint.origin


def _members(
    reg: Registry, about: Mapping[str, JSON], taken: _Taken, *, with_subject: bool
) -> dict[str, bytes]:
    withheld = [] if with_subject else [event for event in taken.events if _names_subject(event)]
    hidden = {event.seq for event in withheld}
    shown = [event for event in taken.events if event.seq not in hidden]
    facts = bundle_facts.facts(shown, {event.subject_id: _opening(event) for event in withheld})
    tree = merkle.Tree.of(merkle.leaf_of(text) for text in taken.hashes)
    ledger = _ledger(taken, tree, shown, withheld)
    keys, _ = bundle_members.keys_of(shown)
    newest = taken.checkpoints[-1] if taken.checkpoints else None
    signers = [key for key in keys if newest and key.key_id in newest.keys]
    proof = bundle_summary.proof_of(ledger, newest and newest.checkpoint, signers)
    return {
        **_records(shown),
        **_blobs(reg, taken.concerned, facts),
        "facts.json": canonical(facts),
        "ledger.json": canonical(ledger),
        "checkpoints.json": canonical(_signed(taken, tree, bare="hashes" in ledger)),
        "keys.json": canonical([key.record() for key in keys]),
        "summary.html": bundle_summary.html(about, facts, proof),
    }


def _records(shown: Sequence[Event]) -> dict[str, bytes]:
    """Manifests, audit records and evidence, each under its digest."""
    found: dict[str, bytes] = {}
    for event in shown:
        if event.kind in bundle_members.RECORDS:
            folder, name = bundle_members.RECORDS[event.kind]
            found[bundle_members.member(folder, event.subject_id)] = canonical(event.body[name])
    return found


def _blobs(reg: Registry, concerned: Concerned, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Reports of audits and signed statements."""
    reports = {audit["report"] for audit in facts["audits"]}
    named = [("reports", digest) for digest in sorted(reports)]
    named += [("attestations", digest) for digest in concerned.attestations]
    return {bundle_members.member(folder, digest): reg.blobs.read(digest) for folder, digest in named}


def _ledger(
    taken: _Taken, tree: merkle.Tree, shown: Sequence[Event], withheld: Sequence[Event]
) -> dict[str, JSON]:
    """The events with audit paths, or with all hashes where those are fewer, or nothing signed covers the events."""
    paths = {event.seq: _texts(tree.inclusion(event.seq - 1)) for event in taken.events}
    between = sum(len(tree.consistency(one.checkpoint.tree_size)) for one in taken.checkpoints)
    bare = not taken.covered or sum(map(len, paths.values())) + between > tree.size
    ledger: dict[str, JSON] = {
        "tree_size": tree.size,
        "root": merkle.text_of(tree.root),
        "events": [
            {"event": bundle_members.event_record(event), **({} if bare else {"path": paths[event.seq]})}
            for event in shown
        ],
        "withheld": [
            {"seq": event.seq, "hash": event.hash, "request": event.subject_id}
            | ({} if bare else {"path": paths[event.seq]})
            for event in withheld
        ],
    }
    return ledger | ({"hashes": list(taken.hashes)} if bare else {})


def _signed(taken: _Taken, tree: merkle.Tree, *, bare: bool) -> list[JSON]:
    """The checkpoints; with audit paths each one comes with the proof that it is of the same ledger."""
    found: list[JSON] = []
    for one in taken.checkpoints:
        record: dict[str, JSON] = {"envelope": parse(one.envelope), "note": one.note}
        if not bare:
            record["path"] = _texts(tree.consistency(one.checkpoint.tree_size))
        found.append(record)
    return found


def _texts(nodes: Sequence[bytes]) -> list[JSON]:
    return [merkle.text_of(node) for node in nodes]


def _names_subject(event: Event) -> bool:
    return event.kind == "request.received" and event.body.get("subject_ref") is not None


def _opening(event: Event) -> dict[str, Any]:
    return {name: event.body[name] for name in bundle_facts.OPENING}


def _write(path: Path, data: bytes) -> None:
    """A new file, whole or absent; writing the same again is no error."""
    if path.exists():
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
        raise Conflict(
            "a path without a file", "another file", "Name a new one: evidence is not overwritten."
        )
    with durable.disk_errors(path.parent):
        durable.write_file(path, data, 0o644)
