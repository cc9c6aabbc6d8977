"""Compaction: the adapters of many requests made into one of a given rank, so that a stack's rank stays bounded.

As in a log-structured store, the originals stay, and a request leaves by going back to them
(`efface.registry.plan_removal`). Two ways are tried: *compressed* (the best approximation of the summed weights,
`adapters.compress`) and *distilled* (a fresh LoRA that learns to answer as the stack does, `adapters.distil`). What
audits better is sealed as an adapter of kind `consolidated`, with the figures of both. The word says how the adapter
was made; it claims nothing: a compaction suppresses, exactly as its originals do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ..adapters import Part as FolderPart
from ..adapters import attach, compose, detach, read_adapter, save
from ..adapters.compress import compress
from ..adapters.distil import (
    DistilSettings,
    ask_teacher,
    check_distil,
    distil,
    divergence,
    start_from,
)
from ..adapters.encode import pad_id
from ..adapters.overlap import overlaps
from ..audits import AuditReport, Evaluation, Probe, check
from ..audits.types import verdict_of
from ..registry import (
    JSON,
    Adapter,
    Audit,
    Composition,
    Registry,
    checks,
    seal_adapter,
)
from ..registry import compose as composition_of
from ..registry.compactions import MADE_FROM
from ..serving.render import folder_parts
from .attest import signer
from .audit import AuditRows, audit_rows, record, report_of
from .bench import Bench, encode_probes, measure, wearing
from .compact_rows import Rows, distillation_rows, to_compact
from .errors import RequestError
from .given import check_given
from .parts import Seen
from .plan import quick
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe
from .release import requests_in, require_base
from .suite import Extras, run_suite

Way = Literal["compressed", "distilled"]
WAYS: tuple[Way, ...] = get_args(Way)
MOST = 500
"""Adapters in one compaction: its manifest names each. Beyond that, compact compactions."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of making the compaction, measured.

    ``error``: ||W' - W|| / ||W|| of all modules, Frobenius; ``kl``: KL(stack || this) per answer token by role of the
    rows, in nats; ``drift``: the mean distance of a row's answer probability to the stack's; ``failed``: gates.
    """

    way: Way
    rank: int
    error: float
    kl: Mapping[str, float]
    drift: float
    failed: int
    verdict: str
    evaluation: Evaluation
    folder: Path

    def figures(self) -> dict[str, JSON]:
        """As they stand in the manifest."""
        return {
            "way": self.way,
            "rank": self.rank,
            "error": round(self.error, 6),
            "kl": {role: round(value, 6) for role, value in self.kl.items()},
            "drift": round(self.drift, 6),
            "failed_gates": self.failed,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True)
class Compacted:
    """What `compact` made: the sealed adapter alone as ``composition``, its audit, and all candidates, best first.

    The folders of the candidates are gone; ``originals`` is the composition that the adapter can stand in for.
    """

    adapter: Adapter
    originals: Composition
    composition: Composition
    audit: Audit
    report: AuditReport
    candidates: tuple[Candidate, ...]


def compact(
    registry: Registry,
    bench: Bench,
    recipe: Recipe,
    *,
    requests: Sequence[str] = (),
    channel: str | None = None,
    rank: int,
    ways: Sequence[Way] = WAYS,
    settings: DistilSettings | None = None,
    actor: str,
    progress: Progress | None = None,
) -> Compacted:
    """Make one adapter of ``rank`` from those of ``requests`` and seal it; the audit may fail, see ``report.verdict``.

    With ``channel``, from what it serves (all of it, or the adapters of ``requests``), with the weights it has there.
    Distilling needs the rows of every request; where some are shredded, only compression is left. Nothing is
    released: that is `serve_compaction`. Raises `RequestError` for what cannot be compacted, and what composing,
    training and the registry raise; nothing is registered then. The rows decide which way is better; the suite of
    ``bench`` then runs on that one.
    """
    checks.actor(actor)
    progress, settings = progress or Silent(), settings or DistilSettings(seed=recipe.seed)
    check_distil(settings)
    originals = to_compact(registry, requests, channel)
    _require_meant(originals, rank, ways)
    require_base(bench, originals)
    signs = signer(registry, actor)
    known = audit_rows(registry, requests_in(registry, originals))
    check_given(bench.plan, known.requests, known.active)
    with tempfile.TemporaryDirectory(prefix="efface-compact-") as name:
        work = _Work(registry, bench, recipe, rank, settings, Path(name), progress)
        stack = compose(folder_parts(registry, originals), work.scratch / "stack")
        possible = _possible(ways, known)
        looked_at = probes(bench, known.requests, recipe, progress=progress)
        before, beside, found = _candidates(work, originals, stack.path, known, looked_at, possible)
        best = found[0]
        extras = _suite(work, originals, known, looked_at, before, best)
        progress.phase("Sealing")
        adapter = seal_adapter(
            registry,
            best.folder,
            kind="consolidated",
            base=originals.base,
            quantization=originals.quantization,
            request_ids=requests_in(registry, originals),
            facts=_facts(work, originals, stack.rank, known, found),
            error_bound=f"{best.error + 5e-7:.6f}",
            actor=actor,
        )
        signs.adapter(registry, adapter)
    composition = composition_of(adapter.base, adapter.quantization, [(adapter.digest, "1")])
    after = _renamed(bench, best.evaluation, composition)
    report = report_of(
        bench,
        before,
        after,
        recipe,
        title=f"Audit of {len(originals.parts)} adapters compacted to rank {best.rank}",
        active=known.active,
        between=[beside, *(other.evaluation for other in found[1:])],
        shredded=known.shredded,
        extras=extras,
    )
    audit = record(registry, composition, report, recipe, actor, measured=known.active)
    signs.audit(registry, audit, report)
    return Compacted(adapter, originals, composition, audit, report, found)


@dataclass(frozen=True, slots=True)
class _Work:
    registry: Registry
    bench: Bench
    recipe: Recipe
    rank: int
    settings: DistilSettings
    scratch: Path
    progress: Progress


def _require_meant(originals: Composition, rank: int, ways: Sequence[Way]) -> None:
    if not 1 <= rank <= 512:
        raise RequestError(f"expected a rank from 1 to 512, got {rank}: give what a server's slot holds")
    unknown = sorted(set(ways) - set(WAYS))
    if unknown or not ways:
        raise RequestError(f"expected ways of {', '.join(WAYS)}, got {', '.join(unknown) or 'none'}")
    if not 2 <= len(originals.parts) <= MOST:
        raise RequestError(
            f"expected 2 to {MOST} adapters to compact, got {len(originals.parts)}: one alone is compressed by "
            "`efface.adapters.compress`; more are compacted some at a time, and then the compactions"
        )


def _possible(ways: Sequence[Way], known: AuditRows) -> list[Way]:
    """Without its forget rows a request would not be in what is distilled."""
    possible: list[Way] = [way for way in WAYS if way in ways and not (way == "distilled" and known.shredded)]
    if not possible:
        raise RequestError(
            f"the rows of {', '.join(known.shredded)} are shredded, and distilling needs them: "
            "compact without those requests, or compress"
        )
    return possible


def _candidates(
    work: _Work,
    originals: Composition,
    stack: Path,
    known: AuditRows,
    looked_at: Sequence[Probe],
    ways: Sequence[Way],
) -> tuple[Evaluation, Evaluation, tuple[Candidate, ...]]:
    """The base and the stack as measured, and every way, best first: fewest failed gates, then the least drift."""
    bench, recipe, progress = work.bench, work.recipe, work.progress
    encode_probes(bench, looked_at)
    base = bench.base.model
    before = measure(bench, base, bench.bare, looked_at, label="base", active=(), progress=progress)
    label = f"stack of {len(originals.parts)}"
    with wearing(bench, stack) as model:
        beside = measure(
            bench, model, originals, looked_at, label=label, active=known.active, progress=progress
        )
        rows = distillation_rows(bench, model, originals, known.requests, recipe, progress)
    found: list[Candidate] = []
    for way, (folder, kl) in _made(work, originals, stack, rows, ways).items():
        adapter = read_adapter(folder)
        alone = composition_of(originals.base, originals.quantization, [(adapter.digest, "1")])
        label = f"{way} to rank {adapter.rank}"
        with wearing(bench, folder) as model:
            after = measure(
                bench, model, alone, looked_at, label=label, active=known.active, progress=progress
            )
        findings = check(before, after, recipe.gates)
        failed = sum(finding.outcome == "failed" for finding in findings)
        error, drift = _error(stack, folder, originals.base), _drift(beside, after)
        verdict = verdict_of(findings)
        found.append(Candidate(way, adapter.rank, error, kl, drift, failed, verdict, after, folder))
    found.sort(key=lambda one: (one.verdict != "pass", one.failed, one.drift, WAYS.index(one.way)))
    return before, beside, tuple(found)


def _suite(
    work: _Work,
    originals: Composition,
    known: AuditRows,
    looked_at: Sequence[Probe],
    before: Evaluation,
    best: Candidate,
) -> Extras:
    """What the suite of the bench finds beyond the rows. Before the sealing, so that a failure registers nothing."""
    alone = composition_of(originals.base, originals.quantization, [(read_adapter(best.folder).digest, "1")])
    plan = work.bench.plan or quick()
    seen = Seen(
        work.bench,
        work.bench,
        alone,
        best.folder,
        known.requests,
        tuple(looked_at),
        before,
        best.evaluation,
        plan.sources,
        plan.suite.seed,
        work.progress,
    )
    return run_suite(seen, plan.suite, [FolderPart(best.folder)])


def _made(
    work: _Work, originals: Composition, stack: Path, rows: Rows, ways: Sequence[Way]
) -> dict[Way, tuple[Path, dict[str, float]]]:
    """Each way's folder and its KL by role, and the base bare again."""
    bench, rank, made = work.bench, work.rank, dict[Way, tuple[Path, dict[str, float]]]()
    model = attach(
        bench.base.model,
        rank=rank,
        alpha=2 * rank,
        targets=sorted(read_adapter(stack).modules),
        stacked_on=stack,
        seed=work.settings.seed,
    )
    pad = pad_id(bench.base.tokenizer)
    cache = bench.reference(originals.digest)
    try:
        sampled = {role: some for role, some in rows.sampled().items() if some}
        asked = tuple(row for some in sampled.values() for row in some)
        teacher = ask_teacher(model, asked, pad_id=pad, cache=cache)

        def kl() -> dict[str, float]:
            return {role: divergence(model, some, teacher, pad_id=pad) for role, some in sampled.items()}

        if "distilled" in ways:  # before anything else is put into the student
            work.progress.phase("Distilling", work.settings.steps)
            distil(
                model,
                rows.every,
                work.settings,
                pad_id=pad,
                cache=cache,
                on_step=lambda value: work.progress.advance(1, f"KL {value:.3f}"),
            )
            folder = work.scratch / "distilled"
            save(model, folder, base=bench.base.fingerprint.digest)
            made["distilled"] = folder, kl()
        if "compressed" in ways:
            work.progress.phase("Compressing")
            smaller = compress(
                [FolderPart(stack, base=originals.base)], work.scratch / "compressed", rank=rank
            )
            start_from(model, smaller.path)
            made["compressed"] = smaller.path, kl()
    finally:
        detach(model)
    return made


def _drift(stack: Evaluation, after: Evaluation) -> float:
    """The mean distance of a row's answer probability to what it is under the stack."""
    pairs = list(zip(stack.rows, after.rows, strict=True))
    return sum(abs(one.probability - other.probability) for one, other in pairs) / len(pairs)


def _error(stack: Path, folder: Path, base: str) -> float:
    """||W' - W|| / ||W||, out of the inner products of the two."""
    first = read_adapter(stack).digest
    if first == read_adapter(folder).digest:
        return 0.0
    (pair,) = overlaps([FolderPart(stack, base=base), FolderPart(folder, base=base)])
    along, back = pair.projection, pair.projection_back
    if pair.first != first:
        along, back = back, along
    size = along / back if back else 1.0
    return max(0.0, 1.0 - 2.0 * along + size) ** 0.5


def _renamed(bench: Bench, found: Evaluation, composition: Composition) -> Evaluation:
    """What was measured before it had a name in the registry; a release of it alone is then measured already."""
    for (digest, row, words), score in list(bench.scores.items()):
        if digest == found.composition:
            bench.scores[composition.digest, row, words] = score
    return replace(found, composition=composition.digest)


def _facts(
    work: _Work, originals: Composition, was: int, known: AuditRows, found: Sequence[Candidate]
) -> dict[str, JSON]:
    return {
        MADE_FROM: {part.adapter: part.weight for part in originals.parts},
        "composition": originals.digest,
        "way": found[0].way,
        "rank": found[0].rank,
        "rank_before": was,
        "candidates": [one.figures() for one in found],
        "distillation": asdict(work.settings) if any(one.way == "distilled" for one in found) else None,
        "recipe": work.recipe.name,
        "recipe_digest": work.recipe.digest,
        "without_rows": list(known.shredded),
    }
