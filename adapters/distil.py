"""Joint distillation: one fresh LoRA that answers as a stack of them does (arXiv 1503.02531).

The teacher is the base with the stack on, the student the same base with the new LoRA alone: one model, two sets of
adapters, never a second model. The teacher is asked once, before the first step, and kept as hidden states
(`reference.py`): the output head is frozen, so they stand for its logits at a hundredth of the size. The loss is
KL(teacher || student) at answer positions, on rows of any role: what the stack says is right by definition here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from .answers import answers
from .encode import Encoded
from .errors import AdapterError, TrainingError
from .fast import fast
from .folder import a_key, b_key, read_adapter
from .lora import STACKED, TRAINED, reference_head
from .lora_files import open_tensors
from .objectives import retain_kl
from .reference import CHUNK, ReferenceCache, ask_hidden, chunks
from .steps import deal

Teacher = Mapping[Encoded, Tensor]
"""Last hidden states [|y|, H] of the stack at the answers of each row, on the CPU."""


@dataclass(frozen=True, slots=True)
class DistilSettings:
    """What decides a distillation besides rows, base and stack. A linear schedule down to zero, after ``warmup``
    (a share of the steps); ``batch``: rows of a step."""

    steps: int = 200
    batch: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Distilled:
    """``losses``: mean KL per answer token of each step's own rows, in nats, before its update."""

    losses: tuple[float, ...]
    seconds: float


def check_distil(settings: DistilSettings) -> None:
    """Raise one :class:`TrainingError` with a line for each thing that cannot be meant."""
    counts = {"steps": settings.steps, "batch": settings.batch}
    problems = [f"expected at least 1 of {name}, got {value}" for name, value in counts.items() if value < 1]
    for name in ("learning_rate", "max_grad_norm"):
        if not 0 < (value := getattr(settings, name)) < math.inf:
            problems.append(f"expected a positive, finite {name}, got {value}")
    if not 0 <= settings.warmup < 1:
        problems.append(f"expected warmup as a share of the steps in [0, 1), got {settings.warmup}")
    if not 0 <= settings.seed < 2**32:
        problems.append(f"expected a seed from 0 to {2**32 - 1}, got {settings.seed}")
    if problems:
        raise TrainingError("\n".join(problems))


def distil(
    model: PeftModel,
    rows: Sequence[Encoded],
    settings: DistilSettings,
    *,
    pad_id: int,
    cache: ReferenceCache | None = None,
    on_step: Callable[[float], None] = lambda _loss: None,
) -> Distilled:
    """Train the LoRA that `attach` put on ``model`` with ``stacked_on`` to answer ``rows`` as base and stack do.

    In place; base and stack stay frozen, and the student is left on alone, as it will be served. Deterministic for a
    seed on a CPU. ``on_step`` hears each step's KL. Raises :class:`TrainingError` for settings that cannot be meant,
    no rows, and a loss that is not finite (naming the rows); :class:`AdapterError` without a stack to learn from.
    """
    check_distil(settings)
    if not rows:
        raise TrainingError("expected rows to distil on, got none: the requests' rows are needed")
    dealt = deal(rows, settings.steps * settings.batch, torch.Generator().manual_seed(settings.seed))
    started = time.monotonic()
    teacher = ask_teacher(model, tuple(dict.fromkeys(dealt)), pad_id=pad_id, cache=cache)
    parameters = student_alone(model)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    losses: list[float] = []
    model.train()
    try:
        with fast(model):
            for batch in chunks(dealt, settings.batch):
                loss = _kl(model, batch, teacher, pad_id)
                if not math.isfinite(value := float(loss.detach())):
                    named = ", ".join(row.id for row in batch[:4])
                    raise TrainingError(f"the KL is not finite: lower the learning rate, or look at {named}")
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                optimizer.step()
                schedule.step()
                losses.append(value)
                on_step(value)
    finally:
        model.eval()
    return Distilled(tuple(losses), time.monotonic() - started)


def ask_teacher(
    model: PeftModel, rows: Sequence[Encoded], *, pad_id: int, cache: ReferenceCache | None = None
) -> Teacher:
    """What base and stack make of ``rows``. Raises :class:`AdapterError` when ``model`` has no stack on it."""
    if STACKED not in model.peft_config:
        raise AdapterError(
            f"expected a stack to learn from, got {', '.join(model.peft_config)}: attach with stacked_on"
        )
    model.eval()
    return ask_hidden(model, tuple(rows), pad_id=pad_id, cache=ReferenceCache("") if cache is None else cache)


@torch.no_grad()
def divergence(model: PeftModel, rows: Sequence[Encoded], teacher: Teacher, *, pad_id: int) -> float:
    """Mean KL(teacher || student) per answer token over ``rows``, in nats, with the student as it stands."""
    student_alone(model)
    model.eval()
    total, tokens = 0.0, 0
    for batch in chunks(tuple(rows), CHUNK):
        count = sum(len(teacher[row]) for row in batch)
        total, tokens = total + count * float(_kl(model, batch, teacher, pad_id)), tokens + count
    return total / tokens


def student_alone(model: PeftModel) -> list[torch.nn.Parameter]:
    """Switch the stack off and the student on, the only thing that learns; its parameters."""
    tuner: Any = model.base_model
    tuner.set_adapter([TRAINED])
    found: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and f".{TRAINED}." in name)
        found += [parameter] if parameter.requires_grad else []
    return found


@torch.no_grad()
def start_from(model: PeftModel, folder: Path) -> None:
    """Put the LoRA of ``folder`` into the student, which may have more rank and modules: the rest of its B is zero.

    Raises :class:`AdapterError` for a module that the student does not have, or not at that rank.
    """
    adapter, layers = read_adapter(folder), _student(model)
    for name, module in adapter.modules.items():
        if name not in layers:
            raise AdapterError(f"{name} is not among the student's modules: widen target_modules")
        if module.rank > (most := len(layers[name].lora_A[TRAINED].weight)):
            raise AdapterError(f"{name} has rank {module.rank}, the student {most}: give it more rank")
    for layer in layers.values():
        layer.lora_B[TRAINED].weight.zero_()
    with open_tensors(folder) as read:
        for name, module in adapter.modules.items():
            layer = layers[name]
            a, b = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
            a[: module.rank] = read(a_key(name)).to(a)
            b[:, : module.rank] = (read(b_key(name)) * (module.scaling / layer.scaling[TRAINED])).to(b)


def _student(model: PeftModel) -> dict[str, Any]:
    """The layers that the student is on, by their names in the base."""
    return {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if TRAINED in getattr(layer, "lora_A", {})
    }


def _kl(model: PeftModel, rows: Sequence[Encoded], teacher: Teacher, pad_id: int) -> Tensor:
    found = answers(model, rows, pad_id)
    theirs = torch.cat([teacher[row] for row in rows]).to(found.hidden.device)
    return retain_kl(found.logits, reference_head(found.head)(theirs))


def _rate(step: int, settings: DistilSettings) -> float:
    first = round(settings.warmup * settings.steps)
    if step < first:
        return (step + 1) / (first + 1)
    return max(0.0, (settings.steps - step) / (settings.steps - first))
