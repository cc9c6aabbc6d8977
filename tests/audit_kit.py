"""Rows, evaluations and reports for the audit tests, made by hand."""

from efface.audits.attack import AttackResult, Point
from efface.audits.document import AuditReport
from efface.audits.gates import Thresholds, check
from efface.audits.suite_run import RowHash, SuiteRun, hash_row, key_name
from efface.audits.types import Evaluation, Group, Membership, RowScore

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
        "membership": Membership(0.4, 0.02, 0.3, -0.5),
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


def by_figures(**bounds: object) -> Thresholds:
    """Bounds that judge the rows at hand, however few they are."""
    return Thresholds.model_validate({"few_rows": 0} | bounds)


def report(**changes: object) -> AuditReport:
    before, after = evaluation("base", *known()), evaluation("+ q1", *forgotten(), active=("q1",))
    fields: dict[str, object] = {
        "title": "One request",
        "asked": "Forget q1.",
        "evaluations": (before, after),
        "findings": check(before, after, by_figures()),
        "before": "base",
        "after": "+ q1",
        "created_at": "2026-01-31T12:00:00Z",
        "thresholds": by_figures().flat(),
        "digests": {"base": "sha256:" + "cd" * 32},
        "environment": {"torch": "2.13.0"},
        "reproduce": ("efface audit run --suite first",),
    }
    return AuditReport(**(fields | changes))  # type: ignore[arg-type]


def attack(name: str = "relearning/random-20%", **changes: object) -> AttackResult:
    fields: dict[str, object] = {
        "kind": "relearning",
        "request": "q1",
        "metric": "probability",
        "known": 0.8,
        "suppressed": 0.1,
        "attacked": 0.45,
        "n": 20,
        "finding": "50 steps of fresh LoRA on a fifth of the rows bring back half of it.",
        "x_label": "steps",
        "points": (Point(0, 0.1), Point(25, 0.3, 0.2, 0.4), Point(50, 0.45, 0.35, 0.55)),
        "settings": {"rank": 8},
        "seconds": 12.0,
    }
    return AttackResult(name=name, **(fields | changes))  # type: ignore[arg-type]


def attacks() -> tuple[AttackResult, ...]:
    """One of each kind, as a full suite gives them."""
    weights = tuple(Point(w, 0.8 - 0.7 * min(w, 1) + 0.1 * max(0, w - 1)) for w in (0.0, 0.5, 1.0, 1.5))
    precisions = (Point(0, 0.12, 0.08, 0.16, "bf16"), Point(1, 0.2, 0.1, 0.3, "int8"))
    return (
        attack(),
        attack(
            "relearning/benign",
            attacked=0.2,
            points=(Point(0, 0.1), Point(50, 0.2)),
            finding="Related text brings back a seventh.",
        ),
        attack(
            "precision/stack",
            kind="precision",
            attacked=0.2,
            x_label="precision",
            points=precisions,
            finding="int8 gives a seventh of it back.",
        ),
        attack("prompt/prefix", kind="prompt", attacked=0.1, points=(), x_label="", finding="Nothing."),
        attack(
            "sampling/leak@16",
            kind="sampling",
            metric="mention_rate",
            attacked=0.3,
            points=(Point(1, 0.1), Point(16, 0.3)),
            x_label="samples",
            finding="16 tries name it for 30 % of the rows.",
        ),
        attack(
            "adapter/weight",
            kind="adapter",
            attacked=0.8,
            points=weights,
            x_label="weight",
            finding="At weight 0 all of it is back.",
        ),
    )


def suite_run(**changes: object) -> SuiteRun:
    fields: dict[str, object] = {
        "name": "standard",
        "version": 1,
        "digest": "sha256:" + "ef" * 32,
        "seed": 0,
        "precision": "nf4",
        "versions": {"torch": "2.13.0"},
        "seconds": {"rows": 3.0, "attacks": 40.0},
        "rows": (RowHash("q1", "forget", "forget-0", hash_row(b"k" * 32, PROMPT), key_name(b"k" * 32)),),
        "skipped": {"reference": "no model that never saw the rows was given"},
        "figures": {"lm-eval/arc_easy": 0.41},
    }
    return SuiteRun(**(fields | changes))  # type: ignore[arg-type]


def full_report(**changes: object) -> AuditReport:
    """Everything that a report can hold."""
    third = evaluation("rolled back", *known(), composition="sha256:" + "12" * 32, active=())
    fields: dict[str, object] = {
        "evaluations": (*report().evaluations, third),
        "attacks": attacks(),
        "suite": suite_run(),
        "canary": {"v": 1},
    }
    return report(**(fields | changes))
