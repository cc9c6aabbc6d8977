"""The JSON Schema of an audit report, generated from the types below: `docs/schemas/audit-report.json`.

The types say what `AuditReport.to_json` writes; tests hold reports of every shape to them, and the published file to
the types. Readers ignore fields that they do not know: some may be added under the same `schema`. Those marked as not
required are missing from reports that were written before they existed.
"""

from __future__ import annotations

import json
from typing import Any, NotRequired

from typing_extensions import TypedDict

from .attack import AttackKind
from .claim import Claim
from .document import SCHEMA
from .types import Group, Outcome, Verdict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
HOME = "https://github.com/efface/efface/tree/main/docs/schemas/audit-report.json"
TEXTS = ("prompt", "reference", "answer")
"""What a row says: in no row of a masked report."""


class MembershipDocument(TypedDict):
    """Membership scores of a row: higher is less like a row trained on. `zlib` only where `masked` is false."""

    loss: float
    zlib: NotRequired[float]
    min_k: float
    min_k_plus_plus: float


class RowDocument(TypedDict):
    """One question under one composition. The texts are there only where `masked` is false."""

    id: str
    request: str | None
    group: Group
    n_tokens: int
    probability: float
    extraction_strength: float
    exact_memorization: float
    rouge_l: float
    mentioned: bool | None
    fluency: float
    perplexity: float | None
    membership: NotRequired[MembershipDocument | None]
    prompt: NotRequired[str]
    reference: NotRequired[str]
    answer: NotRequired[str]


class AggregateDocument(TypedDict):
    """Figures of one (request, group): means over `n` rows, intervals of 95 % as [low, high]."""

    group: Group
    request: str | None
    n: int
    probability: float
    probability_ci: tuple[float, float]
    extraction_strength: float
    extraction_strength_ci: tuple[float, float]
    exact_memorization: float
    rouge_l: float
    rouge_l_ci: tuple[float, float]
    n_mention: int
    mention_rate: float | None
    mention_rate_ci: tuple[float, float] | None
    fluency: float
    n_perplexity: int
    perplexity: float | None


class EvaluationDocument(TypedDict):
    """All rows under one composition at one precision; `active` are the requests it suppresses, null: not known."""

    label: str
    composition: str
    active: list[str] | None
    precision: str
    seed: int
    seconds: float
    rows: list[RowDocument]
    aggregates: list[AggregateDocument]


class FindingDocument(TypedDict):
    """What one gate says about one (request, group)."""

    gate: str
    group: Group
    request: str | None
    value: float | None
    threshold: float
    outcome: Outcome
    text: str


class PointDocument(TypedDict):
    """One point of an attack's curve."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str


class AttackDocument(TypedDict):
    """What an attack found; `recovered` is the share of what was suppressed that came back, null: nothing could."""

    name: str
    kind: AttackKind
    request: str | None
    metric: str
    known: float
    suppressed: float
    attacked: float
    recovered: float | None
    n: int
    finding: str
    x_label: str
    points: list[PointDocument]
    settings: dict[str, str | int | float | bool]
    seconds: float
    attack: NotRequired[str]


class RowHashDocument(TypedDict):
    """A row by a keyed hash of its text: comparable under one key, and no evidence of the text without it."""

    request: str | None
    group: Group
    id: str
    hash: str
    key: str


class SuiteDocument(TypedDict):
    """How the suite was run."""

    name: str
    version: int
    digest: str
    seed: int
    precision: str
    versions: dict[str, str]
    seconds: dict[str, float]
    rows: list[RowHashDocument]
    skipped: dict[str, str]
    figures: dict[str, float]
    cached: int


class ReportDocument(TypedDict):
    """An audit report. `before` and `after` are labels of two of the `evaluations`; the gates compare those."""

    schema: str
    title: str
    asked: str
    claim: Claim
    claim_evidence: NotRequired[list[str]]
    verdict: Verdict
    created_at: str
    masked: bool
    before: str
    after: str
    thresholds: dict[str, float | None]
    findings: list[FindingDocument]
    evaluations: list[EvaluationDocument]
    attacks: NotRequired[list[AttackDocument]]
    suite: NotRequired[SuiteDocument | None]
    digests: dict[str, str]
    environment: dict[str, str]
    reproduce: list[str]
    canary: NotRequired[dict[str, object]]


def report_schema() -> dict[str, Any]:
    """The schema as published."""
    from pydantic import TypeAdapter

    made = TypeAdapter(ReportDocument).json_schema(ref_template="#/$defs/{model}")
    made["properties"]["schema"] = {"const": SCHEMA}
    head = {"$schema": DIALECT, "$id": HOME, "title": "An audit report of efface"}
    return head | {key: value for key, value in made.items() if key != "title"} | _masking()


def report_schema_text() -> str:
    """The file as it is published."""
    return json.dumps(report_schema(), indent=1, ensure_ascii=False) + "\n"


def _masking() -> dict[str, Any]:
    """Of a masked report every row lacks its texts."""
    row = {"not": {"anyOf": [{"required": [name]} for name in TEXTS]}}
    rows = {"items": {"properties": {"rows": {"items": row}}}}
    return {
        "if": {"properties": {"masked": {"const": True}}},
        "then": {"properties": {"evaluations": rows}},
    }
