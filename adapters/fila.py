"""FILA, the data-aware LoRA initialisation of LoKU (arXiv 2408.06621), with the base left as it is.

LoKU starts B and A at the part of each weight W that matters more to the forget rows than to the retain rows, and
takes that part out of the base: ``W <- W - s B0 A0``. A base that changes is no registry's base. Here it stays, and
a frozen anchor holds ``-B0 A0``: the layer computes ``W + s (BA - B0 A0)``, and `save` writes that difference as one
LoRA of rank 2r.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from .answers import answers
from .arithmetic import frozen_weight
from .encode import Encoded
from .errors import TrainingError
from .lora import ANCHOR, TRAINED, activate

# Importances of two sides in float32 for so many weights at a time: 2 GiB.
_ENTRIES = 1 << 28
_FLOOR = 1e-5


def initialise_fila(
    model: PeftModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    *,
    pad_id: int,
    rows: int = 32,
    seed: int = 0,
) -> None:
    """Start the fresh adapter of ``model`` (see `attach`) at FILA's B0 and A0, anchored: its output stays the base's.

    The importance of a weight is its squared gradient of the log-likelihood, averaged over at most ``rows`` rows a
    side, forget over retain: ``I = F_f / (F_r + 1e-5)``. ``D = diag(sqrt(sum_j I_ij))``, ``U S V' = svd_r(D W)``,
    ``A0 = (V sqrt(S / s))'``, ``B0 = D^-1 U sqrt(S / s)`` with LoRA's scaling s. The rank-r factors come from a
    randomised SVD under ``seed``. Costs a backward pass for each of those rows, and float32 importances.

    Raises :class:`TrainingError` without rows on either side, or for an adapter that is not fresh.
    """
    if not forget or not retain:
        raise TrainingError(f"FILA compares forget and retain rows, got {len(forget)} and {len(retain)}")
    if ANCHOR in model.peft_config:
        raise TrainingError("expected a fresh adapter, got one that FILA has initialised already")
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer) and TRAINED in layer.lora_A]
    factors: list[tuple[Tensor, Tensor]] = []
    for group in _groups(layers):
        sides = [_importance(model, group, list(side)[:rows], pad_id) for side in (forget, retain)]
        for layer, f, r in zip(group, *sides, strict=True):
            factors.append(_factors(layer, f / (r + _FLOOR), seed))
    model.add_adapter(ANCHOR, model.peft_config[TRAINED])
    for layer, (a, b) in zip(layers, factors, strict=True):
        _put(layer, TRAINED, a, b)
        _put(layer, ANCHOR, a, -b)
    activate(model)


def _groups(layers: Sequence[Any]) -> Generator[list[Any]]:
    """Consecutive layers whose importances fit into memory together."""
    group, entries = list[Any](), 0
    for layer in layers:
        size = layer.in_features * layer.out_features
        if group and entries + size > _ENTRIES:
            yield group
            group, entries = [], 0
        group, entries = [*group, layer], entries + size
    if group:
        yield group


def _importance(
    model: PeftModel, layers: Sequence[Any], rows: Sequence[Encoded], pad_id: int
) -> list[Tensor]:
    """The diagonal of the empirical Fisher information of each layer's weight, float32 [out, in]."""
    found = [torch.zeros(layer.out_features, layer.in_features, device=model.device) for layer in layers]
    model.eval()
    for row in rows:
        with _gradients(layers) as seen:
            (-answers(model, [row], pad_id).logps.sums.sum()).backward()
        for total, parts in zip(found, seen, strict=True):
            # A layer may run more than once (a shared prefix): its gradient is the sum.
            total += sum(grad.t() @ x for x, grad in parts).square_() / len(rows)  # type: ignore[union-attr]
    model.zero_grad(set_to_none=True)
    return found


@contextmanager
def _gradients(layers: Sequence[Any]) -> Generator[list[list[tuple[Tensor, Tensor]]]]:
    """For each layer, pairs of its inputs [T, in] and the loss's gradients of its outputs [T, out], float32.

    With B at zero the layer's output has the base's gradient, and its weight need not require one (NF4 cannot).
    """
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def listen(parts: list[tuple[Tensor, Tensor]]) -> Any:
        def hear(_layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()

            def keep(grad: Tensor) -> None:
                parts.append((_flat(x), _flat(grad)))

            output.register_hook(keep)

        return hear

    hooks = [layer.register_forward_hook(listen(parts)) for layer, parts in zip(layers, seen, strict=True)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _factors(layer: Any, importance: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A0 [r, in] and B0 [out, r] of one layer."""
    rank, scaling = layer.r[TRAINED], layer.scaling[TRAINED]
    d = importance.sum(1).sqrt_().clamp_(min=1e-12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weight = d[:, None] * frozen_weight(layer.get_base_layer(), torch.float32)
        u, s, v = torch.svd_lowrank(weight, q=min(rank + 8, *importance.shape), niter=4)
    root = (s[:rank] / scaling).sqrt()
    return (v[:, :rank] * root).t(), u[:, :rank] * root / d[:, None]


@torch.no_grad()
def _put(layer: Any, name: str, a: Tensor, b: Tensor) -> None:
    layer.lora_A[name].weight.copy_(a)
    layer.lora_B[name].weight.copy_(b)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).float()
