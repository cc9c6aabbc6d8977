"""Retain terms: what keeps the model where it was while an objective of this package moves it."""

from __future__ import annotations

from torch import Tensor

from .checks import check_matrices, counted
from .fused import mean_over_rows


def retain_nll(logps: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood over the retain answers' tokens (GradDiff's retain term, arXiv 2401.06121).

    ``logps`` float [B, A] and ``mask`` bool [B, A]; positions outside the mask never count. A
    scalar, float32 or wider.
    """
    return -counted(logps, mask).mean()


def retain_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Mean KL(reference || model) over the retain answers' tokens (the KL term of arXiv 2401.06121).

    ``logits`` and ``ref_logits``: float [N, V] at the N answer positions. Zero for equal policies. It holds
    the whole next-token distribution where NLL holds one token of it. Returns a scalar float32 (float64 for
    float64 logits). Gradients reach ``logits`` alone: the reference is a constant.

    Departure from open-unlearning, whose mean also runs over prompts and padding.
    """
    check_matrices(logits, ref_logits)

    def rows_kl(z: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        ours, reference = z.log_softmax(-1), ref_logits[rows].to(z.dtype).log_softmax(-1)
        theirs = reference.exp()
        total = (theirs * reference.sub_(ours)).sum()
        return total, ours.exp_().sub_(theirs)

    return mean_over_rows(logits, rows_kl)
