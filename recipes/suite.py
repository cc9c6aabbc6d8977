"""Run a suite: the parts and attacks that it names, on what an audit has measured already."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version

from ..adapters import AdapterError, Base
from ..adapters.compose import Part as FolderPart
from ..audits import AttackResult, Evaluation, RowHash, SuiteRun, hash_row, key_name
from ..audits.attacks import Target, lacking, run_attack
from ..audits.errors import AttackError
from ..audits.suites import PARTS, Suite
from ..audits.suites import Part as PartName
from ..audits.suites.suite import Setting
from .bench import Bench
from .parts import Figures, NothingToMeasure, Part, Seen, drift, finite, lm_eval, membership, muse, patching
from .plan import quick
from .progress import Progress
from .row_cache import PACKAGES, RowMemory, one_key
from .scope_part import reference_rows
from .sources import load_reference
from .tofu_part import tofu

FIGURES: Mapping[PartName, Part] = {
    "membership": membership,
    "drift": drift,
    "patching": patching,
    "tofu": tofu,
    "muse": muse,
    "lm-eval": lm_eval,
}


@dataclass(frozen=True, slots=True)
class Extras:
    """What a suite found beyond the rows."""

    attacks: tuple[AttackResult, ...]
    run: SuiteRun
    scope: bool = False
    """Whether the suite asks how far the forgetting went."""
    reference: Evaluation | None = None
    """The forget rows under the model that never saw them."""


@dataclass(slots=True)
class _Found:
    attacks: list[AttackResult] = field(default_factory=list[AttackResult])
    figures: Figures = field(default_factory=Figures)
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    reference: Evaluation | None = None

    def timed(self, name: str, work: Callable[[], None]) -> None:
        """Do ``work``, or note why it does not apply."""
        started = time.monotonic()
        try:
            work()
        except (NothingToMeasure, AttackError) as reason:
            self.skipped[name] = str(reason)
        self.seconds[name] = time.monotonic() - started


def run_suite(seen: Seen, suite: Suite, parts: Sequence[FolderPart] = ()) -> Extras:
    """``parts``: the adapters that the audited folder was composed of.

    A part or attack that does not apply (no adapter, no holdout rows) is noted with the reason; what goes wrong raises.
    """
    found = _Found(seconds={"rows": seen.before.seconds + seen.after.seconds})
    loaded: list[Base] = []

    def reference() -> Base | None:
        if not loaded and seen.sources.reference is not None:
            seen.progress.phase("Loading the reference")
            loaded.append(load_reference(seen.sources.reference, seen.bench.base))
        return loaded[0] if loaded else None

    for name in suite.parts:
        if name in FIGURES:
            seen.progress.phase(f"{name}: {PARTS[name]}")
            found.timed(name, lambda name=name: found.figures.update(FIGURES[name](seen, reference())))
    if "scope" in suite.parts:
        found.timed("scope", lambda: _scope(found, seen, reference()))
    target = _target(seen, parts) if suite.attacks else None
    for name in suite.attacks:
        if target is None:
            found.skipped[name] = "no forget rows of an active request"
        elif missing := lacking(name, target):
            found.skipped[name] = f"it needs {', '.join(missing)}"
        else:
            settings = {"seed": suite.seed, **suite.settings.get(name, {})}
            found.timed(name, partial(_attack, found, name, target, settings, seen.progress))
    run = suite_run(seen.bench, suite, seen.before, seen.after)
    figures = finite(found.figures, seen.notes)
    return Extras(
        tuple(found.attacks),
        replace(run, seconds=found.seconds, figures=figures, skipped={**found.skipped, **seen.notes}),
        scope="scope" in suite.parts,
        reference=found.reference,
    )


def _scope(found: _Found, seen: Seen, reference: Base | None) -> None:
    """What ignorance looks like; without a reference it is read off the rows that the base does not know."""
    if reference is not None:
        found.reference = reference_rows(seen, reference)


def _attack(
    found: _Found, name: str, target: Target, settings: Mapping[str, Setting], progress: Progress
) -> None:
    """One attack; one whose prompts or weights do not fit the model (examples first, a tied head) is not made."""
    try:
        found.attacks.extend(run_attack(name, target, settings, progress))
    except AdapterError as error:
        raise AttackError(str(error)) from error


def suite_run(bench: Bench, suite: Suite | None, before: Evaluation, after: Evaluation) -> SuiteRun:
    """The record of a run of ``suite`` (None: quick) that measured the rows of two evaluations."""
    suite = suite or quick().suite
    memory = bench.memory or RowMemory(one_key())
    hashes = tuple(
        RowHash(
            row.request,
            row.group,
            row.id,
            hash_row(memory.key(row.request), row.prompt, row.reference),
            key_name(memory.key(row.request)),
        )
        for row in after.rows
    )
    return SuiteRun(
        name=suite.name,
        version=suite.version,
        digest=suite.digest,
        seed=suite.seed,
        precision=after.precision,
        versions={name: version(name) for name in ("efface", *PACKAGES)},
        seconds={"rows": before.seconds + after.seconds},
        rows=hashes,
        cached=sum(memory.hits.get(one.composition, 0) for one in (before, after)),
    )


def _target(seen: Seen, parts: Sequence[FolderPart]) -> Target | None:
    """What is attacked: the active requests, and the rows that are everybody's."""
    active = seen.after.active
    asked = tuple(p for p in seen.probes if active is None or p.request is None or p.request in active)
    if not any(p.group == "forget" for p in asked):
        return None
    keys = {(p.request, p.group, p.item.id) for p in asked}
    before, after = (
        replace(one, rows=tuple(row for row in one.rows if row.key in keys))
        for one in (seen.before, seen.after)
    )
    return Target(seen.bench.base, seen.folder, asked, before, after, seen.bench.method, tuple(parts))
