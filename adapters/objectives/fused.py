"""A mean loss over logits [N, V] with its gradient in closed form, a slice of rows at a time.

Through autograd a loss over a softmax makes several float32 copies of [N, V] and keeps some of them; with a
49k-token vocabulary that is most of a step's memory. Here one buffer, in the logits' own dtype, is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(a slice's logits [n, V], float32 or wider, not to be written to; which rows it is of) -> (the sum of the
rows' losses, a scalar; the gradient of that sum, a fresh [n, V])."""

# Some megabytes at a time: what a processor's cache holds.
ROWS = 32


def mean_over_rows(logits: Tensor, row_loss: RowLoss) -> Tensor:
    """The mean of ``row_loss`` over the rows of ``logits`` [N, V]: a scalar, float32 (float64 for float64).

    Differentiable once, and with respect to ``logits`` alone: what else ``row_loss`` reads is a constant.
    """
    return _MeanOverRows.apply(logits, row_loss, torch.is_grad_enabled() and logits.requires_grad)  # type: ignore[no-any-return]


class _MeanOverRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, row_loss: RowLoss, keep: bool) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        wide = torch.promote_types(logits.dtype, torch.float32)
        kept, total = torch.empty_like(logits) if keep else None, logits.new_zeros((), dtype=wide)
        for start in range(0, len(logits), ROWS):
            rows = slice(start, start + ROWS)
            loss, gradient = row_loss(logits[rows].to(wide), rows)
            total += loss
            if kept is not None:
                kept[rows] = gradient.div_(len(logits))
        ctx.save_for_backward(kept)
        return total / len(logits)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (kept,) = ctx.saved_tensors
        return kept * grad.to(kept.dtype), None, None
