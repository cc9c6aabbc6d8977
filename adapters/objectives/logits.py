"""Objectives over logits [N, V] at the N answer positions, with the answers' token ids ``targets`` int64 [N].

The caller selects the positions (as ``logprobs.answer_hidden`` does): prompts and padding never get here, and
a target of -100 is an error. p = softmax(logits), y = the target, sg = no gradient. Each returns the mean over
positions, a scalar float32 (float64 for float64 logits), and keeps one [N, V] buffer in the logits' dtype.
Logits must be finite: a head that masks tokens with -inf gives NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ObjectiveError
from .checks import check_floats, check_logits, check_matrices, check_weight
from .fused import mean_over_rows


def ihl(logits: Tensor, targets: Tensor) -> Tensor:
    """Inverted hinge loss, LoKU, arXiv 2408.06621: ``mean_t [1 + p_y - max_{v != y} p_v]_+``, in [0, 2] a token.

    Moves mass from the target to the next likely token and no further. Of equal runners-up the first counts.
    Always of probabilities: the authors' code skips the softmax when all logits happen to lie in [0, 1].
    """
    check_logits(logits, targets)

    def rows_ihl(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        y, p = targets[rows, None], z.softmax(-1)
        p_y = p.gather(-1, y)
        p_next, following = p.scatter(-1, y, -1.0).max(-1, keepdim=True)
        gradient = p * (p_next - p_y)
        gradient.scatter_add_(-1, y, p_y).scatter_add_(-1, following, -p_next)
        return (1.0 + p_y - p_next).clamp(min=0.0).sum(), gradient

    return mean_over_rows(logits, rows_ihl)


def ce_u(logits: Tensor, targets: Tensor) -> Tensor:
    """CE-U, arXiv 2503.01224: cross-entropy to ``sg softmax(logits with logit y = -inf)``.

    Distils the model into itself without the target; the gradient ``p - q`` is at most 1 a logit and vanishes
    with p_y. The paper leaves out each answer's first token: select with
    ``skip_first(mask)[mask]``.
    """
    check_logits(logits, targets)

    def rows_ce_u(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        return _cross_entropy(z, z.scatter(-1, targets[rows, None], -torch.inf).softmax(-1))

    return mean_over_rows(logits, rows_ce_u)


def undial(logits: Tensor, targets: Tensor, ref_logits: Tensor, *, beta: float = 10.0) -> Tensor:
    """UNDIAL, arXiv 2402.10052: cross-entropy to ``softmax(ref_logits - beta e_y)``, ``ref_logits`` float [N, V].

    beta = 0 is self-distillation: no gradient at the reference. Departure from the authors' and
    open-unlearning's code, whose means cover prompts and padding; the latter subtracts beta at token V - 100 there.
    """
    check_logits(logits, targets)
    check_matrices(logits, ref_logits)
    check_weight("beta", beta)

    def rows_undial(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        theirs, y = ref_logits[rows].detach().to(z.dtype), targets[rows, None]
        return _cross_entropy(z, theirs.scatter(-1, y, theirs.gather(-1, y) - beta).softmax(-1))

    return mean_over_rows(logits, rows_undial)


def bst(logits: Tensor, targets: Tensor, *, mix: float = 0.2, top_k: int = 20) -> Tensor:
    """BS-T, arXiv 2510.19422 eq. 6-7: ``mean_t sum_v q_v log p_v`` with ``q = mix sg(top-k belief) + (1 - mix) e_y``.

    The belief is the softmax over the ``top_k`` likeliest tokens alone, so that what gradient ascent would
    merely squeeze into them is forgotten too. mix = 0 is gradient ascent, and like it unbounded below.
    ``mix`` in [0, 1] is the paper's lambda; ``top_k`` above V means V. The authors' code averages by row first.
    """
    check_logits(logits, targets)
    if not 0.0 <= mix <= 1.0:
        raise ObjectiveError(f"expected a mix in [0, 1], got {mix}")
    if top_k < 1 or top_k != int(top_k):
        raise ObjectiveError(f"expected a whole top_k of at least 1, got {top_k}")
    k = min(int(top_k), logits.shape[-1])  # a recipe's parameters are floats

    def rows_bst(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        values, ids = z.topk(k, dim=-1)
        target = torch.zeros_like(z).scatter_(-1, ids, mix * values.softmax(-1))
        ones = torch.full_like(values[:, :1], 1.0 - mix)
        loss, gradient = _cross_entropy(z, target.scatter_add_(-1, targets[rows, None], ones))
        return -loss, gradient.neg_()

    return mean_over_rows(logits, rows_bst)


def pdu(logits: Tensor) -> Tensor:
    """PDU's logit-margin flattening, arXiv 2506.05314: ``mean_t (max_v z - mean_v z)^2``; zero for a flat row.

    Softmax-free, so it needs no target and its gradient does not fade before the row is flat. Meant for the
    constrained form, :class:`efface.adapters.objectives.Dual`. Departure from open-unlearning, whose mask is
    one position late: the positions here are those that predict the answer.
    """
    if logits.ndim != 2 or not logits.numel():
        raise ObjectiveError(f"expected logits [N, V] with N > 0, got {tuple(logits.shape)}")
    check_floats(logits)

    def rows_pdu(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:  # noqa: ARG001
        highest, at = z.max(-1, keepdim=True)
        margin = highest - z.mean(-1, keepdim=True)
        gradient = (margin * (-2.0 / z.shape[-1])).repeat(1, z.shape[-1])
        return margin.square().sum(), gradient.scatter_add_(-1, at, 2.0 * margin)

    return mean_over_rows(logits, rows_pdu)


def skip_first(mask: Tensor, count: int = 1) -> Tensor:
    """``mask`` bool [B, A] without the first ``count`` counted tokens of each row (arXiv 2503.01224)."""
    if mask.dtype != torch.bool or mask.ndim != 2 or count < 0:
        raise ObjectiveError(
            f"expected a bool mask [B, A] and a count of zero or more, got {mask.dtype} {tuple(mask.shape)}, {count}"
        )
    return mask & (mask.cumsum(-1) > count)


def _cross_entropy(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' cross-entropies to constant distributions ``target``, summed, and the gradient p - target."""
    logps = z.log_softmax(-1)
    loss = -(target * logps).sum()
    return loss, logps.exp_().sub_(target)
