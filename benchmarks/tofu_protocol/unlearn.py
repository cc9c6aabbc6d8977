"""One run of the protocol: the memorised model, a fresh LoRA, one recipe and seed, one evaluation, one JSON file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from efface.adapters import (
    Base,
    Encoded,
    StepReport,
    TrainResult,
    TrainSettings,
    attach,
    encode,
    load_base,
    train,
)
from efface.adapters.encode import eos_id, pad_id
from efface.adapters.errors import TrainingError
from efface.adapters.objectives import OBJECTIVES
from efface.audits.gibberish import MAX_PERPLEXITY
from efface.recipes import Recipe, load_recipe

from . import machine
from .alternates import REFUSED, encoded, plausible, refusals
from .data import Row, Split, short_digest
from .evaluate import METHOD, evaluate

OnStep = Callable[[StepReport], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share: the original model, the two memorised ones, the rows, where results are kept."""

    base: Path
    full: Path
    retain: Path
    split: Split
    cache: Path


@dataclass(frozen=True, slots=True)
class Run:
    """One recipe with one seed; ``recipe`` None is a reference: the model in ``label`` ("full" or "retain")."""

    label: str
    precision: str
    recipe: Recipe | None = None

    @property
    def seed(self) -> int:
        """The seed of training; references have none."""
        return self.recipe.seed if self.recipe else 0

    def file(self, bench: Bench) -> Path:
        """Where its result lies: another setting, model, row or way of measuring is another file."""
        measured = [asdict(METHOD), MAX_PERPLEXITY, bench.full.name, bench.retain.name]
        settings = self.recipe.digest if self.recipe else ""
        key = short_digest([bench.split.digest, measured, self.precision, settings])
        return bench.cache / "runs" / f"{self.label}-{self.precision}-s{self.seed}-{key}.json"


def recipe_run(source: str, seed: int, overrides: Sequence[str], precision: str | None) -> Run:
    """The run of a shipped recipe (by name) or a YAML file (by path). Raises `InvalidRecipe`."""
    recipe = load_recipe(source, [*overrides, f"seed={seed}"])
    return Run(recipe.name, precision or recipe.quantization, recipe)


def done(run: Run, bench: Bench) -> dict[str, Any] | None:
    """What ``run`` found when it was made before; None if it was not."""
    file = run.file(bench)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def reference(label: str, precision: str, bench: Bench) -> dict[str, Any]:
    """The evaluation of the memorised ("full") or the retain-only model ("retain"), made once per precision."""
    run = Run(label, precision)
    if found := done(run, bench):
        return found
    ratios = None if label == "retain" else reference("retain", precision, bench)["truth_ratios"]
    base = load_base(bench.full if label == "full" else bench.retain, precision)
    figures = evaluate(base.model, base.tokenizer, bench.split, judge=bench.base, reference=ratios)
    return _keep(run, bench, figures)


def perform(run: Run, bench: Bench, on_step: OnStep = lambda _report: None) -> dict[str, Any]:
    """Train and evaluate ``run``; its record, written to `Run.file` too."""
    if run.recipe is None:
        return reference(run.label, run.precision, bench)
    ratios = reference("retain", run.precision, bench)["truth_ratios"]
    base = load_base(bench.full, run.precision)
    try:
        model, training = trained(base, run.recipe, bench, on_step)
    except TrainingError as error:
        return _keep(run, bench, {"problem": str(error)})
    figures = evaluate(model, base.tokenizer, bench.split, judge=bench.base, reference=ratios)
    return _keep(run, bench, {**figures, "training": training})


def trained(base: Base, recipe: Recipe, bench: Bench, on_step: OnStep) -> tuple[PeftModel, dict[str, Any]]:
    """A fresh LoRA on ``base`` trained as ``recipe`` says (its first round), and what that took."""
    tokenizer, split = base.tokenizer, bench.split
    settings = recipe.train_settings()
    forget, retain = _encode(base, split.forget), _encode(base, split.retain)
    alternates: Mapping[Encoded, tuple[Encoded, ...]] = {}
    if OBJECTIVES[settings.objective].needs_alternates:
        refused = settings.objective in REFUSED
        answers = (
            refusals(split.forget, recipe.seed)
            if refused
            else plausible(bench.cache, bench.base, split.forget)
        )
        alternates = encoded(tokenizer, split.forget, answers)
    targets = recipe.target_modules
    model = attach(
        base.model,
        rank=recipe.rank,
        alpha=recipe.lora_alpha,
        targets=targets if isinstance(targets, str) else list(targets),
        rslora=recipe.rslora,
        seed=recipe.seed,
    )
    machine.reset_peak()
    started, cpu = time.monotonic(), time.process_time()
    result = _train(model, forget, retain, settings, alternates, base, on_step)
    seconds = time.monotonic() - started
    return model, {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "steps": len(result.steps),
        "seconds_per_step": seconds / len(result.steps),
        "peak_gib": machine.peak_gib(),
        "stopped": result.stopped,
        "kept": result.kept,
        "losses": [report.loss for report in result.steps],
        "settings": recipe.model_dump(mode="json"),
    }


def _train(
    model: PeftModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    settings: TrainSettings,
    alternates: Mapping[Encoded, tuple[Encoded, ...]],
    base: Base,
    on_step: OnStep,
) -> TrainResult:
    """The one call of efface's trainer."""
    return train(
        model,
        forget,
        retain,
        settings,
        pad_id=pad_id(base.tokenizer),
        eos_id=eos_id(base.tokenizer),
        alternates=alternates,
        on_step=on_step,
    )


def _encode(base: Base, rows: Sequence[Row]) -> list[Encoded]:
    return [encode(base.tokenizer, row.item(), chat=True, end=True) for row in rows]


def _keep(run: Run, bench: Bench, figures: Mapping[str, Any]) -> dict[str, Any]:
    record = {
        "label": run.label,
        "objective": run.recipe.objective if run.recipe else None,
        "precision": run.precision,
        "seed": run.seed,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "versions": machine.versions(),
        **figures,
    }
    file = run.file(bench)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: an interrupted benchmark goes on with the files that are there.
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    scratch.replace(file)
    return record
