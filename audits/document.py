"""The audit report as a value: what was measured, what the gates said, and how to do it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from .aggregate import aggregate
from .attack import AttackResult
from .claim import CLAIMS, Claim
from .errors import RecordError
from .suite_run import SuiteRun
from .types import Evaluation, Finding, Json, Verdict, verdict_of

SCHEMA = "efface.audit/1"
"""The `schema` of the JSON document: readers refuse others; fields may be added under the same key."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """Evaluations of one or more compositions, and the gates between two of them.

    `before` and `after` are the labels of the two evaluations that `findings` compare. `asked` says in a
    sentence what was to be forgotten. `created_at` is RFC 3339 with an offset. `thresholds`, `digests`,
    `environment` and `reproduce` (command lines) are printed as they stand: keep forget text out of them.

    `claim` is what is claimed of the forgetting if the audit passes. A removable adapter supports *suppressed*; more
    needs `claim_evidence`, sentences without personal data that say what it rests on. `attacks` are those that were
    tried, none twice on one request; `suite` says how all of it was run.

    Raises RecordError on repeated labels or attacks, labels that are not there, a time without an offset, or a claim
    beyond *suppressed* without evidence.
    """

    title: str
    asked: str
    evaluations: tuple[Evaluation, ...]
    findings: tuple[Finding, ...]
    before: str
    after: str
    created_at: str
    thresholds: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    reproduce: tuple[str, ...] = ()
    claim: Claim = "suppressed"
    claim_evidence: tuple[str, ...] = ()
    attacks: tuple[AttackResult, ...] = ()
    suite: SuiteRun | None = None
    canary: Json | None = None
    """What whoever serves `after` compares its answers with (`efface.serving.probe`); as it stands in the document."""

    def __post_init__(self) -> None:
        labels = Counter(evaluation.label for evaluation in self.evaluations)
        twice = sorted(label for label, count in labels.items() if count > 1)
        if twice:
            raise RecordError(f"report: expected one evaluation per label, got several for {twice}")
        for name, label in (("before", self.before), ("after", self.after)):
            if label not in labels:
                raise RecordError(f"report: expected {name} in {sorted(labels)}, got {label!r}")
        if not _has_offset(self.created_at):
            raise RecordError(
                f"report: expected created_at like 2026-01-31T12:00:00Z, got {self.created_at!r}"
            )
        attacks = Counter((attack.name, attack.request) for attack in self.attacks)
        if again := [name for name, count in attacks.items() if count > 1]:
            raise RecordError(f"report: expected each attack once a request, got {again[:3]} more than once")
        _check_claim(self.claim, self.claim_evidence)

    @property
    def verdict(self) -> Verdict:
        """Derived from the findings, so that a report cannot contradict itself."""
        return verdict_of(self.findings)

    def evaluation(self, label: str) -> Evaluation:
        """The evaluation of that label; RecordError when there is none."""
        for evaluation in self.evaluations:
            if evaluation.label == label:
                return evaluation
        raise RecordError(f"report: no evaluation {label!r}; it has {[e.label for e in self.evaluations]}")

    def to_json(self, *, reveal: bool = False) -> Json:
        """The document as plain JSON types, all numbers finite.

        `schema` is "efface.audit/1". Without `reveal`, no prompt, reference or answer of any group is in it
        and `masked` is true. `evaluations[].aggregates` are derived from the rows and intervals are
        [low, high]; a null `request` means rows shared by all requests.
        """
        return {
            "schema": SCHEMA,
            "title": self.title,
            "asked": self.asked,
            "claim": self.claim,
            "claim_evidence": list(self.claim_evidence),
            "verdict": self.verdict,
            "created_at": self.created_at,
            "masked": not reveal,
            "before": self.before,
            "after": self.after,
            "thresholds": dict(self.thresholds),
            "findings": [finding.to_json() for finding in self.findings],
            "evaluations": [_evaluation(item, reveal) for item in self.evaluations],
            "attacks": [attack.to_json() for attack in self.attacks],
            "suite": None if self.suite is None else self.suite.to_json(),
            "digests": dict(self.digests),
            "environment": dict(self.environment),
            "reproduce": list(self.reproduce),
            **({} if self.canary is None else {"canary": self.canary}),
        }


def _evaluation(evaluation: Evaluation, reveal: bool) -> Json:
    aggregates = [item.to_json() for item in aggregate(evaluation)]
    return evaluation.to_json(reveal=reveal) | {"aggregates": aggregates}


def _check_claim(claim: str, evidence: tuple[str, ...]) -> None:
    if claim not in CLAIMS:
        raise RecordError(f"report: expected a claim of {list(CLAIMS)}, got {claim!r}")
    if claim != "suppressed" and not any(evidence):
        raise RecordError(
            f"report: expected claim_evidence for a claim of {claim}, got none: say what was merged or retrained, or "
            "claim suppressed"
        )


def _has_offset(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
