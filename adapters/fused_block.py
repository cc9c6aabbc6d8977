"""Llama's norm and gated MLP in one autograd node each, keeping bf16 inputs, no float32 copies or products."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm


@contextmanager
def lean_blocks(model: nn.Module) -> Generator[None]:
    """Inside the block, Llama's RMSNorm and SwiGLU modules of ``model`` keep less for backward. Same function."""
    lean = [(m, _lean(m)) for m in model.modules() if type(m) is LlamaRMSNorm or _is_swiglu(m)]
    for module, forward in lean:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in lean:
            del module.forward


def _is_swiglu(module: Any) -> bool:
    return type(module) is LlamaMLP and module.config.hidden_act == "silu"


def _lean(module: Any) -> Any:
    if type(module) is LlamaRMSNorm:
        return partial(_norm, module)
    return partial(_mlp, module)


def _norm(module: Any, x: Tensor) -> Tensor:
    return _RMSNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-any-return]


def _mlp(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(_SwiGLU.apply(module.gate_proj(x), module.up_proj(x)))


class _RMSNorm(torch.autograd.Function):
    """``w * x / rms(x)``, normalised in float32; w frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, inverse = ctx.saved_tensors
        unit, grad = x.float() * inverse, (grad * weight).float()
        along = (grad * unit).mean(-1, keepdim=True)
        return grad.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    """``silu(gate) * up``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        grad_up = silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up
