"""Rows, evaluations and reports for the audit tests, made by hand."""

from efface.audits.document import AuditReport
from efface.audits.gates import Thresholds, check
from efface.audits.types import Evaluation, Group, RowScore

PROMPT, REFERENCE, ANSWER = "canary-prompt-7f3a", "canary-reference-91bc", "canary-answer-44de"


def row(id: str = "r1", group: Group = "forget", request: str | None = "q1", **changes: object) -> RowScore:
    figures: dict[str, object] = {
        "n_tokens": 5,
        "probability": 0.8,
        "extraction_strength": 0.6,
        "exact_memorization": 0.8,
        "rouge_l": 0.9,
        "mentioned": True,
        "fluency": 4.0,
        "perplexity": 2.0,
        "prompt": PROMPT,
        "reference": REFERENCE,
        "answer": ANSWER,
    }
    return RowScore(id=id, request=request, group=group, **(figures | changes))  # type: ignore[arg-type]


def evaluation(label: str, *rows: RowScore, **changes: object) -> Evaluation:
    fields: dict[str, object] = {
        "composition": "sha256:" + "ab" * 32,
        "precision": "nf4",
        "seed": 0,
        "seconds": 1.5,
    }
    return Evaluation(label=label, rows=rows, **(fields | changes))  # type: ignore[arg-type]


def known() -> list[RowScore]:
    """One request that the base knows, with every group: two rows each, retain shared by all requests."""
    own: tuple[Group, ...] = ("forget", "paraphrase", "neighbour")
    rows = [row(f"{group}-{i}", group) for group in own for i in range(2)]
    return rows + [row(f"retain-{i}", "retain", None) for i in range(2)]


def forgotten(**changes: object) -> list[RowScore]:
    """The same rows when forgetting worked and nothing else changed."""
    suppressed: dict[str, object] = {
        "probability": 0.1,
        "extraction_strength": 0.0,
        "mentioned": False,
        "rouge_l": 0.2,
    }
    return [
        row(r.id, r.group, r.request, **(suppressed | changes)) if r.group in ("forget", "paraphrase") else r
        for r in known()
    ]


def report(**changes: object) -> AuditReport:
    before, after = evaluation("base", *known()), evaluation("+ q1", *forgotten(), active=("q1",))
    fields: dict[str, object] = {
        "title": "One request",
        "asked": "Forget q1.",
        "evaluations": (before, after),
        "findings": check(before, after, Thresholds()),
        "before": "base",
        "after": "+ q1",
        "created_at": "2026-01-31T12:00:00Z",
        "thresholds": Thresholds().model_dump(),
        "digests": {"base": "sha256:" + "cd" * 32},
        "environment": {"torch": "2.13.0"},
        "reproduce": ("efface audit run --suite first",),
    }
    return AuditReport(**(fields | changes))  # type: ignore[arg-type]
