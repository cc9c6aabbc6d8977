"""Preference-style objectives: a forget answer is what the policy must stop preferring to its reference.

Sequence level. s = the summed log-probability of the forget answer under the model, s_ref = under the
reference policy (the base plus the adapters this one is trained on, never a copy), s', s'_ref = of the
alternate answer; all float [B]. A sum grows with the answer, and beta's effect with it. Each returns a scalar.

DPO as TRL and TOFU write it is ``-log sigmoid(...)``; here, as in open-unlearning and AltPO's code, it is that
times 2/beta, the same scale as NPO's: its gradient does not vanish with beta.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..errors import ObjectiveError
from .checks import check_finite, check_positive, check_vectors, check_weight


def npo(logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1) -> Tensor:
    """Negative Preference Optimization, arXiv 2404.05868 eq. 3: ``-(2/beta) E log sigmoid(-beta (s - s_ref))``.

    ``logps`` and ``ref_logps``: float [B], *summed* over answer tokens, so beta's effect grows with answer
    length. As beta -> 0 the gradient becomes gradient ascent's; it fades once s is far below s_ref.
    Returns a scalar. The reference is the base plus the adapters this one is trained on, never a copy.
    """
    check_vectors(logps, ref_logps)
    check_positive("beta", beta)
    return -(2.0 / beta) * logsigmoid(-beta * (logps - ref_logps)).mean()


def simnpo(logps: Tensor, lengths: Tensor, *, beta: float = 2.5, delta: float = 0.0) -> Tensor:
    """SimNPO, arXiv 2410.07163 eq. 4: ``-(2/beta) E log sigmoid(-(beta/|y|) s - delta)``. No reference.

    ``logps`` float [B] summed over answer tokens, ``lengths`` int [B] > 0, ``delta`` the reward margin.
    Length-normalised: repeating an answer's tokens at the same probability leaves the loss as it was.
    Returns a scalar. open-unlearning multiplies ``delta`` by ``beta``; at 0, the default of both, all agree.
    """
    check_vectors(logps, lengths)
    check_positive("beta", beta)
    check_finite("delta", delta)
    if not (lengths > 0).all():
        raise ObjectiveError(f"expected lengths of at least one token, got {int(lengths.min())}")
    return -(2.0 / beta) * logsigmoid(-beta * logps / lengths - delta).mean()


def dpo(
    logps: Tensor,
    ref_logps: Tensor,
    alternate_logps: Tensor,
    ref_alternate_logps: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """DPO/IDK, arXiv 2305.18290 eq. 7 used to unlearn as in arXiv 2401.06121, with a refusal as the alternate.

    ``-(2/beta) E log sigmoid(beta [(s' - s'_ref) - (s - s_ref)])``, four float [B]: the forget answers, then
    the preferred ones. Equals ``2/beta`` times the loss of TRL's ``DPOTrainer`` (``loss_type="sigmoid"``).
    With the alternate at its reference it is :func:`npo`.
    """
    check_vectors(logps, ref_logps, alternate_logps, ref_alternate_logps)
    check_positive("beta", beta)
    gain = (alternate_logps - ref_alternate_logps) - (logps - ref_logps)
    return -(2.0 / beta) * logsigmoid(beta * gain).mean()


def altpo(
    logps: Tensor,
    ref_logps: Tensor,
    alternate_logps: Tensor,
    ref_alternate_logps: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """AltPO, arXiv 2409.13474: :func:`dpo` towards plausible in-domain alternates, K of them to a forget answer.

    ``logps`` and ``ref_logps`` float [B]; ``alternate_logps`` and ``ref_alternate_logps`` float [B, K] (the
    paper samples K = 5). The mean runs over all B K pairs, as if each pair were a row of its own.
    """
    if alternate_logps.ndim != 2 or logps.ndim != 1 or len(alternate_logps) != len(logps):
        raise ObjectiveError(
            "expected logps [B] and alternate_logps [B, K], "
            f"got {tuple(logps.shape)} and {tuple(alternate_logps.shape)}"
        )
    if ref_logps.shape != logps.shape or ref_alternate_logps.shape != alternate_logps.shape:
        raise ObjectiveError(
            f"expected ref_logps {tuple(logps.shape)} and ref_alternate_logps {tuple(alternate_logps.shape)}, "
            f"got {tuple(ref_logps.shape)} and {tuple(ref_alternate_logps.shape)}"
        )
    pairs = [
        row.reshape(-1)
        for row in torch.broadcast_tensors(
            logps[:, None], ref_logps[:, None], alternate_logps, ref_alternate_logps
        )
    ]
    return dpo(*pairs, beta=beta)


def ipo(
    logps: Tensor,
    ref_logps: Tensor,
    alternate_logps: Tensor,
    ref_alternate_logps: Tensor,
    *,
    tau: float = 0.1,
) -> Tensor:
    """IPO, arXiv 2310.12036 eq. 17: ``E ([(s' - s'_ref) - (s - s_ref)] - 1/(2 tau))^2``. Unproven for unlearning.

    Four float [B]. It stops at a margin of 1/(2 tau) instead of pulling for ever. Sums, as the paper writes it;
    TRL divides each answer's by its length: give means instead of sums and the two are equal.
    """
    check_vectors(logps, ref_logps, alternate_logps, ref_alternate_logps)
    check_positive("tau", tau)
    gain = (alternate_logps - ref_alternate_logps) - (logps - ref_logps)
    return (gain - 1.0 / (2.0 * tau)).square().mean()


def kto_undesirable(
    logps: Tensor, ref_logps: Tensor, *, beta: float = 0.1, z_ref: float = 0.0, weight: float = 1.0
) -> Tensor:
    """KTO's undesirable half, arXiv 2402.01306 eq. 8: ``weight E [1 - sigmoid(beta (z_ref - (s - s_ref)))]``.

    ``logps`` and ``ref_logps`` float [B]; ``z_ref`` >= 0, in nats, the estimate of KL(model || reference) over
    other answers, without gradient. Bounded by ``weight``. Unproven for unlearning.
    """
    check_vectors(logps, ref_logps)
    check_positive("beta", beta)
    check_weight("z_ref", z_ref)
    check_positive("weight", weight)
    # 1 - sigmoid(-x) is sigmoid(x), without the difference that rounds to zero.
    return weight * torch.sigmoid(beta * (logps - ref_logps - z_ref)).mean()
