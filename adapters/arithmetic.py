"""Which numbers a CPU computes with: bfloat16 where it has instructions for it, else float32.

Without them torch multiplies bfloat16 matrices six to seven times more slowly than float32 ones (docs/LOG.md). Only the
arithmetic widens: every weight keeps the value that its precision gives it, so that an audit at NF4 is one at NF4.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit

from .errors import ModelError

VARIABLE = "EFFACE_COMPUTE"
_NAMES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compute_dtype(device: str, environment: Mapping[str, str] | None = None) -> torch.dtype:
    """What a base of less than float32 precision computes with on ``device``.

    ``EFFACE_COMPUTE=bf16|fp32`` in ``environment`` (the process's own when None) decides where it is set: bf16 halves
    the memory of what is not quantized. Raises :class:`ModelError` for any other value.
    """
    asked = (os.environ if environment is None else environment).get(VARIABLE, "")
    if asked and asked not in _NAMES:
        raise ModelError(
            f"{VARIABLE}={asked[:40]}: expected bf16 or fp32; unset it to have the processor decide"
        )
    if asked:
        return _NAMES[asked]
    if not device.startswith("cpu") or has_bf16(torch.cpu.get_capabilities()):
        return torch.bfloat16
    return torch.float32


def has_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a processor of these ``capabilities`` (`torch.cpu.get_capabilities`) multiplies bfloat16 numbers."""
    return any(present is True for name, present in capabilities.items() if "bf16" in name)


def widen(model: torch.nn.Module) -> None:
    """Have ``model`` compute in float32 from the values it holds; packed 4-bit and 8-bit weights stay as they are."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = torch.float32


def frozen_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] of a linear layer in ``dtype``; a 4-bit one is dequantized anew, not kept."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.to(dtype)
    # Straight to dtype, as the layer's own forward does: by way of the dtype that was quantized it is rounded twice.
    wanted = copy(state)
    wanted.dtype = dtype
    return dequantize_4bit(layer.weight.data, wanted)
