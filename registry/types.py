"""What the registry knows, as frozen records. Read this file first.

A *forget request* is answered by a trained *adapter*; adapters with weights on one base form a *composition*
(a value, not a thing); a *release* puts a composition on a channel, on the strength of an *audit*; and every
change is an *event* in the ledger. All other records are projections of the events.

Times are UTC RFC 3339 text, digests `sha256:<hex>`, weights decimal text (see `canon`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .canon import JSON, Digest, digest_json

Basis = Literal["gdpr17", "uk_gdpr", "ccpa", "copyright", "safety", "test"]
RequestState = Literal[
    "RECEIVED",
    "VERIFIED",
    "ACCEPTED",
    "TRAINED",
    "AUDITED",
    "RELEASED",
    "SHREDDED",
    "CLOSED",
    "REFUSED",
    "WITHDRAWN",
    "REOPENED",
]
AdapterKind = Literal["trained", "rendered"]
AdapterState = Literal["STAGED", "SEALED", "QUALIFIED", "REJECTED", "RETIRED", "PURGED"]
ReleaseState = Literal["CANDIDATE", "APPROVED", "ACTIVE", "SUPERSEDED", "WITHDRAWN"]
Verdict = Literal["pass", "fail"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the ledger. `kind` is `subject.new_state`; `hash` covers every other field."""

    seq: int
    v: int
    at: str
    kind: str
    actor: str
    subject_kind: str
    subject_id: str
    body: Mapping[str, JSON]
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class ForgetRequest:
    """A request to forget `n_items` rows. The rows themselves are only in the vault."""

    id: str
    basis: Basis
    state: RequestState
    n_items: int
    commitment: str
    """`hmac-sha256:<hex>` of the payload under a key that lives and dies with the request's vault entry."""
    subject_ref: str | None
    """`hmac-sha256:<hex>` of who asked, under a key of the registry: equal for equal subjects."""
    received_at: str
    due_at: str | None
    updated_at: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """A sealed LoRA. `digest` is that of its manifest, which covers every field but `state`, `sealed_at`."""

    digest: Digest
    kind: AdapterKind
    base: str
    quantization: str
    requests: tuple[str, ...]
    trained_on: str | None
    """Digest of the composition it was trained on top of; None when trained on the bare base."""
    files: Mapping[str, Digest]
    facts: Mapping[str, JSON]
    state: AdapterState
    sealed_at: str


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter in a composition; `weight` is canonical decimal text."""

    adapter: str
    weight: str


@dataclass(frozen=True, slots=True)
class Composition:
    """A base and the weighted adapters on it: a value, equal when its digest is. Build it with `compose`."""

    base: str
    quantization: str
    parts: tuple[Part, ...]
    render: str

    @property
    def adapters(self) -> tuple[str, ...]:
        """The digests of its adapters, sorted."""
        return tuple(part.adapter for part in self.parts)

    @property
    def digest(self) -> Digest:
        """`sha256:<hex>` of `record()`."""
        return digest_json(self.record())

    def record(self) -> dict[str, JSON]:
        """The JSON object that is hashed and stored."""
        parts: list[JSON] = [{"adapter": part.adapter, "weight": part.weight} for part in self.parts]
        return {
            "v": 1,
            "base": self.base,
            "quantization": self.quantization,
            "parts": parts,
            "render": self.render,
        }


@dataclass(frozen=True, slots=True)
class Audit:
    """A measurement of one composition at one precision. `digest` covers every field but `at`."""

    digest: Digest
    composition: str
    precision: str
    suite: str
    seed: int
    verdict: Verdict
    report: Digest
    """Digest of the JSON report; read it with `reg.blobs.read(audit.report)`."""
    environment: Mapping[str, str]
    at: str


@dataclass(frozen=True, slots=True)
class Release:
    """Version `version` of a channel. A rollback is a new version, never an old one again."""

    channel: str
    version: int
    composition: Composition
    rendered: str | None
    """Digest of the rendered adapter that serves the composition; None when it is served live."""
    state: ReleaseState
    audit: str | None
    reason: str
    created_by: str
    created_at: str
    approved_by: str | None
    activated_at: str | None


ProblemKind = Literal[
    "database",
    "schema",
    "event-gap",
    "event-link",
    "event-hash",
    "event-form",
    "replay",
    "projection",
    "blob-missing",
    "blob-damaged",
    "vault-missing",
    "vault-damaged",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One place where the registry is not what its events say, with what should be there and what is."""

    kind: ProblemKind
    where: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` read and what it found wrong; no problems means the registry is whole."""

    events: int
    blobs: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems
