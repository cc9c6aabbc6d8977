"""Merge what a channel serves into a checkpoint, and audit that checkpoint at the precision it will be served in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters import Part as FolderPart
from ..adapters.merge import Merged, merge
from ..adapters.model import fingerprint, resolve
from ..audits import AuditReport, Evaluation, Probe
from ..registry import Audit, Composition, Registry, active_release, adapter_folder, checks, compose
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

    ``onto``: `original` weights, or `nf4` or `int8`, what the base that was trained on computes with. ``requantize``:
    store it quantized to ``precision``, which is then the same. ``plan``: the suite of the audit, `quick` by default
    (one that asks for more than rows holds both models in memory); ``memory``: figures of rows from runs before. The
    gates of ``channel`` hold as they do for its releases. The audit may fail: then the folder is not to be served, see
    ``report.verdict``. It is evidence that the requests it measured are consolidated once the base is
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
    if (came := fingerprint(base).digest) != release.composition.base:
        raise RequestError(
            f"{channel}@{release.version} is on base {release.composition.base}, but {base} is {came}: "
            "give the base that its adapters were trained on"
        )
    signs = signer(registry, actor)
    active = requests_in(registry, release.composition)
    known = audit_rows(registry, active)
    check_given(plan, known.requests, known.active)
    at = recipe.model_copy(update={"quantization": precision})
    progress.phase("Merging")
    parts = [FolderPart(adapter_folder(registry, p.adapter), p.weight) for p in release.composition.parts]
    merged = merge(base, parts, out, onto=onto, requantize=requantize, expect=release.composition.base)
    composition = compose(merged.fingerprint.digest, precision, ())
    audited = _Audited(f"{channel}@{release.version} merged", known, at, plan or quick(), memory, progress)
    held = held_to(registry, channel, precision, recipe.gates, release.composition)
    report = _audit(base, release.composition.base, merged, audited, held)
    audit = record(registry, composition, report, recipe, actor, measured=known.active)
    signs.audit(registry, audit, report)
    return MergedChannel(merged, composition, audit, report)


@dataclass(frozen=True, slots=True)
class _Audited:
    label: str
    known: AuditRows
    recipe: Recipe
    plan: Plan
    memory: RowMemory | None
    progress: Progress

    def bench(self, model: Path) -> Bench:
        return open_bench(model, self.recipe, memory=self.memory, plan=self.plan)


def _audit(base: Path, before_merge: str, merged: Merged, audited: _Audited, held: Held) -> AuditReport:
    """The base first, then what was merged: one model in memory at a time, unless the suite compares the two."""
    label, known, recipe, progress = audited.label, audited.known, audited.recipe, audited.progress
    old = audited.bench(base)
    rows = probes(old, known.requests, recipe, progress=progress)
    before = _measured(old, rows, "base", (), progress)
    suite = audited.plan.suite
    kept = old if suite.attacks or len(suite.parts) > 1 else None
    del old
    bench = audited.bench(merged.path)
    if bench.base.fingerprint != merged.fingerprint:
        raise RequestError(
            f"{merged.path}: expected what was merged, got other files: the disk is faulty; merge again"
        )
    after = _measured(bench, rows, label, known.active, progress)
    seen = Seen(
        bench,
        kept or bench,
        bench.bare,
        None,
        known.requests,
        tuple(rows),
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
        claim_evidence=_evidence(before_merge, merged, known),
        extras=run_suite(seen, suite),
        held=held,
    )


def _evidence(before: str, merged: Merged, known: AuditRows) -> list[str]:
    """What the claim of a merge rests on, and what it cannot show."""
    gone = ", ".join(known.shredded)
    return [
        f"The adapters were merged into the weights: base {before} became {merged.fingerprint.digest}.",
        "It holds only if nobody serves or hands out the model before any more. No audit can see that: whoever "
        "withdraws it records it (efface request evidence).",
        *([f"Of {gone}, whose rows are shredded, no more than suppressed is shown."] if gone else []),
    ]


def _measured(
    bench: Bench, rows: Sequence[Probe], label: str, active: Sequence[str], progress: Progress
) -> Evaluation:
    encode_probes(bench, rows)
    return measure(bench, bench.base.model, bench.bare, rows, label=label, active=active, progress=progress)
