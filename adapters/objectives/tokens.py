"""Objectives over the log-probabilities of answer tokens: gradient ascent, its weighted forms, and refusals.

``logps`` float [B, A] and ``mask`` bool [B, A] of the answer tokens that count; what stands outside the mask
(prompt, padding, NaN) reaches neither loss nor gradient. Means run over all counted tokens, not over rows
first. Each returns a scalar, float32 or wider. p = a token's probability, sg = no gradient.
"""

from __future__ import annotations

from torch import Tensor

from .checks import check_weight, counted
from .retain import retain_nll


def grad_ascent(logps: Tensor, mask: Tensor) -> Tensor:
    """Gradient ascent on the NLL, arXiv 2401.06121: ``mean_t log p``. GradDiff is this and a retain term.

    Unbounded below: without a stop rule it destroys the model.
    """
    return counted(logps, mask).mean()


def wga(logps: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """Weighted gradient ascent, arXiv 2502.19301: ``mean_t sg(p)^beta log p``. beta = 0 is gradient ascent.

    Tokens that are already unlikely weigh little, so the ascent stops by itself.
    """
    check_weight("beta", beta)
    found = counted(logps, mask)
    return ((beta * found.detach()).exp() * found).mean()


def satimp(logps: Tensor, mask: Tensor, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """SatImp, arXiv 2505.11953: ``mean_t sg(p^beta1 (1 - p)^beta2) log p``. beta2 = 0 is :func:`wga`.

    ``beta1`` is the exponent of p (saturation: less for tokens already forgotten), ``beta2`` that of 1 - p
    (importance). 5 and 1 are open-unlearning's; the authors' own repository recommends 5 and 0.1.
    """
    check_weight("beta1", beta1)
    check_weight("beta2", beta2)
    found = counted(logps, mask)
    fixed = found.detach()
    # expm1: 1 - exp(log p) loses every digit as p -> 1. A log-probability a rounding above 0 counts as 0.
    rest = -fixed.clamp(max=0.0).expm1()
    return ((beta1 * fixed).exp() * rest**beta2 * found).mean()


def idk_nll(alternate_logps: Tensor, alternate_mask: Tensor) -> Tensor:
    """IdkNLL, arXiv 2401.06121: the mean NLL of a refusal given the forget prompt, ``-mean_t log p``.

    ``alternate_logps`` and ``alternate_mask`` [B, A'] are of the refusals; the forget answers are not read.
    """
    return retain_nll(alternate_logps, alternate_mask)
