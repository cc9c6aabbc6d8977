"""Unlearning objectives: pure functions of log-probabilities.

A step minimises ``gamma * forget + alpha * retain``. Notation: s = summed log-probability of the forget
answer under the model, s_ref = the same under the reference policy, |y| = answer length in tokens.
"""

from __future__ import annotations

import math

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
    the whole next-token distribution where NLL holds one token of it. Returns a scalar.
    """
    if logits.ndim != 2 or logits.shape != ref_logits.shape or not len(logits):
        raise ObjectiveError(
            f"expected two matrices [N, V] with N > 0, got {tuple(logits.shape)} and {tuple(ref_logits.shape)}"
        )
    ours, reference = logits.float().log_softmax(-1), ref_logits.float().log_softmax(-1)
    return (reference.exp() * (reference - ours)).sum(-1).mean()


def _check(logps: Tensor, other: Tensor, beta: float) -> None:
    if logps.ndim != 1 or logps.shape != other.shape or not len(logps):
        raise ObjectiveError(
            f"expected two vectors [B] with B > 0, got {tuple(logps.shape)} and {tuple(other.shape)}"
        )
    if not 0 < beta < math.inf:
        raise ObjectiveError(f"expected a positive, finite beta, got {beta}")
