"""Choosing a recipe's settings: a small grid, one seed, teacher-forced figures only, ranked by one stated score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import harmonic_mean
from typing import Any

from efface.adapters import detach, load_base
from efface.adapters.errors import TrainingError
from efface.recipes import load_recipe

from .evaluate import quick
from .unlearn import Bench, trained

SCORE = (
    "harmonic mean of: forget answer probability and extraction strength brought down from the memorised model's "
    "to the retain-only model's (1 = there or a tenth of the way further; less on either side), and retain answer "
    "probability kept (1 = all of it)"
)


def grid(options: Sequence[str]) -> Iterator[list[str]]:
    """``key=v1,v2`` options as every combination of ``key=value`` overrides."""
    axes = [[f"{key}={value}" for value in values.split(",")] for key, _, values in map(_parted, options)]
    return (list(point) for point in itertools.product(*axes))


def tune(
    bench: Bench,
    source: str,
    points: Sequence[list[str]],
    *,
    seed: int,
    overrides: Sequence[str],
    precision: str | None,
    on_point: Callable[[Mapping[str, Any]], None] = lambda _found: None,
) -> list[dict[str, Any]]:
    """Train and score ``source`` at every point; best first. A point that fails to train is ranked last."""
    precision = precision or load_recipe(source, overrides).quantization
    retain_only = load_base(bench.retain, precision)
    goal = quick(retain_only.model, retain_only.tokenizer, bench.split.forget)
    del retain_only
    base = load_base(bench.full, precision)
    before = _figures(base.model, base.tokenizer, bench)
    found: list[dict[str, Any]] = []
    for point in points:
        recipe = load_recipe(source, [*overrides, *point, f"seed={seed}"])
        try:
            model, training = trained(base, recipe, bench, lambda _report: None)
        except TrainingError as error:
            found.append({"set": point, "score": 0.0, "problem": str(error)})
            base = load_base(bench.full, precision)  # the failed adapter is still on the old one
        else:
            after = _figures(model, base.tokenizer, bench)
            detach(model)
            seconds = {"seconds_per_step": training["seconds_per_step"], "seconds": training["seconds"]}
            found.append({"set": point, "score": score(before, after, goal), **after, **seconds})
        on_point(found[-1])
    return sorted(found, key=lambda one: -float(one["score"]))


def score(before: Mapping[str, float], after: Mapping[str, float], goal: Mapping[str, float]) -> float:
    """`SCORE`, in [0, 1]."""
    forgotten = [
        _way(before[key], after[key], goal[key.removeprefix("forget_")])
        for key in ("forget_probability", "forget_extraction_strength")
    ]
    kept = min(1.0, after["retain_probability"] / before["retain_probability"])
    parts = [*forgotten, kept]
    return harmonic_mean(parts) if all(parts) else 0.0


def _way(start: float, now: float, goal: float) -> float:
    """How much of the way from ``start`` to ``goal`` is done: 1 there, less before it and beyond."""
    way = (start - now) / max(start - goal, 1e-6)
    return max(0.0, min(way, 1.0) if way <= 1.1 else 1.0 - (way - 1.1))


def _figures(model: Any, tokenizer: Any, bench: Bench) -> dict[str, float]:
    sides = {"forget": bench.split.forget, "retain": bench.split.retain_seen}
    return {
        f"{side}_{key}": value
        for side, rows in sides.items()
        for key, value in quick(model, tokenizer, rows).items()
    }


def _parted(option: str) -> tuple[str, str, str]:
    key, sign, values = option.partition("=")
    if not (key and sign and values):
        raise SystemExit(f"--grid {option!r}: expected key=v1,v2, for example --grid parameters.beta=1,2.5")
    return key, sign, values
