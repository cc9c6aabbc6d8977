"""A base that multiplies by what its 4-bit weights stand for, unpacked once: the same numbers, sooner.

On a CPU bitsandbytes unpacks a 4-bit matrix to float32 each time that it is multiplied by, which is half of the time of
generating and a fifth of training's. The curve asks one small model some ten thousand times, and has the memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn

from efface.adapters import Base
from efface.adapters.arithmetic import frozen_weight


def unpacked(base: Base) -> Base:
    """``base`` with a plain layer for each 4-bit one; as it is where it computes in another dtype than float32."""
    model: Any = base.model
    if base.model.dtype != torch.float32:
        return base
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _plain(module))
    return replace(base, model=model)


def _plain(layer: Any) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    weight = frozen_weight(layer, torch.float32)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data.float(), requires_grad=False)
    return plain
