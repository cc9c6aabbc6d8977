"""Membership inference: does an attacker still see that the forget rows were trained on?

Scores of one answer (arrays in, a float out) and their comparison over two sets of rows. All scores are signed
as a loss, as in OpenUnlearning (arXiv 2506.12618): higher means *less* like a training row. Forget rows are
compared with *holdout* rows: the same kind of text, never trained on. Log-probabilities are natural, one per
answer token, shape (T,), T >= 1. Bad input raises `MetricError`, a model that is not there `MissingReference`.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from .errors import MetricError, MissingReference
from .metrics import FloatArray, answer_logprobs, finite

# The share of the least likely tokens that OpenUnlearning's TOFU configuration looks at.
TOFU_K = 0.4
# As in the code of Min-K%++ as OpenUnlearning has it: the variance is clamped before its root is taken.
_MIN_VARIANCE = 1e-6


def loss_score(logprobs: npt.ArrayLike) -> float:
    """LOSS: mean negative log-probability of the answer in nats, >= 0.

    Yeom et al., Privacy Risk in Machine Learning (arXiv 1709.01604).
    """
    return max(0.0, -float(answer_logprobs(logprobs).mean()))


def zlib_score(logprobs: npt.ArrayLike, text: str) -> float:
    """Loss over the bytes of ``text`` (the answer, UTF-8) that zlib leaves, >= 0: loss against plain redundancy.

    Carlini et al., Extracting Training Data (arXiv 2012.07805), section 5; zlib at its default level. Their
    code divides the log-perplexity, as here. Raises `MetricError` for an empty text.
    """
    if not text:
        raise MetricError("zlib_score: expected the answer's text, got an empty one; drop the row")
    return loss_score(logprobs) / len(zlib.compress(text.encode("utf-8", "surrogatepass")))


def min_k_score(logprobs: npt.ArrayLike, k: float = TOFU_K) -> float:
    """Min-K%: mean negative log-probability of the ``k`` (0 < k <= 1) least likely tokens, at least one.

    Shi et al. (arXiv 2310.16789), equation 1. The number of tokens is max(1, floor(k T)).
    """
    return -_lowest_mean(answer_logprobs(logprobs), k)


def min_k_plus_plus_score(
    logprobs: npt.ArrayLike, means: npt.ArrayLike, variances: npt.ArrayLike, k: float = TOFU_K
) -> float:
    """Min-K%++: Min-K of (log p_t - mu_t) / sigma_t, negated; any sign.

    Zhang et al. (arXiv 2404.02936), equation 3. ``means``, ``variances``, shape (T,): mu_t = E[log p] and
    sigma_t^2 = Var[log p] of a token drawn from the model's own next-token distribution at t (`Scored` has
    them). sigma_t^2 is clamped to at least 1e-6, as OpenUnlearning's code does.
    """
    values = answer_logprobs(logprobs)
    mu, var = finite(means, "min_k_plus_plus_score"), finite(variances, "min_k_plus_plus_score")
    if mu.shape != values.shape or var.shape != values.shape:
        raise MetricError(
            f"min_k_plus_plus_score: expected a mean and a variance for each of {values.size} tokens, got "
            f"{mu.size} and {var.size}"
        )
    return -_lowest_mean((values - mu) / np.sqrt(np.maximum(var, _MIN_VARIANCE)), k)


def reference_score(logprobs: npt.ArrayLike, reference: npt.ArrayLike | None) -> float:
    """Loss less the loss under a reference model, in nats: how much better this model knows the answer, negated.

    Carlini et al. (arXiv 2012.07805); ``reference``: log-probabilities of the same answer tokens, shape (T,),
    under a model that never saw the row (OpenUnlearning takes the retain-only model).

    Raises `MissingReference` without one, `MetricError` where its tokens are others (another tokenizer).
    """
    if reference is None or np.size(reference) == 0:
        raise MissingReference(
            "reference_score: expected the answer's log-probabilities under a reference model, got none. Take a "
            "model that never saw the rows (fine-tune the base on the retain rows alone, or the base itself where "
            "the rows were fine-tuned in) and score the same rows with it; loss_score, zlib_score, min_k_score and "
            "min_k_plus_plus_score need no reference"
        )
    ours, theirs = answer_logprobs(logprobs), answer_logprobs(reference)
    if ours.shape != theirs.shape:
        raise MetricError(
            f"reference_score: expected the same answer tokens under both models, got {ours.size} and "
            f"{theirs.size}; a reference needs the tokenizer of the model that is audited"
        )
    return float(theirs.mean() - ours.mean())


def auc(forget: npt.ArrayLike, holdout: npt.ArrayLike) -> float:
    """P(score of a forget row < score of a holdout row), a tie counted as half; in [0, 1].

    1: forget rows look like training rows (not forgotten); 0.5: an attacker guesses; towards 0 they look *less*
    like training rows than texts that were never seen, which gives them away too (over-unlearning). It is the
    area under the ROC curve with forget rows as the class looked for, the Mann-Whitney U over N_f N_h.
    ``forget``, ``holdout``: scores of this module, shapes (N_f,) and (N_h,).
    """
    return _auc(*_two_sets(forget, holdout, "auc"))


def auc_ci(
    forget: npt.ArrayLike, holdout: npt.ArrayLike, *, n: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of `auc`, both sets resampled on their own.

    It speaks of the choice of rows; with sets that do not overlap it is the point 0 or 1 whatever their size.
    """
    ours, theirs = _two_sets(forget, holdout, "auc_ci")
    if n < 1 or not 0.0 < level < 1.0:
        raise MetricError(f"auc_ci: expected n >= 1 and 0 < level < 1, got n={n}, level={level}")
    draw = np.random.default_rng(seed)
    values = [_auc(draw.choice(ours, ours.size), draw.choice(theirs, theirs.size)) for _ in range(n)]
    tail = 100.0 * (1.0 - level) / 2.0
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def priv_leak(found: float, reference: float | None) -> float:
    """PrivLeak in percent, ((1 - AUC) - (1 - AUC_retain)) / (1 - AUC_retain) * 100: 0 is the retain-only model.

    MUSE (arXiv 2407.06460), equation in section 3.1, whose AUC counts the other way round (1 - ours). Below 0:
    under-unlearned, down to -100; above 0: over-unlearned, without bound. Both sides leak. ``found``,
    ``reference``: `auc` of the audited and of the retain-only model on the same rows (MUSE uses Min-K 40 %).

    Departure: OpenUnlearning adds 1e-10 to the denominator; a reference of 1, which tells nothing apart, is
    refused here instead. Raises `MissingReference` without a reference.
    """
    if reference is None:
        raise MissingReference(
            "priv_leak: expected the AUC of a retain-only model, got none. Fine-tune the base on the retain rows "
            "alone, score the same forget and holdout rows with it and give their auc; without such a model report "
            "auc itself, whose ideal on exchangeable rows is 0.5"
        )
    ours, theirs = _share(found, "priv_leak"), _share(reference, "priv_leak")
    if theirs == 1.0:
        raise MetricError(
            "priv_leak: expected a reference AUC below 1, got 1: the retain-only model itself tells forget rows "
            "from holdout rows without an error; check that it never saw them, or take a closer holdout set"
        )
    return ((1.0 - ours) - (1.0 - theirs)) / (1.0 - theirs) * 100.0


def s_mia(found: float, reference: float | None) -> float:
    """clip(1 - |AUC - AUC_retain| / AUC_retain, 0, 1): 1 where membership shows as in the retain-only model.

    The normalised attacks of the Unlearning Depth Score (arXiv 2605.24614), "s" in `s_LOSS` and the like: unlike
    `priv_leak` it has two ends and no sign. Raises `MissingReference` without a reference.
    """
    if reference is None:
        raise MissingReference(
            "s_mia: expected the AUC of a retain-only model, got none. Fine-tune the base on the retain rows alone, "
            "score the same forget and holdout rows with it and give their auc; without such a model report auc"
        )
    ours, theirs = _share(found, "s_mia"), _share(reference, "s_mia")
    if theirs == 0.0:
        raise MetricError("s_mia: expected a reference AUC above 0, got 0; take a closer holdout set")
    return max(0.0, 1.0 - abs(ours - theirs) / theirs)


def _lowest_mean(values: FloatArray, k: float) -> float:
    if not 0.0 < k <= 1.0:
        raise MetricError(f"Min-K: expected 0 < k <= 1 (a share of the tokens), got {k}")
    return float(np.sort(values)[: max(1, int(values.size * k))].mean())


def _auc(ours: FloatArray, theirs: FloatArray) -> float:
    ordered = np.sort(theirs)
    at_most = np.searchsorted(ordered, ours, side="right")
    below = np.searchsorted(ordered, ours, side="left")
    above = theirs.size - (at_most + below) / 2.0
    return float(above.mean() / theirs.size)


def _two_sets(forget: npt.ArrayLike, holdout: npt.ArrayLike, name: str) -> tuple[FloatArray, FloatArray]:
    if np.size(holdout) == 0:
        raise MetricError(
            f"{name}: expected scores of holdout rows, got none; give rows of the same kind that no model saw"
        )
    return finite(forget, f"{name} (forget)"), finite(holdout, f"{name} (holdout)")


def _share(value: float, name: str) -> float:
    if not 0.0 <= value <= 1.0:
        raise MetricError(f"{name}: expected an AUC between 0 and 1, got {value}")
    return float(value)
