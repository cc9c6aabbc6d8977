"""All attacks by name, as suites and the command line name them: what each does, costs and needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import ValidationError

from ..attack import AttackResult
from ..errors import AttackError
from ..types import KEEP_SIDE
from . import adapter, locate, precision, prompts, relearn, sampling
from .measure import Unwatched, Watcher
from .settings import Settings
from .target import Target

Cost = Literal["cheap", "minutes", "long"]
"""``cheap``: a pass or so over the forget rows; ``minutes``: several, or another model loaded; ``long``: training, or
many samples. Of a 135M model and 50 rows on a CPU."""
Need = Literal[
    "adapter",
    "parts",
    "paraphrases",
    "format rows",
    "neighbours",
    "kept rows",
    "unrelated rows",
    "questions",
    "plain base",
]


@dataclass(frozen=True, slots=True)
class Attack:
    """``run(target, settings, watcher)``: one result a request. ``preset``: settings that make it what its name
    says, under those that a suite gives."""

    run: Callable[[Target, Any, Watcher], tuple[AttackResult, ...]]
    settings: type[Settings]
    what: str
    cost: Cost
    needs: tuple[Need, ...] = ()
    preset: Mapping[str, object] = field(default_factory=dict[str, object])


_FIXED = ("rows", "weights", "group")
"""Of a preset, what its name promises; the rest is a default."""


def _relearning(what: str, *needs: Need, **preset: object) -> Attack:
    return Attack(relearn.relearn, relearn.Relearn, what, "long", needs, preset)


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "relearning/random": _relearning("fresh LoRA on a fifth of the forget rows, drawn", rows="random"),
        "relearning/shortest": _relearning("fresh LoRA on the shortest fifth", rows="shortest"),
        "relearning/facts": _relearning(
            "fresh LoRA on some facts, asked about others", rows="facts", fraction=0.5
        ),
        "relearning/neighbour": _relearning(
            "fresh LoRA on benign related text", "neighbours", rows="neighbour"
        ),
        "relearning/unrelated": _relearning(
            "fresh LoRA on ten unrelated rows", "unrelated rows", rows="unrelated", limit=10
        ),
        "relearning/full": _relearning(
            "all weights of a merged copy", "plain base", rows="random", weights="full"
        ),
        "precision/stacked": Attack(
            precision.stacked,
            precision.Stacked,
            "adapter on a base at bf16, int8, NF4",
            "minutes",
            ("adapter",),
        ),
        "precision/merged": Attack(
            precision.merged, precision.Merge, "merged, then bf16, int8, NF4", "minutes", ("adapter",)
        ),
        "prompt/paraphrase": Attack(
            prompts.reworded, prompts.Reworded, "asked in other words", "cheap", ("paraphrases",)
        ),
        "prompt/format": Attack(
            prompts.reworded,
            prompts.Reworded,
            "asked in another format or language",
            "cheap",
            ("format rows",),
            {"group": "format"},
        ),
        "prompt/prefix": Attack(
            prompts.prefix, prompts.Prefix, "answer begun by an assent", "cheap", ("questions",)
        ),
        "prompt/partial": Attack(
            prompts.partial, prompts.Partial, "beginning of the answer given", "minutes", ("adapter",)
        ),
        "prompt/few-shot": Attack(
            prompts.few_shot, prompts.FewShot, "examples first", "cheap", ("questions", "kept rows")
        ),
        "sampling/leak": Attack(sampling.leak, sampling.Leak, "k samples a question", "long"),
        "adapter/off": Attack(adapter.off, adapter.Off, "adapter switched off", "cheap", ("adapter",)),
        "adapter/scale": Attack(
            adapter.scale, adapter.Scale, "adapter at weights 0 to 1.5", "cheap", ("adapter",)
        ),
        "adapter/one-less": Attack(
            adapter.one_less, adapter.OneLess, "one of the adapters taken out", "minutes", ("parts",)
        ),
        "adapter/locate": Attack(
            locate.locate, locate.Locate, "base against unlearned", "cheap", ("adapter", "kept rows")
        ),
    }
)


def run_attack(
    name: str,
    target: Target,
    values: Mapping[str, object] = MappingProxyType({}),
    watcher: Watcher | None = None,
) -> tuple[AttackResult, ...]:
    """Make the attack ``name`` of `ATTACKS` with settings ``values`` on every request of ``target`` that has rows for
    it: there is a result for each of these.

    The target's model is afterwards what it was. Deterministic for a seed on a CPU. Raises `AttackError` for an unknown
    name or setting and for what the target lacks, before anything runs; `OutOfMemory`; and what loading, training and
    measuring raise.
    """
    attack = _named(name)
    settings = settings_of(name, values)
    if missing := lacking(name, target):
        raise AttackError(
            f"{name}: expected {', '.join(missing)}, got none: give them, or leave this attack out"
        )
    started = time.monotonic()
    devices = [target.base.model.device] if target.base.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # PEFT draws whenever it makes a layer
        found = attack.run(target, settings, watcher or Unwatched())
    each = (time.monotonic() - started) / max(1, len(found))
    return tuple(replace(one, seconds=each, attack=name) for one in found)


def settings_of(name: str, values: Mapping[str, object]) -> Settings:
    """``values`` over the preset of attack ``name``, checked. Raises `AttackError` that names each bad one."""
    attack = _named(name)
    given = {key: values[key] for key in _FIXED if key in attack.preset and key in values}
    if any(attack.preset[key] != value for key, value in given.items()):
        raise AttackError(f"{name}: {', '.join(given)} makes it what it is called: take another of ATTACKS")
    try:
        return attack.settings.model_validate({**attack.preset, **values})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, detail['loc'])) or 'settings'}: {detail['msg']}" for detail in error.errors()
        )
        known = ", ".join(attack.settings.model_fields)
        raise AttackError(f"{name}: {wrong} (it has {known})") from None


def lacking(name: str, target: Target) -> tuple[Need, ...]:
    """What attack ``name`` needs and ``target`` does not have; a suite reports such an attack as not measured."""
    has: dict[Need, bool] = {
        "adapter": target.folder is not None,
        "parts": target.folder is not None and len(target.parts) > 1,
        "paraphrases": bool(target.of("paraphrase")),
        "format rows": bool(target.of("format")),
        "neighbours": bool(target.of("neighbour")),
        "kept rows": any(target.of(group) for group in KEEP_SIDE),
        "unrelated rows": bool(target.of("unrelated") or target.of("retain")),
        "plain base": target.base.quantization in ("bf16", "fp32"),
        "questions": any(probe.item.prompt for probe in target.of("forget")),
    }
    return tuple(need for need in _named(name).needs if not has[need])


def _named(name: str) -> Attack:
    if name not in ATTACKS:
        raise AttackError(f"unknown attack {name!r}: expected one of {', '.join(ATTACKS)}")
    return ATTACKS[name]
