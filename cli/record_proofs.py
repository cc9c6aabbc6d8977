"""What keys, checkpoints, attestations and bundles print as JSON."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict


class GeneratedKey(TypedDict):
    """`key generate`: the public half, and where the private one went."""

    key_id: str
    public: str
    private: str


class KeyRecord(TypedDict):
    """A trusted key: what it may sign, and when."""

    key_id: str
    public: str
    roles: list[str]
    valid_from: str
    valid_until: str | None
    revoked_at: str | None
    revoked_reason: str | None
    name: str


class CheckpointRecord(TypedDict):
    """A signed tree head, as a DSSE envelope and as a note that transparency-log tools read."""

    v: int
    origin: str
    tree_size: int
    root: str
    at: str
    keys: list[str]
    envelope: str
    note: str


class InclusionRecord(TypedDict):
    """`checkpoint prove --event`: an audit path (RFC 6962)."""

    tree_size: int
    root: str
    path: list[str]
    seq: int
    event_hash: str


class ConsistencyRecord(TypedDict):
    """`checkpoint prove --from`: that the first tree is the beginning of the second (RFC 6962)."""

    tree_size: int
    root: str
    path: list[str]
    first: int
    first_root: str


class AttestationRecord(TypedDict):
    """A signed statement. `digest` is that of its envelope."""

    digest: str
    about_kind: str
    about_id: str
    predicate: str
    keys: list[str]
    at: str


class BundleRecord(TypedDict):
    """`bundle export`."""

    path: str
    digest: str
    size: int
    events: int
    withheld: int
    tree_size: int
    signed_size: int | None


class SignerRecord(TypedDict):
    """Who signed what in a bundle, and whether the caller trusts the key."""

    key_id: str
    name: str
    roles: list[str]
    signed: list[str]
    known: bool


class BundleProblemRecord(TypedDict):
    """A place in a bundle that is not as it was written."""

    where: str
    expected: str
    found: str


class BundleCheck(TypedDict):
    """`bundle verify`. `facts` are there only where nothing is wrong."""

    ok: bool
    kind: str
    id: str
    digest: str
    tree_size: int
    events: int
    withheld: int
    signed_size: int | None
    signers: list[SignerRecord]
    problems: list[BundleProblemRecord]
    warnings: list[str]
    facts: dict[str, Any] | None


class SignedReport(TypedDict):
    """`audit sign`: the digests of the report's bytes and of what it measured, and where the envelope is."""

    report: str
    composition: str
    verdict: str
    key_id: str
    signature: str


class CheckedReport(TypedDict):
    """`audit verify`: what was signed, and by which of the keys that count."""

    report: str
    schema: str
    composition: str
    verdict: str
    keys: list[str]


class PathFindingRecord(TypedDict):
    """One check of one path; `refused`: not in this step, and `text` names the plan that works."""

    check: str
    path: str
    outcome: Literal["passed", "failed", "refused"]
    text: str


class ReversibilityRecord(TypedDict):
    """`audit reversible`: what was proved of the channel's active version. `schema` is efface.reversibility/1."""

    schema: str
    channel: str
    version: int
    base: str
    composition: str
    precision: str
    verdict: Literal["pass", "fail"]
    created_at: str
    findings: list[PathFindingRecord]
    environment: dict[str, str]
