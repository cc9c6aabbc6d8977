"""Audit a composition: every active request measured against the bare base, at the precision it is served in."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ..audits import AuditReport, Evaluation, Finding, Probe, check
from ..registry import Audit, Composition, Registry, get_request, parse_render, read_payload, record_audit
from .bench import Bench, measure, wearing
from .canary import canary
from .data import RequestData, from_payload
from .errors import RequestError
from .prepare import probes
from .progress import Progress
from .recipe import Recipe

SUITE = "quick/1"
CLAIM_WORDS = (
    "Suppressed: the adapter can be taken off, and whoever holds the base without it can ask it everything."
)


def request_data(registry: Registry, requests: Sequence[str]) -> dict[str, RequestData]:
    """The rows of each request, out of the vault. Raises what the registry raises."""
    return {request: from_payload(read_payload(registry, request)) for request in requests}


MERGED_WORDS = (
    "Consolidated once the base is withdrawn: the forgetting is in the weights, "
    "and whoever has both can subtract them."
)


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
) -> AuditReport:
    """Measure the base and ``composition`` (rendered in ``folder``; None: the base) on the rows of ``requests``.

    ``active`` are the requests that the composition suppresses; the gates of ``recipe`` hold them to it.
    ``shredded`` are those that it suppresses too and that nothing can measure: the report says so.
    """
    rows = probes(bench, requests, recipe, progress=progress) if rows is None else rows
    base = bench.base.model
    before = measure(bench, base, bench.bare, rows, label="base", active=(), progress=progress)
    with wearing(bench, folder) as model:
        after = measure(bench, model, composition, rows, label=label, active=active, progress=progress)
        served = canary(bench, model, composition)
    report = report_of(
        bench,
        before,
        after,
        recipe,
        title=f"Audit of {label}",
        active=active,
        shredded=shredded,
        note=_rendered_words(composition),
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
    removable: bool = True,
    note: str = "",
) -> AuditReport:
    """Gate ``after`` against ``before`` and put everything that was measured into one document.

    ``removable``: what was measured is an adapter, which suppresses, and not merged weights. ``note`` is said at the
    end of what was asked.
    """
    return AuditReport(
        title=title,
        asked=f"Forget {', '.join([*active, *shredded]) or 'nothing'}; keep the rest. "
        + (CLAIM_WORDS if removable else MERGED_WORDS)
        + note,
        evaluations=(before, *between, after),
        findings=(*check(before, after, recipe.gates), *map(_not_measured, shredded)),
        before=before.label,
        after=after.label,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        thresholds=recipe.gates.model_dump(),
        digests={
            "base": bench.base.fingerprint.digest,
            "composition": after.composition,
            "recipe": recipe.digest,
        },
        environment=environment(bench),
        reproduce=("efface audit run --release CHANNEL --model BASE",),
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
        suite=SUITE,
        seed=recipe.seed,
        verdict=report.verdict,
        report=json.dumps(report.to_json(), allow_nan=False).encode(),
        environment=report.environment,
        requests=measured,
        actor=actor,
    )


def environment(bench: Bench) -> dict[str, str]:
    """Versions and machine facts that can move a figure."""
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(bench.base.model.device),
        **{name: version(name) for name in packages},
    }
