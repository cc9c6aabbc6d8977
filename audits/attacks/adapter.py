"""Attacks that only adapters make possible: take it off, turn its weight, take one of many out of the stack.

Whoever holds the adapter holds the base too (it is of no use without), so these cost nothing. They show what
*suppressed* means, and how far the forgetting hangs on a weight that somebody tunes "a little". `locate.py` has the
one that compares.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field

from ...adapters.compose import compose
from ...adapters.lora import disabled
from ..attack import AttackResult, Point
from .measure import Figure, Made, Watcher, by_request, point
from .settings import Finite, Listed, Settings
from .target import Target, wearing


class Off(Settings):
    """``metric``: the figure of the audit that is looked at."""

    metric: Figure = "probability"


class Scale(Settings):
    """``weights`` at which the whole composition is put on; 1 is what is served."""

    metric: Figure = "probability"
    weights: Annotated[tuple[Finite, ...], Listed] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5), min_length=1
    )


class OneLess(Settings):
    """``metric``: the figure of the audit that is looked at."""

    metric: Figure = "probability"


def off(target: Target, settings: Off, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Switch every adapter off and ask."""
    watcher.phase("adapter/off", 1)
    with wearing(target.base, target.folder) as model, disabled(model):
        found = by_request(target, model, settings.metric)
    watcher.advance()
    did = "With the adapter switched off"
    made = Made("adapter/off", "adapter", settings.metric, did, settings.recorded())
    return tuple(
        made.found(target, request, probes, [point(0, found[request])])
        for request, probes in target.requests.items()
    )


def scale(target: Target, settings: Scale, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Put the composition on at other weights than it is served at."""
    watcher.phase("adapter/scale", len(settings.weights))

    def curve() -> Iterable[dict[str | None, Point]]:
        with wearing(target.base, target.folder) as model:
            for weight in settings.weights:
                with scaled(model, weight):
                    found = by_request(target, model, settings.metric)
                watcher.advance()
                yield {
                    request: point(weight, values, seed=settings.seed) for request, values in found.items()
                }

    did = f"With the adapter at weights from {min(settings.weights):g} to {max(settings.weights):g}"
    made = Made("adapter/scale", "adapter", settings.metric, did, settings.recorded(), "weight")
    return _curved(made, target, list(curve()))


def one_less(target: Target, settings: OneLess, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Take each adapter out of the composition in turn and leave the others on."""
    watcher.phase("adapter/one-less", len(target.parts))
    curve: list[dict[str | None, Point]] = []
    for number, part in enumerate(target.parts, 1):
        with tempfile.TemporaryDirectory(prefix="efface-attack-") as scratch:
            rest = [other for other in target.parts if other is not part]
            folder = compose(rest, Path(scratch) / "rest").path
            with wearing(target.base, folder) as model:
                found = by_request(target, model, settings.metric)
        label = f"without part {number}"
        curve.append({request: point(number, some, label, settings.seed) for request, some in found.items()})
        watcher.advance()
    did = f"With one of {len(target.parts)} adapters taken out of the stack"
    made = Made("adapter/one-less", "adapter", settings.metric, did, settings.recorded(), "part taken out")
    return _curved(made, target, curve)


@contextmanager
def scaled(model: torch.nn.Module, weight: float) -> Generator[None]:
    """``model`` with its adapters at ``weight`` times what they are, and exactly as it was afterwards."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer, old in zip(layers, before, strict=True):
            layer.scaling.update({name: value * weight for name, value in old.items()})
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.scaling.update(old)


def _curved(made: Made, target: Target, curve: list[dict[str | None, Point]]) -> tuple[AttackResult, ...]:
    return tuple(
        made.found(target, request, probes, [points[request] for points in curve])
        for request, probes in target.requests.items()
    )
