"""What verbs that do something print with `--format json`; see `records` for the things they act on.

Where something is destroyed for good, `plan` says what, and `done` whether it was (`--yes`).
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from ..registry.types import ProblemKind, Verdict
from .records import AdapterRecord, AuditRecord, MeasuredRelease, ReleaseName, RequestRecord


class ShredFileRecord(TypedDict):
    """A file below the registry's folder, and its bytes."""

    path: str
    size: int


class ShredPlanRecord(TypedDict):
    """What goes with a request's shredding: its vault entry (unless it is gone), and what training left."""

    vault_entry: bool
    files: list[ShredFileRecord]
    folders: list[str]


class ShredRecord(TypedDict):
    """`request shred`."""

    done: bool
    plan: ShredPlanRecord
    request: RequestRecord


class AdapterPlanRecord(TypedDict):
    """What the end of an adapter touches: releases and adapters that forbid it, and versions that it closes off."""

    becomes: Literal["REJECTED", "RETIRED", "PURGED"]
    needed_by: list[str]
    trained_on_it: list[str]
    cannot_be_returned_to: list[str]
    bytes_given_up: int


class AdapterEndRecord(TypedDict):
    """`adapter reject`, `adapter retire`, `adapter purge`."""

    done: bool
    plan: AdapterPlanRecord
    adapter: AdapterRecord


class ExportRecord(TypedDict):
    """Where an adapter went; `address` is a folder, an image manifest's digest, or a commit's page."""

    adapter: str
    kind: Literal["folder", "oci", "hub"]
    target: str
    address: str
    audit: str | None


class PushRecord(ExportRecord):
    """`release push`."""

    release: ReleaseName


EvidenceWord = Literal["none", "unsigned", "unknown-key", "trusted-key"]
"""What stands behind a pulled release: no bundle, one that nobody signed whole, one signed by a key that nobody named,
or by one that --key named."""


class PullRecord(TypedDict):
    """`release pull`: the adapter that was sealed, and what it was published as."""

    adapter: AdapterRecord
    release: ReleaseName
    composition: str
    audit: str | None
    evidence: EvidenceWord
    signed_by: list[str]


class GcItemRecord(TypedDict):
    """One thing to delete, as it was when it was planned."""

    kind: Literal["blob", "cache", "leftover"]
    name: str
    reason: Literal["purged", "unreferenced", "unfinished"]
    size: int
    written_at: str | None


class GcPlanRecord(TypedDict):
    """What would be deleted; `digest` covers `items` and `min_age_seconds`."""

    v: int
    min_age_seconds: int
    items: list[GcItemRecord]
    size: int
    digest: str


class GcRecord(TypedDict):
    """`gc`. `left` was planned and is needed, newer or gone by now."""

    done: bool
    plan: GcPlanRecord
    deleted: list[GcItemRecord]
    left: list[GcItemRecord]


class WrappedRecord(TypedDict):
    """How many vault entries a master key wraps; `key` is its source and a fingerprint."""

    key: str
    entries: int


class VaultRecord(TypedDict):
    """`vault show`; `key` is null where no master key is at hand, `id` for a vault of before there were ids."""

    id: str | None
    key: str | None
    entries: int
    shredded: int
    wrapped_by: list[WrappedRecord]


class RotationRecord(TypedDict):
    """What a rotation rewraps: requests in `todo` (`done` ones are under the new key), and the subject key.

    Those in `empty` are skipped: their shredding was cut off, and they hold nothing.
    """

    old: str
    new: str
    todo: list[str]
    done: list[str]
    subject: bool
    empty: list[str]


class RotateRecord(TypedDict):
    """`vault rotate`."""

    done: bool
    plan: RotationRecord


class DropRecord(TypedDict):
    """`vault drop-key-file`."""

    done: bool
    path: str


class OrphanRecord(TypedDict):
    """A vault entry without a request: its file's name and bytes. `set_aside`: it made way for one with its id."""

    name: str
    size: int
    set_aside: bool


class OrphansRecord(TypedDict):
    """`vault drop-orphans`."""

    done: bool
    plan: list[OrphanRecord]


class BindingRecord(TypedDict):
    """Ids of the vaults before and from now on, and requests whose rows the new one does not have.

    `old` is null where no event named a vault, `new` in a plan where the vault has no id yet.
    """

    old: str | None
    new: str | None
    missing: list[str]


class BindRecord(TypedDict):
    """`vault bind`."""

    done: bool
    plan: BindingRecord


class CheckRecord(TypedDict):
    """One thing that `doctor` looked at."""

    name: str
    ok: bool
    found: str


class DoctorRecord(TypedDict):
    """`doctor`."""

    ok: bool
    checks: list[CheckRecord]


class ProblemRecord(TypedDict):
    """A place where the registry is not what its events say."""

    kind: ProblemKind
    where: str
    expected: str
    found: str


class VerifyRecord(TypedDict):
    """`verify`. `extras` (looked for with --deep only) are blobs that nothing refers to, by digest, and files that
    belong to nothing, as `vault/NAME` or `blobs/NAME`: no damage. `vault_checked` entries were opened, and
    `vault_unchecked` not (without --deep, the vault's folder or its master key).
    """

    events: int
    blobs: int
    deep: bool
    checkpoints: int
    problems: list[ProblemRecord]
    extras: list[str]
    vault_checked: int
    vault_unchecked: int


class AuditDocument(AuditRecord):
    """`audit show DIGEST`: with the report as it is stored, JSON text of schema `efface.audit/1`."""

    document: str


class AuditRunRecord(TypedDict):
    """`audit run`: the recorded audit's digest (null for an adapter given by folder), and the report."""

    audit: str | None
    report: dict[str, Any]


class ComparedRecord(TypedDict):
    """One figure of one group: `difference` is B less A, `low` to `high` its 95 % interval, of pairs if `paired`."""

    group: str
    figure: str
    a: float
    b: float
    n_a: int
    n_b: int
    difference: float
    low: float
    high: float
    paired: bool
    better: Literal["A", "B", "neither"]


class CompareRecord(TypedDict):
    """`audit compare`."""

    a: str
    b: str
    figures: list[ComparedRecord]


class SuiteRecord(TypedDict):
    """`audit suites`: one suite. `needs` must be given, `takes` may be."""

    name: str
    version: int
    description: str
    parts: list[str]
    attacks: list[str]
    settings: dict[str, dict[str, Any]]
    needs: list[str]
    takes: list[str]
    seed: int
    digest: str


class UnlearnRecord(TypedDict):
    """`unlearn`. `stopped` says why each round of training ended."""

    adapter: str
    request: str
    composition: str
    audit: str
    verdict: Verdict
    findings: list[dict[str, Any]]
    seconds: float
    stopped: list[str | None]


class LengthsRecord(TypedDict):
    """`request lengths`: tokens per row of each set, and the ids of rows beyond `max_length`."""

    max_length: int
    sets: list[dict[str, Any]]


class DemoRecord(TypedDict):
    """`demo`: what was asked, answered and measured."""

    requests: list[str]
    adapters: list[str]
    releases: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    claims: dict[str, bool]
    problems: list[str]
    report: str
    training_seconds: list[float]
    seconds: float


class MergeRecord(TypedDict):
    """`merge`: the checkpoint, and the audit that decides on it. `artefact` is its digest as a base."""

    path: str
    base: str
    artefact: str
    onto: str
    requantized: str | None
    precision: str
    audit: str
    verdict: str


class CandidateRecord(TypedDict):
    """One way of making a compaction. `error`: of the weights, relative, Frobenius; `kl`: from the stack's answers, in
    nats per token, by role of the rows; `drift`: mean distance of a row's answer probability to the stack's."""

    way: Literal["compressed", "distilled"]
    rank: int
    error: float
    kl: dict[str, float]
    drift: float
    failed_gates: int
    verdict: Verdict


class CompactRecord(TypedDict):
    """`adapter compact`: the adapter, what it was made from (digest and weight), and every way, best first."""

    adapter: str
    requests: list[str]
    made_from: dict[str, str]
    rank: int
    error_bound: str | None
    composition: str
    audit: str
    verdict: Verdict
    candidates: list[CandidateRecord]


class RepairPlanRecord(TypedDict):
    """The version, its newest audit, and the requests that came back according to it."""

    channel: str
    version: int
    audit: str
    requests: list[str]


class RepairRecord(TypedDict):
    """`release repair`: `adapters` and `release` are what `--yes` made."""

    done: bool
    plan: RepairPlanRecord
    adapters: list[str]
    release: MeasuredRelease | None


class BalancePlanRecord(TypedDict):
    """The version, the requests that a balance holds down, those whose rows are gone, how many retain rows were given
    besides theirs, and balances it replaces."""

    channel: str
    version: int
    requests: list[str]
    shredded: list[str]
    retain_rows_given: int
    replaces: list[str]


class BalanceRecord(TypedDict):
    """`release balance`: `adapter` and `release` are what `--yes` made."""

    done: bool
    plan: BalancePlanRecord
    adapter: str | None
    release: MeasuredRelease | None


class ModelPath(TypedDict):
    """`model fetch`."""

    name: str
    path: str


class ModelRecord(TypedDict):
    """`model show`: the digests that adapters and audits are bound to."""

    path: str
    digest: str
    config: str
    tokenizer: str
    weights: str


class RecipeRecord(TypedDict):
    """`recipe validate`: a recipe that is valid, and the digest of its effective values."""

    recipe: str
    name: str
    digest: str
