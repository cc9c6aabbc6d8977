"""Merge what a channel serves into a checkpoint, and audit that checkpoint at the precision it will be served in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters import AdapterError, checkpoint_files
from ..adapters import Part as FolderPart
from ..adapters.merge import Merged, Served, Verdict, check_merge, judged, merging
from ..adapters.model import fingerprint, resolve
from ..audits import AuditReport, Evaluation, Probe
from ..registry import (
    Audit,
    Composition,
    Registry,
    Release,
    active_release,
    adapter_folder,
    checks,
    compose,
    get_adapter,
    parse_render,
)
from ..serving.render import folder_parts
from .attest import signer
from .audit import AuditRows, audit_rows, record, report_of
from .bench import Bench, encode_probes, measure, open_bench
from .errors import RequestError
from .given import check_given
from .held import Held, held_to
from .parts import Seen
from .plan import Plan, quick
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe
from .release import requests_in
from .row_cache import RowMemory
from .suite import run_suite


@dataclass(frozen=True, slots=True)
class MergedChannel:
    """A merged checkpoint, as a base the ``composition`` without adapters, and the audit that decides on it."""

    merged: Merged
    composition: Composition
    audit: Audit
    report: AuditReport


def merge_channel(
    registry: Registry,
    channel: str,
    model: str | Path,
    out: Path,
    recipe: Recipe,
    *,
    onto: str = "original",
    requantize: str | None = None,
    precision: str = "bf16",
    plan: Plan | None = None,
    memory: RowMemory | None = None,
    actor: str,
    progress: Progress | None = None,
) -> MergedChannel:
    """Merge the active release of ``channel`` into ``model`` as the new folder ``out``, and audit it at ``precision``.

    What is merged is what is served: of a release that is rendered approximately, the rendered adapter. ``out`` appears
    once the audit is recorded, its verdict in `efface_merge.json` and the model card; whatever raises leaves nothing.
    ``onto``: `original` weights, or `nf4` or `int8`, what the base that was trained on computes with. ``requantize``:
    store it quantized to ``precision``, which is then the same. ``plan``: the suite of the audit, `quick` by default
    (one that asks for more than rows holds both models in memory); ``memory``: figures of rows from runs before. The
    gates of ``channel`` hold as they do for its releases. The audit may fail: then the folder is not to be served, and
    says so, see ``report.verdict``. It is evidence that the requests it measured are consolidated once the base is
    withdrawn (`efface.registry.record_evidence`); those shredded before cannot be measured: suppressed at most.

    Raises `RequestError` for a bare channel, another base, or requests whose rows are all shredded, and what merging,
    loading and the registry raise.
    """
    checks.actor(actor)
    if requantize not in (None, precision):
        raise RequestError(
            f"expected an audit at {requantize}, as the checkpoint is stored, got {precision}: it can be "
            "loaded as that only"
        )
    progress = progress or Silent()
    release = active_release(registry, channel)
    if not release.composition.parts:
        raise RequestError(f"{channel}@{release.version} is the bare base: expected a release with adapters")
    base = resolve(model)
    checkpoint_files.shards(base)  # what lacks a shard would be another base, too
    if (came := fingerprint(base).digest) != release.composition.base:
        raise RequestError(
            f"{channel}@{release.version} is on base {release.composition.base}, but {base} is {came}: "
            "give the base that its adapters were trained on"
        )
    parts = _served_parts(registry, release)
    check_merge(base, parts, out, onto=onto, requantize=requantize)
    signs = signer(registry, actor)
    active = requests_in(registry, release.composition)
    known = audit_rows(registry, active)
    check_given(plan, known.requests, known.active)
    at = recipe.model_copy(update={"quantization": precision})
    held = held_to(registry, channel, precision, recipe.gates, release.composition)
    audited = _Audited(
        f"{channel}@{release.version} merged", known, at, plan or quick(), memory, progress, held
    )
    before = _before(base, audited)
    progress.phase("Merging")
    mixed, render = release.composition, release.composition.render
    served = Served(mixed.digest, render, exact=parse_render(render).exact)
    with merging(
        base, parts, out, onto=onto, requantize=requantize, expect=mixed.base, served=served
    ) as merged:
        report = _audit(before, merged, served, audited, out)
        composition = compose(merged.fingerprint.digest, precision, ())
        audit = record(registry, composition, report, recipe, actor, measured=known.active)
        signs.audit(registry, audit, report)
        judged(merged.path, _verdict(audit, report))
    return MergedChannel(replace(merged, path=out), composition, audit, report)


def _served_parts(registry: Registry, release: Release) -> list[FolderPart]:
    """What ``release`` serves: its parts, or the adapter that approximates them."""
    if release.rendered is not None and not parse_render(release.composition.render).exact:
        base = get_adapter(registry, release.rendered).base
        return [FolderPart(adapter_folder(registry, release.rendered), base=base)]
    return folder_parts(registry, release.composition)


def _verdict(audit: Audit, report: AuditReport) -> Verdict:
    gates = {
        outcome: {one.gate for one in report.findings if one.outcome == outcome}
        for outcome in ("passed", "failed")
    }
    passed = tuple(sorted(gates["passed"] - gates["failed"]))
    return Verdict(audit.digest, audit.precision, report.verdict, passed, tuple(sorted(gates["failed"])))


@dataclass(frozen=True, slots=True)
class _Audited:
    label: str
    known: AuditRows
    recipe: Recipe
    plan: Plan
    memory: RowMemory | None
    progress: Progress
    held: Held

    def bench(self, model: Path) -> Bench:
        return open_bench(model, self.recipe, memory=self.memory, plan=self.plan)


@dataclass(frozen=True, slots=True)
class _Before:
    """The base as measured: ``kept`` where the suite compares models, else one is in memory at a time."""

    digest: str
    rows: tuple[Probe, ...]
    measured: Evaluation
    kept: Bench | None


def _before(base: Path, audited: _Audited) -> _Before:
    """Measure ``base``, and so find the rows that cannot be measured before anything is written."""
    bench = audited.bench(base)
    rows = probes(bench, audited.known.requests, audited.recipe, progress=audited.progress)
    measured = _measured(bench, rows, "base", (), audited.progress)
    suite = audited.plan.suite
    kept = bench if suite.attacks or len(suite.parts) > 1 else None
    return _Before(bench.base.fingerprint.digest, rows, measured, kept)


def _audit(base: _Before, merged: Merged, served: Served, audited: _Audited, out: Path) -> AuditReport:
    """Audit what is to become ``out``, against the ``base``."""
    label, known, recipe, progress = audited.label, audited.known, audited.recipe, audited.progress
    try:
        bench = audited.bench(merged.path)
    except AdapterError as error:
        raise RequestError(str(error).replace(str(merged.path), f"{out} as merged")) from error
    if bench.base.fingerprint != merged.fingerprint:
        raise RequestError(
            f"{out}: expected what was merged, got other files: the disk is faulty; merge again"
        )
    before, suite = base.measured, audited.plan.suite
    after = _measured(bench, base.rows, label, known.active, progress)
    seen = Seen(
        bench,
        base.kept or bench,
        bench.bare,
        None,
        known.requests,
        base.rows,
        before,
        after,
        audited.plan.sources,
        suite.seed,
        progress,
    )
    return report_of(
        bench,
        before,
        after,
        recipe,
        title=f"Audit of {label}",
        active=known.active,
        shredded=known.shredded,
        claim="consolidated",
        claim_evidence=_evidence(base.digest, merged, served, known),
        extras=run_suite(seen, suite),
        held=audited.held,
    )


def _evidence(before: str, merged: Merged, served: Served, known: AuditRows) -> list[str]:
    """What the claim of a merge rests on, and what it cannot show."""
    gone = ", ".join(known.shredded)
    how = "" if served.exact else f", rendered as {served.render} (an approximation),"
    return [
        f"The adapters{how} were merged into the weights: base {before} became {merged.fingerprint.digest}.",
        "It holds only if nobody serves or hands out the model before any more. No audit can see that: whoever "
        "withdraws it records it (efface request evidence).",
        *([f"Of {gone}, whose rows are shredded, no more than suppressed is shown."] if gone else []),
    ]


def _measured(
    bench: Bench, rows: Sequence[Probe], label: str, active: Sequence[str], progress: Progress
) -> Evaluation:
    encode_probes(bench, rows)
    return measure(bench, bench.base.model, bench.bare, rows, label=label, active=active, progress=progress)
