"""What a bundle about a request or a channel is about: the subjects, and the events that made them what they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import checks, compositions, ledger, requests
from .canon import parse
from .errors import NotFound
from .log_checkpoints import SignedCheckpoint
from .tables import Row, Tables, chunks
from .types import Event


@dataclass(frozen=True, slots=True)
class Concerned:
    """The ids of everything that a bundle shows, sorted. Adapters of other requests in a stack are digests only."""

    requests: tuple[str, ...]
    adapters: tuple[str, ...]
    releases: tuple[str, ...]
    audits: tuple[str, ...]
    evidence: tuple[str, ...]
    attestations: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[str, ...]
    """Those of the releases: their rules."""


def of_request(db: Tables, request_id: str) -> Concerned:
    """A request with its adapters and every release that ever held one. Raises NotFound."""
    requests.load(db, request_id)
    adapters = {row["adapter"] for row in db.find("adapter_request", order="adapter", request=request_id)}
    trained = {
        row["digest"] for row in _among(db, "adapter", "digest", adapters) if row["kind"] != "rendered"
    }
    holding = {row["composition"] for row in _among(db, "composition_part", "adapter", trained)}
    return _concerned(db, {request_id}, trained, _among(db, "release", "composition", holding))


def of_channel(db: Tables, channel: str) -> Concerned:
    """Every version of a channel with its adapters and the requests that they answer. Raises NotFound."""
    releases = db.find("release", order="version", channel=checks.channel(channel))
    if not releases:
        raise NotFound(f"a release on {channel}", "none", "Name a channel of this registry.")
    held = {row["composition"] for row in releases}
    adapters = {row["adapter"] for row in _among(db, "composition_part", "composition", held)}
    answered = {row["request"] for row in _among(db, "adapter_request", "adapter", adapters)}
    return _concerned(db, answered, adapters, releases)


def events_of(
    db: Tables, concerned: Concerned, signers: Iterable[str], *, with_subject: bool = False
) -> list[Event]:
    """The events of these subjects and of the keys that signed for them, in order; who asked only if told to."""
    ids = {
        "request": concerned.requests,
        "adapter": concerned.adapters,
        "release": concerned.releases,
        "audit": concerned.audits,
        "evidence": concerned.evidence,
        "attestation": concerned.attestations,
        "key": tuple({*concerned.keys, *signers}),
        "channel": concerned.channels,
    }
    wanted = {subject for found in ids.values() for subject in found}
    rows = _among(db, "event", "subject_id", wanted)
    found = [
        row
        for row in rows
        if row["subject_id"] in ids.get(row["subject_kind"], ())
        and (with_subject or row["kind"] != "request.identified")
    ]
    return [ledger.event_of(row) for row in sorted(found, key=lambda row: row["seq"])]


def checkpoint_rows(db: Tables, size: int, most: int) -> list[Row]:
    """The newest checkpoints of at most `size` events, smallest first."""
    rows = db.find("checkpoint", descending=True, after=size + 1, limit=most)
    return list(reversed(rows))


def covers(signed: SignedCheckpoint | None, events: Iterable[Event]) -> bool:
    """Whether a checkpoint has all these events."""
    return signed is not None and all(event.seq <= signed.checkpoint.tree_size for event in events)


def _concerned(db: Tables, asked: set[str], adapters: set[str], releases: list[Row]) -> Concerned:
    shown = adapters | {row["rendered"] for row in releases if row["rendered"]}
    alone = {_alone(row) for row in _among(db, "adapter", "digest", adapters)}
    measured = {row["composition"] for row in releases} | alone
    evidence = _among(db, "evidence", "request", asked)
    audits = {row["digest"] for row in _among(db, "audit", "composition", measured)}
    audits |= {row["audit"] for row in releases if row["audit"]}
    for row in evidence:
        record: Any = parse(row["record"])
        audits.add(record["audit"])
    names = {f"{row['channel']}@{row['version']}" for row in releases}
    attested = [
        row
        for row in _among(db, "attestation", "about_id", {*shown, *audits, *names})
        if row["about_kind"] in ("adapter", "audit", "release")
    ]
    signers: set[str] = set()
    for row in attested:
        listed: Any = parse(row["keys"])
        signers.update(listed)
    return Concerned(
        requests=tuple(sorted(asked)),
        adapters=tuple(sorted(shown)),
        releases=tuple(sorted(names)),
        audits=tuple(sorted(audits)),
        evidence=tuple(sorted(row["digest"] for row in evidence)),
        attestations=tuple(sorted(row["digest"] for row in attested)),
        keys=tuple(sorted(signers)),
        channels=tuple(sorted({row["channel"] for row in releases})),
    )


def _alone(row: Row) -> str:
    """The digest of the composition of one adapter: what is audited right after training."""
    return compositions.compose(row["base"], row["quantization"], [(row["digest"], 1)]).digest


def _among(db: Tables, table: str, column: str, values: Iterable[str]) -> list[Row]:
    """The rows whose column has one of the values; a few hundred at a time, as databases want it."""

    def where(some: tuple[Any, ...]) -> dict[str, Any]:
        return {column: some}

    return [row for some in chunks(sorted(values)) for row in db.find(table, **where(some))]
