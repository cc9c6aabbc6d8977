"""Unlearning objectives: pure functions of log-probabilities.

A step minimises ``gamma * forget + alpha * retain``. Notation: s = summed log-probability of the forget
answer under the model, s_ref = the same under the reference policy, |y| = answer length in tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .errors import ObjectiveError


def npo(logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """Negative Preference Optimization, arXiv 2404.05868 eq. 3: ``-(2/beta) E log sigmoid(-beta (s - s_ref))``.

    ``logps`` and ``ref_logps``: float [B], *summed* over answer tokens, so beta's effect grows with answer
    length. As beta -> 0 the gradient becomes gradient ascent's; it fades once s is far below s_ref.
    Returns a scalar. The reference is the base plus the adapters this one is trained on, never a copy.
    """
    _check(logps, ref_logps, beta)
    return -(2.0 / beta) * logsigmoid(-beta * (logps - ref_logps)).mean()


def simnpo(logps: Tensor, lengths: Tensor, *, beta: float = 2.5, delta: float = 0.0) -> Tensor:
    """SimNPO, arXiv 2410.07163 eq. 4: ``-(2/beta) E log sigmoid(-(beta/|y|) s - delta)``. No reference.

    ``logps`` float [B] summed over answer tokens, ``lengths`` int [B] > 0, ``delta`` the reward margin.
    Length-normalised: repeating an answer's tokens at the same probability leaves the loss as it was.
    Returns a scalar.
    """
    _check(logps, lengths, beta)
    return -(2.0 / beta) * logsigmoid(-beta * logps / lengths - delta).mean()


def retain_nll(logps: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood over the retain answers' tokens (GradDiff's retain term, arXiv 2401.06121).

    ``logps`` float [B, A] and ``mask`` bool [B, A]; positions outside the mask never count. Scalar.
    """
    if logps.shape != mask.shape:
        raise ObjectiveError(f"logps {tuple(logps.shape)} and mask {tuple(mask.shape)} differ in shape")
    if not mask.any():
        raise ObjectiveError("expected at least one counted token, got a mask without any")
    return -logps.masked_fill(~mask, 0.0).sum() / mask.sum()


def retain_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Mean KL(reference || model) over the retain answers' tokens (the KL term of arXiv 2401.06121).

    ``logits`` and ``ref_logits``: float [N, V] at the N answer positions. Zero for equal policies. It holds
    the whole next-token distribution where NLL holds one token of it. Returns a scalar float32 (float64 for
    float64 logits). Gradients reach ``logits`` alone: the reference is a constant.
    """
    if logits.ndim != 2 or logits.shape != ref_logits.shape or not len(logits):
        raise ObjectiveError(
            f"expected two matrices [N, V] with N > 0, got {tuple(logits.shape)} and {tuple(ref_logits.shape)}"
        )
    return _KLToReference.apply(logits, ref_logits)  # type: ignore[no-any-return]


class _KLToReference(torch.autograd.Function):
    """KL(softmax(ref) || softmax(z)) with its gradient softmax(z) - softmax(ref), a slice of rows at a time.

    Through autograd the same costs nine passes over float32 [N, V] and keeps three of them in memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ref_logits: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        wide = torch.promote_types(logits.dtype, torch.float32)
        gradient, total = torch.empty_like(logits), logits.new_zeros((), dtype=wide)
        for start in range(0, len(logits), _KL_ROWS):
            rows = slice(start, start + _KL_ROWS)
            ours, reference = logits[rows].to(wide).log_softmax(-1), ref_logits[rows].to(wide).log_softmax(-1)
            theirs = reference.exp()
            total += (theirs * reference.sub_(ours)).sum()
            gradient[rows] = ours.exp_().sub_(theirs).div_(len(logits))
        ctx.save_for_backward(gradient)
        return total / len(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None


# Some megabytes at a time: what a processor's cache holds.
_KL_ROWS = 32


def _check(logps: Tensor, other: Tensor, beta: float) -> None:
    if logps.ndim != 1 or logps.shape != other.shape or not len(logps):
        raise ObjectiveError(
            f"expected two vectors [B] with B > 0, got {tuple(logps.shape)} and {tuple(other.shape)}"
        )
    if not 0 < beta < math.inf:
        raise ObjectiveError(f"expected a positive, finite beta, got {beta}")
