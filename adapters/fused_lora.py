"""LoRA layers for training in one autograd node each: compute in the base's dtype from float32 masters.

PEFT casts the input to float32, keeps that copy for backward and adds up in float32: for a small model most of a step's
memory and a fifth of its time. Here the input is kept as it came and the low-rank products run in its dtype.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .arithmetic import frozen_weight


@contextmanager
def fused(model: nn.Module) -> Generator[None]:
    """Run plain LoRA layers of ``model`` (linear or NF4 base, one active adapter, no dropout, no bias, no variant)
    as :class:`_LoraLinear` inside the block; every other layer stays PEFT's."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    fusible = [layer for layer in layers if _is_plain(layer)]
    for layer in fusible:
        layer.forward = partial(_forward, layer, layer.forward)
    try:
        yield
    finally:
        for layer in fusible:
            del layer.forward


def _is_plain(layer: Any) -> bool:
    base, name = layer.base_layer, layer.active_adapters[0]
    return (
        type(base) in (nn.Linear, Linear4bit)
        and base.bias is None
        and len(layer.active_adapters) == 1
        and name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and not getattr(layer, "fan_in_fan_out", False)
    )


def _forward(layer: Any, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    compute = getattr(layer.base_layer, "compute_dtype", None) or x.dtype
    if layer.disable_adapters or layer.merged or args or kwargs or compute != x.dtype:
        return plain(x, *args, **kwargs)
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return _LoraLinear.apply(x, a, b, layer.base_layer, layer.scaling[name])


class _LoraLinear(torch.autograd.Function):
    """``x W' + s (x A') B'`` with x [..., in], A float32 [r, in], B float32 [out, r]; W frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, base: Any, scaling: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.to(x.dtype).t()
        out = rows @ frozen_weight(base, x.dtype).t()
        out.addmm_(low, (b * scaling).to(x.dtype).t())
        ctx.save_for_backward(x, low, a, b)
        ctx.base, ctx.scaling = base, scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, low, a, b = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_low = grad @ (b * ctx.scaling).to(x.dtype)
        grad_a = (grad_low.t() @ rows).to(a.dtype) if ctx.needs_input_grad[1] else None
        grad_b = (grad.t() @ low).to(b.dtype) * ctx.scaling
        if not ctx.needs_input_grad[0]:
            return None, grad_a, grad_b, None, None
        grad_x = grad @ frozen_weight(ctx.base, x.dtype)
        grad_x.addmm_(grad_low, a.to(x.dtype))
        return grad_x.view(x.shape), grad_a, grad_b, None, None
