"""Audit a composition: every active request measured against the bare base, at the precision it is served in."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ..adapters.compose import Part
from ..audits import AuditReport, Claim, Evaluation, Finding, Probe, check
from ..audits.gate_attacks import check_attacks, check_rebound
from ..registry import Audit, Composition, Registry, get_request, parse_render, read_payload, record_audit
from .bench import Bench, measure, wearing
from .canary import canary
from .data import RequestData, from_payload
from .errors import RequestError
from .given import check_given
from .held import Held
from .parts import Seen
from .plan import quick
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe
from .scope_part import scope_findings
from .suite import Extras, run_suite, suite_run

SUITE = "quick/1"
CLAIM_WORDS: Mapping[Claim, str] = {
    "suppressed": "Suppressed: the adapter can be taken off, and whoever holds the base without it can ask it "
    "everything.",
    "consolidated": "Consolidated once the base is withdrawn: the forgetting is in the weights, "
    "and whoever has both can subtract them.",
    "erased": "Erased: this model was trained without the rows, or the part that learned them was made again.",
}
"""The end of what was asked: what the answer to it is worth."""


def request_data(registry: Registry, requests: Sequence[str]) -> dict[str, RequestData]:
    """The rows of each request, out of the vault. Raises what the registry raises."""
    return {request: from_payload(read_payload(registry, request)) for request in requests}


@dataclass(frozen=True, slots=True)
class AuditRows:
    """What there is to measure requests with.

    ``active``: those that a composition suppresses and whose rows are there; ``shredded``: those whose rows are gone,
    so that nothing can measure them any more; ``requests``: the rows of the active and of others that are watched.
    """

    active: tuple[str, ...]
    shredded: tuple[str, ...]
    requests: Mapping[str, RequestData]


def audit_rows(registry: Registry, active: Sequence[str], watched: Sequence[str] = ()) -> AuditRows:
    """The rows of ``active`` and ``watched`` requests as far as they are not shredded.

    Raises `RequestError` when no request has rows left: an audit without rows says nothing.
    """
    asked = sorted({*active, *watched})
    gone = {name for name in asked if get_request(registry, name).shredding_at is not None}
    if asked and gone == set(asked):
        raise RequestError(
            f"the rows of {', '.join(asked)} are shredded, so nothing is left to measure this composition with: "
            "expected at least one request with rows"
        )
    rows = request_data(registry, [name for name in asked if name not in gone])
    here = tuple(name for name in sorted(set(active)) if name not in gone)
    return AuditRows(here, tuple(sorted(gone & set(active))), rows)


def audit_composition(
    bench: Bench,
    composition: Composition,
    folder: Path | None,
    requests: Mapping[str, RequestData],
    *,
    active: Sequence[str],
    recipe: Recipe,
    label: str,
    shredded: Sequence[str] = (),
    progress: Progress | None = None,
    rows: Sequence[Probe] | None = None,
    parts: Sequence[Part] = (),
    held: Held | None = None,
) -> AuditReport:
    """Measure the base and ``composition`` (rendered in ``folder``; None: the base) on the rows of ``requests``.

    ``active`` are the requests that the composition suppresses; the gates of ``recipe`` hold them to it.
    ``shredded`` are those that it suppresses too and that nothing can measure: the report says so. ``parts``: the
    adapters that ``folder`` was composed of. ``held``: what its channel holds it to besides.
    """
    check_given(bench.plan, requests, active)
    rows = probes(bench, requests, recipe, progress=progress) if rows is None else rows
    base = bench.base.model
    before = measure(bench, base, bench.bare, rows, label="base", active=(), progress=progress)
    with wearing(bench, folder) as model:
        after = measure(bench, model, composition, rows, label=label, active=active, progress=progress)
        served = canary(bench, model, composition)
    plan = bench.plan or quick()
    seen = Seen(
        bench,
        bench,
        composition,
        folder,
        requests,
        tuple(rows),
        before,
        after,
        plan.sources,
        plan.suite.seed,
        progress or Silent(),
    )
    report = report_of(
        bench,
        before,
        after,
        recipe,
        title=f"Audit of {label}",
        active=active,
        shredded=shredded,
        note=_rendered_words(composition),
        extras=run_suite(seen, plan.suite, parts),
        held=held,
    )
    return replace(report, canary=served.to_json())


def report_of(
    bench: Bench,
    before: Evaluation,
    after: Evaluation,
    recipe: Recipe,
    *,
    title: str,
    active: Sequence[str],
    between: Sequence[Evaluation] = (),
    shredded: Sequence[str] = (),
    claim: Claim = "suppressed",
    claim_evidence: Sequence[str] = (),
    note: str = "",
    extras: Extras | None = None,
    held: Held | None = None,
) -> AuditReport:
    """Gate ``after`` against ``before`` and put everything that was measured into one document.

    ``claim``: what is claimed if it passes; more than *suppressed*, which is what an adapter does, needs sentences of
    ``claim_evidence`` that say what it rests on. ``note`` is said at the end of what was asked. ``extras``: what a
    suite found beyond the rows. ``held``: what its channel holds it to besides the recipe; the stricter of both counts.
    """
    held, attacks = held or Held(), extras.attacks if extras else ()
    gates = recipe.gates.stricter(held.gates) if held.gates else recipe.gates
    findings = (
        *check(before, after, gates),
        *check_attacks(attacks, gates.max_recovered, after.active, gates.level),
        *(
            ()
            if gates.max_rebound is None
            else check_rebound(after, held.earlier, gates.max_rebound, gates.level)
        ),
        *scope_findings(
            bench,
            before,
            after,
            gates,
            report=extras is not None and extras.scope,
            reference=extras.reference if extras else None,
        ),
        *map(_not_measured, shredded),
    )
    return AuditReport(
        title=title,
        asked=f"Forget {', '.join([*active, *shredded]) or 'nothing'}; keep the rest. "
        + CLAIM_WORDS[claim]
        + note,
        evaluations=(before, *between, after),
        findings=findings,
        attacks=attacks,
        suite=extras.run if extras else suite_run(bench, None, before, after),
        before=before.label,
        after=after.label,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        thresholds=gates.flat(),
        digests={
            "base": bench.base.fingerprint.digest,
            "composition": after.composition,
            "recipe": recipe.digest,
        },
        environment=environment(bench),
        reproduce=("efface audit run --release CHANNEL --model BASE",),
        claim=claim,
        claim_evidence=tuple(claim_evidence),
    )


def _rendered_words(composition: Composition) -> str:
    if parse_render(composition.render).exact:
        return ""
    return f" Rendered as {composition.render}: an approximation of the stack, measured as it is served."


def _not_measured(request: str) -> Finding:
    """Its adapter is in the composition as it was audited, but what others do to it nobody can see any more."""
    text = "not measured: its rows are shredded, so only audits from before that speak of it"
    return Finding("forgetting", "forget", request, None, 0.0, "not measured", text)


def record(
    registry: Registry,
    composition: Composition,
    report: AuditReport,
    recipe: Recipe,
    actor: str,
    *,
    measured: Sequence[str],
) -> Audit:
    """Write the audit (without any text of the rows) into the ledger.

    ``measured``: the requests that its gates held to being forgotten, `AuditRows.active`.
    """
    return record_audit(
        registry,
        composition=composition.digest,
        precision=composition.quantization,
        suite=report.suite.title if report.suite else SUITE,
        seed=recipe.seed,
        verdict=report.verdict,
        report=json.dumps(report.to_json(), allow_nan=False).encode(),
        environment=report.environment,
        requests=measured,
        gates={name: str(bound) for name, bound in report.thresholds.items() if bound is not None},
        actor=actor,
    )


def environment(bench: Bench) -> dict[str, str]:
    """Versions and machine facts that can move a figure."""
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(bench.base.model.device),
        "compute": str(bench.base.model.dtype).removeprefix("torch."),
        **{name: version(name) for name in packages},
    }
