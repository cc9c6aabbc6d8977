"""How far the forgetting went: the forget rows under a model that never saw them, and the findings that come of it."""

from __future__ import annotations

from ..adapters import Base
from ..audits import Evaluation, Finding
from ..audits.gate_scope import check_scope
from ..audits.gates import Thresholds
from .bench import Bench, measure
from .parts import Seen


def reference_rows(seen: Seen, reference: Base) -> Evaluation:
    """The forget rows of the active requests, measured on ``reference`` as the audit measures its own."""
    active = seen.after.active
    rows = [
        p for p in seen.probes if p.group == "forget" and (active is None or p.request in (*active, None))
    ]
    bench = Bench(reference, seen.bench.method, memory=seen.bench.memory)
    return measure(
        bench, reference.model, bench.bare, rows, label="reference", active=(), progress=seen.progress
    )


def scope_findings(
    bench: Bench,
    before: Evaluation,
    after: Evaluation,
    gates: Thresholds,
    *,
    report: bool,
    reference: Evaluation | None,
) -> tuple[Finding, ...]:
    """`check_scope`, with a blind guess of ``bench``'s vocabulary as ignorance where there is nothing better."""
    chance = 1 / len(bench.base.tokenizer)
    return check_scope(before, after, gates, report=report, reference=reference, chance=chance)
