"""What the registry knows, as frozen records. Read this file first.

A *forget request* is answered by a trained *adapter*; adapters with weights on one base form a *composition*
(a value, not a thing); a *release* puts a composition on a channel, on the strength of an *audit*; and every
change is an *event* in the ledger. All other records are projections of the events.

Times are UTC RFC 3339 text, digests `sha256:<hex>`, weights decimal text (see `canon`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
ClaimLevel = Literal["suppressed", "consolidated", "erased"]
"""A removable adapter suppresses, a merge with the base withdrawn consolidates, retraining erases: see `claims`."""
AdapterKind = Literal["trained", "rendered", "consolidated"]
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
    extended_to: str | None
    """The later date, where the first month was not enough (GDPR Art. 12(3))."""
    claim_level: ClaimLevel | None
    """What is claimed of a closed request: never more than its evidence shows (see `claims`)."""
    shredding_at: str | None
    """When its shredding began; if that did not end, `efface request shred` finishes it."""
    shredded_at: str | None
    """When its rows and their key were destroyed; from then on nothing can be trained on or measured with them."""
    updated_at: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """That a model was merged or retrained for a request, outside of any channel. `digest` covers all but `at`."""

    digest: Digest
    request: str
    level: ClaimLevel
    method: str
    """`merge`, `retrain` or `shard`."""
    artefact: str
    """Digest of the base that came of it."""
    audit: str
    """Digest of a passing audit of that base."""
    statement: str
    at: str


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
    error_bound: str | None
    """Decimal bound on the relative error of a compressed one; None where it is exact."""
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
    requests: tuple[str, ...] | None
    """The requests whose rows were measured and held to being forgotten, sorted: not those that were only watched, nor
    those whose rows are gone. None for an audit that does not say, as all did before."""
    at: str
    gates: Mapping[str, str] | None = None
    """The gates that decided its verdict, by name, as decimals; None for an audit that does not say."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel: how many versions it has, the active one, and its rule."""

    name: str
    versions: int
    active: int | None
    two_person: bool
    """Whether a release is let through only by somebody else than who created it (`rule_channel`)."""
    gates: Mapping[str, str] = field(default_factory=dict[str, str])
    """Bounds that an audit must have been judged under, by name, as decimals (`gate_channel`)."""


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


@dataclass(frozen=True, slots=True)
class ReleaseDiff:
    """What changed between two versions of a channel. `reweighted`: (adapter, weight before, weight after)."""

    before: Release
    after: Release
    requests_added: tuple[str, ...]
    requests_removed: tuple[str, ...]
    adapters_added: tuple[str, ...]
    adapters_removed: tuple[str, ...]
    reweighted: tuple[tuple[str, str, str], ...]
    base_changed: bool


ProblemKind = Literal[
    "database",
    "schema",
    "event-gap",
    "event-link",
    "event-hash",
    "event-form",
    "replay",
    "projection",
    "blobs",
    "blob-missing",
    "blob-damaged",
    "blob-extra",
    "head",
    "checkpoint",
    "signature",
    "vault-missing",
    "vault-damaged",
    "vault-other",
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
    extras: tuple[str, ...] = ()
    """Blobs that nothing refers to: leftovers, which `efface gc` removes. And `vault/NAME` and `blobs/NAME`: files
    that belong to nothing. Found by a deep check only."""
    checkpoints: int = 0
    """Signed checkpoints that the events were checked against."""
    vault_checked: int = 0
    """Vault entries that were opened and compared with what the ledger commits to."""
    vault_unchecked: int = 0
    """Those of other requests with rows: not a deep check, or no vault folder or master key at hand."""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems
