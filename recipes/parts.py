"""The parts of a suite that give figures: each takes what an audit has seen and what it was given.

A figure's name ends in /before, /after or /reference where it is of one model; the others compare two.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel

from ..adapters import Base, Encoded, Item, encode_all
from ..audits import (
    Evaluation,
    Membership,
    MetricError,
    Probe,
    auc,
    auc_ci,
    knowledge_memorization,
    mean_drift,
    paired,
    patched_drops,
    priv_leak,
    probability_drift,
    reference_score,
    row_kl,
    s_mia,
    unlearning_depth,
    verbatim_memorization,
)
from ..audits.forced import Scored, teacher_forced
from ..audits.harness import lm_eval_figures
from ..audits.patching import patchable
from ..audits.run import membership_of, question_ids
from ..audits.types import KEEP_SIDE
from ..registry import Composition
from .bench import Bench, ask, wearing
from .data import RequestData
from .progress import Progress
from .sources import Sources

Model = PreTrainedModel | PeftModel
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Seen:
    """What an audit measured, and how to go on from there.

    ``bench`` and ``folder`` are the audited model; ``known`` is the bench of the model before, the same one for an
    adapter on its base.
    """

    bench: Bench
    known: Bench
    composition: Composition
    folder: Path | None
    requests: Mapping[str, RequestData]
    probes: tuple[Probe, ...]
    before: Evaluation
    after: Evaluation
    sources: Sources
    seed: int
    progress: Progress
    notes: dict[str, str] = field(default_factory=dict[str, str])
    """Figures of a part that could not be measured here, and why."""

    @property
    def checkpoint(self) -> bool:
        """Whether the audited model is another checkpoint, and not an adapter on the one before."""
        return self.bench is not self.known

    @contextmanager
    def side(self, which: str) -> Generator[tuple[Bench, Model, Composition]]:
        """The model ``before`` or ``after``, with its bench and composition."""
        if which == "before":
            yield self.known, self.known.base.model, self.known.bare
        else:
            with wearing(self.bench, self.folder) as model:
                yield self.bench, model, self.composition

    def encoded(self, items: Sequence[Item]) -> tuple[Encoded, ...]:
        """``items`` as this audit measures them."""
        method = self.bench.method
        return encode_all(
            self.bench.base.tokenizer,
            items,
            chat=method.chat,
            max_length=method.max_length,
            truncation=method.truncation,
        )


Part = Callable[[Seen, Base | None], Figures]


class NothingToMeasure(Exception):
    """A part cannot be measured with what is there; its text says what to give."""


def membership(seen: Seen, reference: Base | None) -> Figures:
    """AUC of every membership score, forget rows against holdout rows; with a reference PrivLeak and s_MIA too."""
    if not seen.sources.holdout:
        raise NothingToMeasure(
            "no holdout rows: give rows of the same kind that no model saw, --give holdout=FILE"
        )
    forget, held = _own(seen), seen.encoded([row.item() for row in seen.sources.holdout])
    found: Figures = {}
    aucs: dict[str, dict[str, float]] = {}
    kept: dict[str, tuple[list[Scored], list[Scored]]] = {}
    for which in ("before", "after", *(["reference"] if reference else [])):
        kept[which] = _two(seen, reference, which, forget, held)
        scores = [
            _membership(seen, rows, scored) for rows, scored in zip((forget, held), kept[which], strict=True)
        ]
        aucs[which] = {}
        for name in Membership.__slots__:
            ours, theirs = ([getattr(one, name) for one in side] for side in scores)
            aucs[which][name] = found[f"membership/{name}/auc/{which}"] = auc(ours, theirs)
            if which == "after":
                low, high = auc_ci(ours, theirs, seed=seen.seed)
                found |= {f"membership/{name}/auc_low/after": low, f"membership/{name}/auc_high/after": high}
    if reference is not None:
        for name, ours in aucs["after"].items():
            theirs = aucs["reference"][name]
            for figure, of in (("privleak", priv_leak), ("s_mia", s_mia)):
                try:
                    found[f"membership/{name}/{figure}"] = of(ours, theirs)
                except MetricError as reason:
                    seen.notes[f"membership/{name}/{figure}"] = str(reason)
        pairs = [
            [reference_score(a.logps, b.logps) for a, b in zip(after, other, strict=True)]
            for after, other in zip(kept["after"], kept["reference"], strict=True)
        ]
        found["membership/reference/auc/after"] = auc(*pairs)
    return found


def drift(seen: Seen, _reference: Base | None) -> Figures:
    """How far kept rows moved: change of answer probability, and KL(before || after) per token."""
    groups = {g: [p.item for p in seen.probes if p.group == g] for g in KEEP_SIDE}
    items = {group: some for group, some in groups.items() if some}
    if not items:
        raise NothingToMeasure("no rows that are to be kept: give --retain or --neighbours rows")
    found: Figures = {}
    with seen.side("after") as (bench, model, _):
        other = seen.known.base if seen.checkpoint else None
        if other is None and seen.folder is None:
            raise NothingToMeasure("nothing to compare with: the bare base is what was before")
        for group, some in items.items():
            rows = paired(model, bench.base.tokenizer, seen.encoded(some), bench.method, reference=other)
            moved = mean_drift(
                [probability_drift(r.before.logps, r.after.logps) for r in rows], seed=seen.seed
            )
            spread = mean_drift([row_kl(r.kl) for r in rows], seed=seen.seed)
            for name, value in (("probability", moved), ("kl", spread)):
                found |= {f"drift/{group}/{name}": value.mean}
                found |= {f"drift/{group}/{name}_low": value.low, f"drift/{group}/{name}_high": value.high}
    return found


def patching(seen: Seen, reference: Base | None) -> Figures:
    """Unlearning Depth Score: how far the hidden states of the audited model have lost what the base knows."""
    rows = _own(seen)
    if seen.checkpoint or seen.folder is None:
        raise NothingToMeasure("no adapter to patch with: it compares the base with and without one")
    with seen.side("after") as (bench, model, _):
        if not patchable(model):
            raise NothingToMeasure(f"no list of decoder layers to patch in {type(bench.base.model).__name__}")
        drops = patched_drops(model, bench.base.tokenizer, rows, bench.method)
        other = patched_drops(model, bench.base.tokenizer, rows, bench.method, source=reference or "withheld")
    try:
        depth = unlearning_depth([one.drops for one in drops], [one.drops for one in other], seed=seen.seed)
    except MetricError as reason:  # no row that the base knows better than the baseline does
        raise NothingToMeasure(str(reason)) from None
    names = ("score", "low", "high", "n", "skipped")
    return {f"patching/{name}": float(getattr(depth, name)) for name in names}


def muse(seen: Seen, reference: Base | None) -> Figures:
    """MUSE (arXiv 2407.06460): verbatim and knowledge memorization, PrivLeak by Min-K, utility on kept questions."""
    probes = [p for p in seen.probes if p.group in ("forget", "retain")]
    rows = seen.encoded([p.item for p in probes])
    found: Figures = {}
    for which in ("before", "after"):
        with seen.side(which) as (bench, model, composition):
            answers = ask(bench, model, composition, [question_ids(row) for row in rows], seen.progress)
        said = [str(bench.base.tokenizer.decode(list(a), skip_special_tokens=True)) for a in answers]
        for name, group, document in (
            ("verbatim", "forget", True),
            ("knowledge", "forget", False),
            ("utility", "retain", False),
        ):
            chosen = [i for i, p in enumerate(probes) if p.group == group and rows[i].document is document]
            if not chosen:
                seen.notes[f"muse/{name}"] = (
                    f"no {group} rows that are {'documents' if document else 'questions'}"
                )
                continue
            references = [_rest(seen, rows[i]) if document else probes[i].item.completion for i in chosen]
            figure = verbatim_memorization if document else knowledge_memorization
            found[f"muse/{name}/{which}"] = figure(references, [said[i] for i in chosen])
    leak = membership(seen, reference)
    for name, why in list(seen.notes.items()):
        if name.startswith("membership/"):
            del seen.notes[name]
            if "/min_k/" in name:
                seen.notes[name.replace("membership/min_k/", "muse/")] = why
    found |= {
        name.replace("membership/min_k/", "muse/"): value for name, value in leak.items() if "/min_k/" in name
    }
    return found


def lm_eval(seen: Seen, _reference: Base | None) -> Figures:
    """The tasks of lm-evaluation-harness that were given, before and after."""
    found: Figures = {}
    for which in ("before", "after"):
        with seen.side(which) as (bench, model, _):
            figures = lm_eval_figures(model, bench.base.tokenizer, seen.sources.tasks, seed=seen.seed)
        found |= {f"lm-eval/{name}/{which}": value for name, value in figures.items()}
    return found


def _rest(seen: Seen, row: Encoded) -> str:
    """What follows the half of a document that the model was given."""
    return str(
        seen.bench.base.tokenizer.decode(list(row.answer[len(row.answer) // 2 :]), skip_special_tokens=True)
    )


def _own(seen: Seen) -> tuple[Encoded, ...]:
    """The forget rows of what is active."""
    active = seen.after.active
    chosen = [p.item for p in seen.probes if p.group == "forget" and (active is None or p.request in active)]
    if not chosen:
        raise NothingToMeasure("no forget rows of an active request")
    return seen.encoded(chosen)


def _two(
    seen: Seen, reference: Base | None, which: str, forget: Sequence[Encoded], held: Sequence[Encoded]
) -> tuple[list[Scored], list[Scored]]:
    rows, method = [*forget, *held], seen.bench.method
    if which == "reference" and reference is not None:
        found = teacher_forced(reference.model, reference.tokenizer, rows, method)
    else:
        with seen.side(which) as (bench, model, _):
            found = teacher_forced(model, bench.base.tokenizer, rows, method)
    return found[: len(forget)], found[len(forget) :]


def _membership(seen: Seen, rows: Sequence[Encoded], scored: Sequence[Scored]) -> list[Membership]:
    tokenizer = seen.bench.base.tokenizer
    texts = [str(tokenizer.decode(list(row.answer), skip_special_tokens=True)) for row in rows]
    return [membership_of(score, text) for score, text in zip(scored, texts, strict=True)]


def finite(figures: Figures, notes: dict[str, str]) -> Figures:
    """``figures`` without those that are not finite, which no report can hold; ``notes`` says which."""
    notes |= {name: f"it came out as {value}" for name, value in figures.items() if not np.isfinite(value)}
    return {name: value for name, value in figures.items() if np.isfinite(value)}
