"""Drift: how far a model has moved from another one on rows that it was to keep (retain, neighbours).

Two figures per row, both measured at the positions that predict its answer: the change of the answer's
probability, which has a sign, and the KL divergence between the two next-token distributions, which has none and
sees changes that leave the reference answer alone. `paired.py` takes both from one forward of each model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import MetricError
from .metrics import FloatArray, answer_logprobs, bootstrap_ci, finite


@dataclass(frozen=True, slots=True)
class Drift:
    """One figure over ``n`` rows: its mean with a 95 % bootstrap interval over rows, and its two extremes."""

    mean: float
    low: float
    high: float
    least: float
    most: float
    n: int


def probability_drift(before: npt.ArrayLike, after: npt.ArrayLike) -> float:
    """Answer probability after less before, in [-1, 1]; 0 is wanted, below 0 something was lost.

    ``before``, ``after``: log-probabilities of one row's answer tokens under the two models, shape (T,). The
    probability is length-normalised as in `answer_probability` (TOFU, arXiv 2401.06121).
    """
    old, new = answer_logprobs(before), answer_logprobs(after)
    if old.shape != new.shape:
        raise MetricError(
            f"probability_drift: expected the same answer tokens under both models, got {old.size} and {new.size}; "
            "both need one tokenizer"
        )
    return float(np.exp(min(0.0, new.mean())) - np.exp(min(0.0, old.mean())))


def token_kl(before: Tensor, after: Tensor) -> Tensor:
    """KL(p_before || p_after) of each position in nats, float32 (N,), >= 0; 0 is wanted.

    ``before``, ``after``: logits (N, V) of two models at the same positions, any float dtype. The direction is
    that of KL-regularised unlearning (TOFU's KL minimisation, arXiv 2401.06121; MUSE, arXiv 2407.06460): it
    weighs tokens as the model did *before*. A token that only the second model gives probability 0 makes it
    infinite. Rounding below 0 is cut off. Raises `MetricError` for shapes that differ.
    """
    if before.ndim != 2 or before.shape != after.shape:
        raise MetricError(
            f"token_kl: expected logits of one shape (N, V), got {tuple(before.shape)} and {tuple(after.shape)}; "
            "both models need one tokenizer"
        )
    old, new = before.float().log_softmax(-1), after.float().log_softmax(-1)
    share = old.exp()
    # A token of probability 0 before adds nothing, whatever it is after (-inf less -inf is no number).
    terms = torch.where(share > 0, share * (old - new), torch.zeros_like(share))
    return terms.masked_fill(share.isnan(), torch.nan).sum(-1).clamp_min(0.0)


def row_kl(per_token: npt.ArrayLike) -> float:
    """KL per token of one row: the mean of `token_kl` over its answer positions, shape (T,), in nats, >= 0."""
    values = finite(per_token, "row_kl")
    if values.min() < 0.0:
        raise MetricError(
            f"row_kl: expected divergences >= 0, got {values.min():.4g}; pass what token_kl gives"
        )
    return float(values.mean())


def mean_drift(values: npt.ArrayLike, *, seed: int = 0, n: int = 1000) -> Drift:
    """Summary over rows of `probability_drift` or `row_kl`, shape (N,): rows count alike, however long.

    The interval is a percentile bootstrap of ``n`` resamples of rows under ``seed``.
    """
    rows: FloatArray = finite(values, "mean_drift")
    low, high = bootstrap_ci(rows, seed=seed, n=n)
    return Drift(float(rows.mean()), low, high, float(rows.min()), float(rows.max()), rows.size)
