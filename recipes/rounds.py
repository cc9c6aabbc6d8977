"""Train the adapter of one request: a first run, then rounds on what the adapted model still tells."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from peft import PeftModel
from transformers import TrainerCallback

from ..adapters import (
    Checkpoints,
    Encoded,
    ReferenceCache,
    StepReport,
    TrainResult,
    attach,
    detach,
    initialise_contrast,
    initialise_null_space,
    prompt_ids,
    save,
    train,
)
from ..adapters.encode import eos_id, pad_id
from ..adapters.fila import initialise_fila
from ..adapters.trainer import memory_named
from ..audits import answer_rows
from .alternates import by_id, inherit
from .bench import Bench
from .beside import Beside
from .data import RequestData
from .prepare import TrainingRows, forget_rows, telling
from .progress import Progress
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Stacked:
    """What a new adapter is trained on top of: the digest of a composition, and its rendered folder."""

    composition: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a request's training keeps its checkpoints, and whether to go on from them."""

    folder: Path
    resume: bool = False
    every: int = 10


def train_adapter(
    bench: Bench,
    data: RequestData,
    rows: TrainingRows,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    *,
    stacked: Stacked | None = None,
    beside: Beside | None = None,
    work: Workplace | None = None,
    report_to: str = "none",
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[TrainResult, ...]:
    """Train a fresh LoRA on the bench's base, write it to ``folder``, and leave the base bare.

    One result a round. Raises what `train` raises; what was trained before an interruption is in ``work``.
    """
    beside, targets = beside or Beside(), recipe.target_modules
    model = attach(
        bench.base.model,
        rank=recipe.rank,
        alpha=recipe.lora_alpha,
        targets=targets if isinstance(targets, str) else list(targets),
        rslora=recipe.rslora,
        stacked_on=stacked.folder if stacked else None,
        seed=recipe.seed,
    )
    progress.phase("Training", recipe.total_steps)
    policy = stacked.composition if stacked else bench.bare.digest
    cache = bench.references.setdefault(policy, ReferenceCache(policy))
    try:
        if recipe.initialisation == "fila":
            pad = pad_id(bench.base.tokenizer)
            with memory_named(recipe.train_settings()):
                initialise_fila(model, rows.forget, rows.retain, pad_id=pad, seed=recipe.seed)
        if recipe.initialisation == "null_space":
            with memory_named(recipe.train_settings()):
                initialise_null_space(model, list(beside.apart_from.values()))
        if recipe.initialisation == "contrast":
            pad = pad_id(bench.base.tokenizer)
            with memory_named(recipe.train_settings()):
                initialise_contrast(model, rows.forget, rows.retain, pad_id=pad, seed=recipe.seed)
        results = _rounds(
            bench, model, data, rows, recipe, progress, cache, beside, work, report_to, callbacks
        )
        save(model, folder, base=bench.base.fingerprint.digest)
    finally:
        detach(model)
    return results


def _rounds(
    bench: Bench,
    model: PeftModel,
    data: RequestData,
    rows: TrainingRows,
    recipe: Recipe,
    progress: Progress,
    cache: ReferenceCache,
    beside: Beside,
    work: Workplace | None,
    report_to: str,
    callbacks: Sequence[TrainerCallback],
) -> tuple[TrainResult, ...]:
    """Train; then ask the adapted model what it was to forget, and train on what it still tells, if anything."""
    results: list[TrainResult] = []
    forget, tokenizer = rows.forget, bench.base.tokenizer

    def listen(step: StepReport) -> None:
        note = f"forget p {step.forget_probability:.2f} · retain p {step.retain_probability:.2f}"
        progress.advance(1, note)

    for number in range(recipe.rounds):
        # What the model still tells is to be preferred less than the same alternates as the row it answers.
        alternates = inherit(by_id(rows.alternates), forget) if rows.alternates else None
        done = train(
            model,
            forget,
            rows.retain,
            recipe.train_settings(number),
            pad_id=pad_id(tokenizer),
            eos_id=eos_id(tokenizer),
            alternates=alternates,
            cache=cache,
            after=results[0] if results else None,
            apart_from=list(beside.apart_from.values()) if recipe.penalised else (),
            company=list(beside.company.values()),
            checkpoints=_checkpoints(work, number, cache.policy, beside, recipe, forget, rows),
            report_to=report_to,
            callbacks=callbacks,
            on_step=listen,
        )
        results.append(done)
        if number + 1 < recipe.rounds:
            with memory_named(recipe.train_settings()):
                leaks = _leaks(bench, model, data, recipe, number + 1)
            if not leaks:
                break
            # Repeated until they are about a quarter of the rows.
            forget = rows.forget + leaks * max(1, len(rows.forget) // (3 * len(leaks)))
    return tuple(results)


def joined(rounds: Sequence[TrainResult]) -> TrainResult:
    """All rounds as one: steps numbered through, seconds added up, the last round's end."""
    steps = [step for result in rounds for step in result.steps]
    numbered = tuple(replace(step, step=number) for number, step in enumerate(steps, 1))
    return replace(rounds[-1], steps=numbered, seconds=sum(result.seconds for result in rounds))


def _leaks(
    bench: Bench, model: PeftModel, data: RequestData, recipe: Recipe, number: int
) -> tuple[Encoded, ...]:
    """What ``model`` still tells when asked what it was to forget, as forget rows; empty when nothing."""
    items = [row.item() for row in data.forget if row.prompt]
    chat, tokenizer = bench.method.chat, bench.base.tokenizer
    prompts = [tuple(prompt_ids(tokenizer, item, chat=chat)) for item in items]
    answers = answer_rows(model, tokenizer, prompts, bench.method)
    texts = [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in answers]
    told = telling(items, dict(zip((item.id for item in items), texts, strict=True)), f"round-{number}")
    return forget_rows(bench, told, recipe, recipe.truncation)


def _checkpoints(
    work: Workplace | None,
    number: int,
    policy: str,
    beside: Beside,
    recipe: Recipe,
    forget: Sequence[Encoded],
    rows: TrainingRows,
) -> Checkpoints | None:
    """The checkpoints of round ``number``, keyed by everything that decides its weights."""
    if work is None:
        return None
    decides = (version("efface"), version("torch"), recipe.digest, policy, number, tuple(forget), rows.retain)
    decides += (sorted(rows.alternates.items(), key=repr), beside.digests)
    key = f"sha256:{hashlib.sha256(repr(decides).encode()).hexdigest()}"
    return Checkpoints(work.folder / f"round-{number}", key, work.every, work.resume)
