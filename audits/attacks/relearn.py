"""Relearning: somebody fine-tunes the unlearned model a little, and the facts come back.

On a part of the forget rows (the random and the shortest fifth of SimNPO's protocol, arXiv 2410.07163), on some facts
to be tested on others that they cannot reveal (arXiv 2410.08827), on benign related text (arXiv 2406.13356), or on a
few rows of something else (arXiv 2409.18025). By a fresh LoRA on the frozen stack, or of all weights of a merged copy.

Departure: published protocols measure the rows that were relearnt with the others. Here those are left out unless
``measured: all`` is asked for, since an attacker who holds a row learns nothing from hearing it again.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from pydantic import Field

from ...adapters.encode import Encoded, collate, encode_all, pad_id
from ...adapters.fast import fast
from ...adapters.logprobs import answer_logprobs
from ...adapters.lora import attach, detach, load
from ...adapters.steps import deal
from ..attack import AttackResult, Point
from ..errors import AttackError
from ..run import Model
from .measure import Figure, Made, Watcher, figure_of, figures, memory_named, point
from .settings import Settings, Share
from .split import Choice, Split, split
from .target import Target, items, scores


class Relearn(Settings):
    """``rows``: what is learnt; ``fraction`` of the forget rows, at most ``limit`` of any rows. A point of the curve
    every ``every`` of ``steps``. ``learning_rate``: 5e-4 for a LoRA and 5e-5 for all weights unless given."""

    rows: Choice = "random"
    fraction: Share = 0.2
    limit: int | None = Field(None, ge=1)
    measured: Literal["unseen", "all"] = "unseen"
    weights: Literal["lora", "full"] = "lora"
    metric: Figure = "probability"
    steps: int = Field(50, ge=1)
    every: int = Field(10, ge=1)
    batch: int = Field(8, ge=1)
    rank: int = Field(16, ge=1)
    learning_rate: float | None = Field(None, gt=0.0, allow_inf_nan=False)

    @property
    def rate(self) -> float:
        """The learning rate in force."""
        return self.learning_rate or (5e-4 if self.weights == "lora" else 5e-5)


def relearn(target: Target, settings: Relearn, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Fine-tune the unlearned model on what ``settings`` say, request by request, and measure as it goes."""
    splits = _splits(target, settings)
    name = "relearning/" + _suffix(settings)
    watcher.phase(name, settings.steps * len(splits))
    found: list[AttackResult] = []
    for request, some in splits.items():
        recorded = {**settings.recorded(), "learning_rate": settings.rate, "trained_rows": len(some.learnt)}
        what = _on(settings, some, len(target.requests[request]))
        did = f"Fine-tuned {what} for {settings.steps} steps ({_with(settings)})"
        made = Made(name, "relearning", settings.metric, did, recorded, "steps")
        start = [figure_of(row, settings.metric) for row in scores(target.after, some.measured)]
        curve = [point(0, start, seed=settings.seed), *_curve(target, some, settings, watcher)]
        found.append(made.found(target, request, some.measured, curve))
    return tuple(found)


def _splits(target: Target, settings: Relearn) -> dict[str | None, Split]:
    """Of every request that has rows enough; raises `AttackError` where none has."""
    found: dict[str | None, Split] = {}
    problems: list[AttackError] = []
    for request in target.requests:
        try:
            found[request] = split(target, request, settings)
        except AttackError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return found


def _curve(target: Target, some: Split, settings: Relearn, watcher: Watcher) -> Iterator[Point]:
    tokenizer, method = target.base.tokenizer, target.method
    rows = encode_all(
        tokenizer,
        some.learnt,
        chat=method.chat,
        end=True,
        max_length=method.max_length,
        truncation=method.truncation,
    )
    with attacked(target, settings) as model:
        for step in learn(model, rows, settings, pad_id(tokenizer), watcher):
            values = figures(model, tokenizer, items(some.measured), settings.metric, method)
            yield point(step, values, seed=settings.seed)


@contextmanager
def attacked(target: Target, settings: Relearn) -> Generator[Model]:
    """The attacker's model, ready to be trained; the target is afterwards what it was, bit for bit."""
    if settings.weights == "full":
        yield merged_copy(target)
        return
    model = attach(
        target.base.model,
        rank=settings.rank,
        alpha=2 * settings.rank,
        stacked_on=target.folder,
        seed=settings.seed,
    )
    try:
        yield model.eval()
    finally:
        detach(model)


def merged_copy(target: Target) -> Model:
    """A copy of the model with its adapters merged, in float32, every weight trainable. Raises `AttackError` for a
    quantized base, whose weights cannot be trained."""
    if target.base.quantization not in ("bf16", "fp32"):
        raise AttackError(
            f"expected a base at bf16 or fp32 to fine-tune all its weights, got {target.base.quantization}: load it "
            "so, or attack with a LoRA"
        )
    with memory_named("copying the model to fine-tune it", "weights lora"):
        model: Any = copy.deepcopy(target.base.model)
        if target.folder is not None:
            merged: Any = load(model, target.folder)
            model = merged.merge_and_unload()
        return model.float().requires_grad_(True).eval()


def learn(
    model: Model, rows: Sequence[Encoded], settings: Relearn, pad: int, watcher: Watcher
) -> Iterator[int]:
    """Plain fine-tuning (AdamW, token-mean NLL of the answers, constant rate); yields the step it stands at every
    ``every`` steps and at the end. Raises `AttackError` for a loss that is not finite."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=settings.rate, weight_decay=0.0)
    size = min(settings.batch, len(rows))
    hands = deal(rows, settings.steps * size, torch.Generator().manual_seed(settings.seed))
    for first in range(0, settings.steps, settings.every):
        last = min(first + settings.every, settings.steps)
        with (
            memory_named(f"fine-tuning on {size} rows at once", "a smaller batch"),
            fast(model) if isinstance(model, PeftModel) else nullcontext(),
            torch.enable_grad(),
        ):
            for step in range(first, last):
                found = answer_logprobs(
                    model, collate(hands[step * size : (step + 1) * size], pad).to(model.device)
                )
                loss = -found.sums.sum() / found.lengths.sum()
                if not torch.isfinite(loss):
                    raise AttackError(f"the loss is not finite at step {step + 1}: lower learning_rate")
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learnt, 1.0)
                optimizer.step()
                watcher.advance()
        yield last


def _suffix(settings: Relearn) -> str:
    share = f"-{settings.fraction:.0%}" if settings.rows in ("random", "shortest", "facts") else ""
    return settings.rows + share + ("-full" if settings.weights == "full" else "")


def _on(settings: Relearn, some: Split, of: int) -> str:
    n = len(some.learnt)
    return {
        "random": f"on {n} of {of} forget rows, drawn at random,",
        "shortest": f"on the {n} shortest of {of} forget rows",
        "facts": f"on {n} of {of} forget rows and asked about other facts,",
        "neighbour": f"on {n} neighbour rows, none of them to be forgotten,",
        "unrelated": f"on {n} unrelated rows",
    }[settings.rows]


def _with(settings: Relearn) -> str:
    return f"LoRA of rank {settings.rank}" if settings.weights == "lora" else "all weights"
