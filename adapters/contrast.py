"""Start A on the directions in which forget rows differ most from retain rows: an adapter that answers few inputs.

A LoRA layer adds B A x to whatever x comes. Its A starts random, so it answers rows that nobody asked it to touch as
loudly as those it is to change, and a stack of N such adapters answers N times. Here A starts with the r directions v
that maximise

    E_f[(v x)^2] / E_r[(v x)^2],   E over the layer's inputs at the tokens of forget rows (f) and retain rows (r),

the leading generalised eigenvectors of the two second moments; the retain side with ``shrinkage`` times its mean
diagonal added. That is OSRM's idea (arXiv 2505.22934: A orthogonal to the other tasks' inputs) with the forget side
in it, and AlphaEdit's null space (arXiv 2410.02355) where retain inputs leave one. Each row of A is scaled to answer
forget rows as loudly as PEFT's start does on average, so a recipe's learning rate means the same. Meant for
``stacking.freeze_a``: A that learns leaves these directions. What it is worth in a stack: docs/LOG.md, 2026-11-23.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from .apart import require_fresh
from .encode import Encoded, collate
from .errors import TrainingError
from .lora import TRAINED

SHRINKAGE = 0.01
_OVERSAMPLED = 8
_BYTES = 1 << 30
"""Of the inputs of one side that are kept at once."""
_ELSE = "start at random and let A learn (--set initialisation=default --set stacking.freeze_a=false)"


@torch.no_grad()
def initialise_contrast(
    model: PeftModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    *,
    pad_id: int,
    rows: int = 48,
    tokens: int = 1536,
    shrinkage: float = SHRINKAGE,
    seed: int = 0,
) -> None:
    """Start A of the fresh adapter of ``model`` (see `attach`) on the contrast of ``forget`` and ``retain``.

    Looks at most at ``rows`` rows a side, evenly spread, and at most at ``tokens`` inputs of a layer a side: two
    forward passes for every gibibyte of inputs, then per layer a Cholesky factor of [in, in] and a randomised SVD of
    rank r under ``seed``.
    Raises :class:`TrainingError`, changing nothing, without rows on either side, for an adapter that is not fresh,
    for more ranks than a layer has inputs, for a layer that does not see every token (an expert that some tokens are
    routed to), or for inputs that are not finite.
    """
    if not forget or not retain:
        raise TrainingError(
            f"expected forget and retain rows to contrast, got {len(forget)} and {len(retain)}"
        )
    require_fresh(model)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer) and TRAINED in m.lora_A]
    _require_room(layers)
    starts: list[Tensor] = []
    for group in _groups(layers, tokens):
        sides = [_inputs(model, group, _spread(side, rows), pad_id, tokens) for side in (forget, retain)]
        starts += [
            contrast(f, r, layer.lora_A[TRAINED].weight.shape[0], shrinkage=shrinkage, seed=seed)
            for layer, f, r in zip(group, *sides, strict=True)
        ]
    for layer, start in zip(layers, starts, strict=True):
        weight: Tensor = layer.lora_A[TRAINED].weight
        weight.copy_(start)


def contrast(forget: Tensor, retain: Tensor, rank: int, *, shrinkage: float, seed: int = 0) -> Tensor:
    """``rank`` directions, float32 [rank, n], from inputs ``forget`` [m, n] and ``retain`` [k, n]; best first.

    Each answers ``forget`` with the mean square of a row that PEFT draws: E|x|^2 / 3n. Fewer inputs than ``rank``
    span fewer directions: the rest are drawn under ``seed`` and made quiet on ``retain`` in the same way.
    """
    n = forget.shape[1]
    if not (forget.isfinite().all() and retain.isfinite().all()):
        raise TrainingError("a layer's inputs are not finite: the model is broken, or its precision too low")
    second = retain.T @ retain / len(retain)
    second.diagonal().add_(shrinkage * second.diagonal().mean().clamp(min=1e-12))
    low = torch.linalg.cholesky(second)
    white = torch.linalg.solve_triangular(low, forget.T, upper=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        spare = torch.randn(n, max(0, rank - len(forget))) * white.norm() * 1e-6
        white = torch.cat([white, spare.to(white)], 1)
        u, _, _ = torch.svd_lowrank(white, q=min(rank + _OVERSAMPLED, *white.shape), niter=4)
    rows = torch.linalg.solve_triangular(low.T, u[:, :rank], upper=True).T
    loud = (forget @ rows.T).square().mean(0).sqrt()
    plain = (forget.square().sum(1).mean() / (3 * n)).sqrt()
    # A direction that no forget row has would be blown up: it keeps the length of a row that PEFT draws.
    heard = loud > 1e-3 * forget.norm(dim=1).mean() * rows.norm(dim=1)
    scale = torch.where(heard, plain / loud.clamp(min=1e-12), 3**-0.5 / rows.norm(dim=1))
    return rows * scale[:, None]


def _require_room(layers: Sequence[Any]) -> None:
    for layer in layers:
        if (rank := layer.lora_A[TRAINED].weight.shape[0]) > layer.in_features:
            raise TrainingError(
                f"expected at most as many ranks as a layer has inputs, got rank {rank} for {layer.in_features}: "
                f"lower the rank, or {_ELSE}"
            )


def _spread(rows: Sequence[Encoded], most: int) -> list[Encoded]:
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)


def _groups(layers: Sequence[Any], tokens: int) -> Generator[list[Any]]:
    """Consecutive layers whose inputs fit into memory together."""
    group, size = list[Any](), 0
    for layer in layers:
        more = 4 * tokens * layer.in_features
        if group and size + more > _BYTES:
            yield group
            group, size = [], 0
        group, size = [*group, layer], size + more
    if group:
        yield group


def _inputs(
    model: PeftModel, layers: Sequence[Any], rows: Sequence[Encoded], pad_id: int, tokens: int
) -> list[Tensor]:
    """What comes into each of ``layers`` at the tokens of ``rows``, at most ``tokens`` of them: float32 [m, in]."""
    batches = [collate(rows[i : i + 16], pad_id) for i in range(0, len(rows), 16)]
    total = sum(int(batch.attention_mask.sum()) for batch in batches)
    found: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        there = batch.attention_mask.bool().flatten().nonzero().flatten()
        count = max(1, min(len(there), len(there) * tokens // total))
        picked = there[torch.arange(count) * len(there) // count]
        with _heard(layers, batch.input_ids.numel(), picked, found):
            model(
                input_ids=batch.input_ids.to(model.device),
                attention_mask=batch.attention_mask.to(model.device),
                logits_to_keep=1,
            )
    if not all(len(parts) == len(batches) for parts in found):
        raise TrainingError(
            f"expected one look at each layer a batch, got layers that the model calls never or twice: {_ELSE}"
        )
    return [torch.cat(parts) for parts in found]


@contextmanager
def _heard(
    layers: Sequence[Any], size: int, picked: Tensor, found: Sequence[list[Tensor]]
) -> Generator[None]:
    """Keep what comes into ``layers`` at the tokens ``picked`` of the batch's ``size`` (padding among them)."""

    def keep(into: list[Tensor], layer: Any, args: tuple[Tensor, ...]) -> None:
        inputs = args[0].reshape(-1, args[0].shape[-1])  # some models have no batch dimension left there
        if len(inputs) != size:
            raise TrainingError(
                f"expected a layer to see all {size} tokens of a batch, got {len(inputs)} at one with "
                f"{layer.in_features} inputs (an expert that tokens are routed to?): leave it out of target_modules, "
                f"or {_ELSE}"
            )
        into.append(inputs[picked.to(inputs.device)].float())

    handles = [
        layer.register_forward_pre_hook(partial(keep, into))
        for layer, into in zip(layers, found, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
