"""What `--format json` prints, as types: the published schema (`schemas`) is generated from them.

Registry values keep their field names. All times are UTC RFC 3339, digests `sha256:<hex>`, weights decimal text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal, cast

from typing_extensions import TypedDict

from ..registry import (
    Adapter,
    Audit,
    Channel,
    Composition,
    Event,
    Evidence,
    ForgetRequest,
    Release,
    ReleaseDiff,
    effective,
    overdue,
    timestamp,
)
from ..registry.types import AdapterKind, AdapterState, Basis, ClaimLevel, ReleaseState, RequestState, Verdict


class RequestRecord(TypedDict):
    """A forget request. Its rows are in the vault only; `subject_ref` is a keyed hash of who asked."""

    id: str
    basis: Basis
    state: RequestState
    n_items: int
    commitment: str
    subject_ref: str | None
    received_at: str
    due_at: str | None
    extended_to: str | None
    claim_level: ClaimLevel | None
    shredding_at: str | None
    shredded_at: str | None
    updated_at: str
    effective_due_at: str | None
    overdue: bool


class OpenedRecord(RequestRecord):
    """A request just opened, and the earlier ones of the same subject."""

    earlier_requests: list[str]


class ReleaseName(TypedDict):
    """A version of a channel."""

    channel: str
    version: int


class EvidenceRecord(TypedDict):
    """A merge or retraining that was recorded for a request."""

    digest: str
    request: str
    level: ClaimLevel
    method: str
    artefact: str
    audit: str
    statement: str
    at: str


class RequestDetails(RequestRecord):
    """A request with what answers it: adapters, active releases, evidence, and the most that may be claimed."""

    adapters: list[str]
    releases: list[ReleaseName]
    evidence: list[EvidenceRecord]
    supported_claim: ClaimLevel | None


class AdapterRecord(TypedDict):
    """A sealed adapter; `facts` are its settings, `files` the digests of its two files."""

    digest: str
    kind: AdapterKind
    base: str
    quantization: str
    requests: list[str]
    trained_on: str | None
    files: dict[str, str]
    facts: dict[str, Any]
    error_bound: str | None
    state: AdapterState
    sealed_at: str


class OverlapRecord(TypedDict):
    """Two adapters, compared from their files. `projection`: what the second adds along the first, as a share of it."""

    first: str
    second: str
    first_requests: list[str]
    second_requests: list[str]
    forecast: Literal["undoes", "strengthens", "shares", "apart"]
    cosine: float
    projection: float
    projection_back: float
    inputs: float
    outputs: float


class AuditRecord(TypedDict):
    """A measurement of one composition at one precision; `report` is the digest of its document, `requests` those that
    it measured and held to being forgotten, `gates` what decided its verdict (null: it does not say)."""

    digest: str
    composition: str
    precision: str
    suite: str
    seed: int
    verdict: Verdict
    report: str
    environment: dict[str, str]
    requests: list[str] | None
    at: str
    gates: dict[str, str] | None


class PartRecord(TypedDict):
    """An adapter in a composition."""

    adapter: str
    weight: str


class CompositionRecord(TypedDict):
    """A base and the weighted adapters on it; `digest` covers everything else here."""

    digest: str
    v: int
    base: str
    quantization: str
    parts: list[PartRecord]
    render: str


class ReleaseRecord(TypedDict):
    """A version of a channel, and the requests that it suppresses."""

    channel: str
    version: int
    state: ReleaseState
    requests: list[str]
    composition: CompositionRecord
    rendered: str | None
    audit: str | None
    approved_by: str | None
    reason: str
    created_at: str


class MeasuredRelease(ReleaseRecord):
    """A version that was just made. `measured_by` is the audit that decided on it, passed or not."""

    measured_by: str
    verdict: Verdict


class ChannelRecord(TypedDict):
    """A channel: how many versions it has, the active one, whether it asks for two people, and its gates."""

    channel: str
    versions: int
    active: int | None
    two_person: bool
    gates: dict[str, str]


class Reweighted(TypedDict):
    """An adapter that two versions weigh differently."""

    adapter: str
    before: str
    after: str


class DiffRecord(TypedDict):
    """What changed from version `before` of a channel to version `after`."""

    channel: str
    before: int
    after: int
    requests_added: list[str]
    requests_removed: list[str]
    adapters_added: list[str]
    adapters_removed: list[str]
    reweighted: list[Reweighted]
    base_changed: bool


class EventRecord(TypedDict):
    """One line of the ledger; `hash` covers everything else in it."""

    seq: int
    v: int
    at: str
    kind: str
    actor: str
    subject_kind: str
    subject_id: str
    body: dict[str, Any]
    prev_hash: str
    hash: str


def request_json(request: ForgetRequest, now: datetime) -> RequestRecord:
    """A request, and whether it is overdue at `now`."""
    found = {"effective_due_at": effective(request), "overdue": overdue(request, timestamp(now))}
    return cast("RequestRecord", asdict(request) | found)


def evidence_json(found: Iterable[Evidence]) -> list[EvidenceRecord]:
    """What was recorded for a request."""
    return [cast("EvidenceRecord", asdict(one)) for one in found]


def adapter_json(adapter: Adapter) -> AdapterRecord:
    """An adapter with its manifest's facts."""
    plain = {"files": dict(adapter.files), "facts": dict(adapter.facts), "requests": list(adapter.requests)}
    return cast("AdapterRecord", asdict(adapter) | plain)


def audit_json(audit: Audit) -> AuditRecord:
    """An audit record; its report is the blob `report`."""
    named = None if audit.requests is None else list(audit.requests)
    return cast("AuditRecord", asdict(audit) | {"environment": dict(audit.environment), "requests": named})


def composition_json(composition: Composition) -> CompositionRecord:
    """A composition with its digest."""
    return cast("CompositionRecord", {"digest": composition.digest, **composition.record()})


def release_json(release: Release, requests: list[str]) -> ReleaseRecord:
    """A release with the requests that it suppresses."""
    return {
        "channel": release.channel,
        "version": release.version,
        "state": release.state,
        "requests": requests,
        "composition": composition_json(release.composition),
        "rendered": release.rendered,
        "audit": release.audit,
        "approved_by": release.approved_by,
        "reason": release.reason,
        "created_at": release.created_at,
    }


def diff_json(diff: ReleaseDiff) -> DiffRecord:
    """What changed between two versions."""
    return {
        "channel": diff.before.channel,
        "before": diff.before.version,
        "after": diff.after.version,
        "requests_added": list(diff.requests_added),
        "requests_removed": list(diff.requests_removed),
        "adapters_added": list(diff.adapters_added),
        "adapters_removed": list(diff.adapters_removed),
        "reweighted": [{"adapter": a, "before": was, "after": now} for a, was, now in diff.reweighted],
        "base_changed": diff.base_changed,
    }


def event_json(event: Event) -> EventRecord:
    """One line of the ledger."""
    return cast("EventRecord", asdict(event) | {"body": event.body})


def channel_json(channel: Channel) -> ChannelRecord:
    """A channel with its rules."""
    return {
        "channel": channel.name,
        "versions": channel.versions,
        "active": channel.active,
        "two_person": channel.two_person,
        "gates": dict(channel.gates),
    }
