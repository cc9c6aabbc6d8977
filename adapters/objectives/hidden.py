"""RMU, arXiv 2403.03218: steer one layer's hidden states on forget text to a fixed random direction.

    loss = gamma rmu(hidden, control) + alpha rmu_retain(hidden, ref_hidden)

Hidden states float [N, H] are a decoder layer's output at the N token positions that count; the caller selects
them, so padding never gets here. Means run over positions and over H, as in the authors' code (the paper's norm
is that times H: scale c, or both weights, accordingly).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ObjectiveError
from .checks import check_floats, check_matrices, check_positive


def rmu(hidden: Tensor, control: Tensor) -> Tensor:
    """The forget term: mean squared distance of ``hidden`` [N, H] to ``control`` [H]. Scalar, float32 or wider."""
    if hidden.ndim != 2 or not hidden.numel() or control.shape != hidden.shape[1:]:
        raise ObjectiveError(
            "expected hidden states [N, H] with N > 0 and a control vector [H], "
            f"got {tuple(hidden.shape)} and {tuple(control.shape)}"
        )
    check_floats(hidden)
    return (_wide(hidden) - control.detach().to(hidden.device)).square().mean()


def rmu_retain(hidden: Tensor, ref_hidden: Tensor) -> Tensor:
    """The retain term: mean squared distance of ``hidden`` to the reference's, both [N, H]. Scalar."""
    check_matrices(hidden, ref_hidden)
    return (_wide(hidden) - _wide(ref_hidden.detach())).square().mean()


def control_vector(size: int, *, seed: int, scale: float = 2.0) -> Tensor:
    """``scale`` times a random unit vector [H] float32, each entry uniform on [0, 1) before normalising.

    Drawn on the CPU from a generator of its own: the same for a seed on any device and whatever ran before.
    ``scale`` is the paper's c.
    """
    if size < 1:
        raise ObjectiveError(f"expected a hidden size of at least 1, got {size}")
    check_positive("scale", scale)
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return scale * drawn / drawn.norm()


def layer_module(model: nn.Module, index: int) -> nn.Module:
    """Decoder layer ``index`` of a causal language model, 0 the first, with PEFT around it or without.

    Found by structure, not by a name's pattern: the one module list as long as the model is deep. Raises
    :class:`ObjectiveError` naming the layers there are.
    """
    config: Any = getattr(model, "config", None)
    depth = getattr(config.get_text_config(), "num_hidden_layers", 0) if config is not None else 0
    stacks = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    }
    if len(stacks) != 1 or not depth:
        raise ObjectiveError(
            f"expected one list of {depth} decoder layers in {type(model).__name__}, got {sorted(stacks) or 'none'}; "
            "give the causal language model itself"
        )
    ((name, stack),) = stacks.items()
    if not 0 <= index < depth:
        raise ObjectiveError(f"no decoder layer {index}: {name}.0 to {name}.{depth - 1} exist")
    return stack[index]


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
