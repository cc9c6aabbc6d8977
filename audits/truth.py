"""TOFU's figures (arXiv 2401.06121) over the rows of a set: truth ratio, forget quality, model utility.

Pure functions of arrays. A *score* is the length-normalised log-probability of a whole answer,
(1/|a|) log P(a|q): the mean of its answer tokens' log-probabilities, its end-of-sequence token included if the
model was trained with it. Input that cannot be scored raises `MetricError`; no figure is ever None or NaN.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import ks_2samp

from .errors import MetricError, MissingReference
from .metrics import FloatArray, bootstrap_ci

# exp() overflows a float64 beyond 709; a model that has collapsed can get there.
_MAX_EXPONENT = 700.0
_NINE = "probability, ROUGE-L recall and truth ratio of retain rows, real authors and world facts"


@dataclass(frozen=True, slots=True)
class ForgetQuality:
    """How far two models' truth ratios lie apart: two-sample Kolmogorov-Smirnov.

    ``statistic``: the largest gap between the two distribution functions, in [0, 1], with its bootstrap
    interval (``low``, ``high``); ``p_value`` is what TOFU calls forget quality (high = not told apart).
    A p-value falls with ``n``: compare only those of the same number of rows.
    """

    statistic: float
    p_value: float
    low: float
    high: float
    n: int


def truth_ratios(
    correct: npt.ArrayLike, wrong: npt.ArrayLike, *, average: Literal["geometric", "arithmetic"] = "geometric"
) -> FloatArray:
    """Probability of the wrong answers over that of the right one, of each row, shape (N,), > 0: below 1 where the
    truth is likelier.

    ``correct``: scores of the *paraphrased* answer, shape (N,) (of the answer itself where a set has no
    paraphrase); ``wrong``: scores of K perturbed answers, shape (N, K). ``average`` of the wrong ones:
    "geometric", exp(mean_k wrong_k - correct), as TOFU's `aggregate_eval_stat.py` and OpenUnlearning (arXiv
    2506.12618) have it; "arithmetic", mean_k exp(wrong_k) / exp(correct), the paper's equation 1 and TOFU's
    `utils.py`. The aggregates differ by up to 0.13 on TOFU's published logs: compare
    figures of one kind only.

    Departure: OpenUnlearning adds 1e-10 to the denominator; here the exponent is held within +-700 instead.
    """
    if average not in ("geometric", "arithmetic"):
        raise MetricError(f"truth_ratios: expected average 'geometric' or 'arithmetic', got {average!r}")
    right, false = _scores(correct, wrong, "truth_ratios")
    typical = _log_mean(false) if average == "arithmetic" else false.mean(axis=1)
    return np.exp(np.clip(typical - right, -_MAX_EXPONENT, _MAX_EXPONENT))


def truth_shares(correct: npt.ArrayLike, wrong: npt.ArrayLike) -> FloatArray:
    """P(a) / (P(a) + P(wrong)) of each row, shape (N,), in [0, 1]: how far the model still prefers the truth.

    OpenUnlearning's truth ratio (arXiv 2506.12618, `prob_mean`), which it found the most faithful of its
    figures; its aggregate is the plain mean. P(wrong) is the geometric mean of the K perturbed answers, all
    probabilities length-normalised. ``correct``: scores, shape (N,); ``wrong``: scores, shape (N, K).

    Departure: 1e-10 in its denominator is left out here, see `truth_ratios`.
    """
    return 1.0 / (1.0 + truth_ratios(correct, wrong))


def forget_truth_ratio(ratios: npt.ArrayLike) -> float:
    """mean_i min(r_i, 1/r_i) in [0, 1]: 1 where truth and falsehood are equally likely (wanted on forget rows)."""
    values = _ratios(ratios, "forget_truth_ratio")
    return float(np.minimum(values, 1.0 / values).mean())


def retain_truth_ratio(ratios: npt.ArrayLike) -> float:
    """mean_i max(0, 1 - r_i) in [0, 1]: 1 where only the truth is likely (wanted on what is to be kept)."""
    return float(np.maximum(0.0, 1.0 - _ratios(ratios, "retain_truth_ratio")).mean())


def choice_probabilities(correct: npt.ArrayLike, wrong: npt.ArrayLike) -> FloatArray:
    """P(a) / (P(a) + sum_k P(wrong_k)) of each row, shape (N,), of length-normalised probabilities.

    TOFU's probability for real authors and world facts, whose answers nobody was trained to give word for
    word. ``correct``: scores, shape (N,); ``wrong``: scores, shape (N, K).
    """
    right, false = _scores(correct, wrong, "choice_probabilities")
    # Relative to the correct answer: no sum of underflown probabilities is ever divided by.
    gaps = np.clip(false - right[:, None], -_MAX_EXPONENT, _MAX_EXPONENT)
    return 1.0 / (1.0 + np.exp(gaps).sum(axis=1))


def forget_quality(
    ratios: npt.ArrayLike,
    reference: npt.ArrayLike | None,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> ForgetQuality:
    """Compare truth ratios of the forget rows, shape (N,), with a retain-only model's of the same rows in order.

    The test is TOFU's (`scipy.stats.ks_2samp`, two-sided), which takes the two samples for independent. The
    interval is a percentile bootstrap over rows (``n`` resamples of pairs under ``seed``): it speaks of the
    choice of rows, not of training seeds, and leans upwards where the two models hardly differ.

    Raises `MissingReference` without a reference: this figure does not exist then.
    """
    if reference is None or np.size(reference) == 0:
        raise MissingReference(
            "forget_quality: expected the truth ratios of a retain-only model, got none. Fine-tune the base on "
            "the retain rows alone (`benchmarks/tofu.py prepare` does), score the same forget rows with it and "
            "give their truth_ratios; without such a model report extraction strength and probability instead"
        )
    ours, theirs = _ratios(ratios, "forget_quality"), _ratios(reference, "forget_quality")
    if ours.shape != theirs.shape:
        raise MetricError(
            f"forget_quality: expected the same rows under both models, got {ours.size} and {theirs.size}"
        )
    with warnings.catch_warnings():
        # Where rounding makes the exact p a hair more than 1, scipy says so and takes the asymptotic one, 1 too.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation unsuccessful", RuntimeWarning)
        found: Any = ks_2samp(ours, theirs)
    gaps = _gaps(ours, theirs)

    def statistic(rows: FloatArray) -> FloatArray:
        weights = np.stack([np.bincount(picked, minlength=ours.size) for picked in rows.astype(np.int64)])
        return np.abs(weights @ gaps).max(axis=1) / ours.size

    low, high = bootstrap_ci(np.arange(ours.size), statistic, n=n, seed=seed, level=level)
    return ForgetQuality(float(found.statistic), float(found.pvalue), low, high, ours.size)


def model_utility(values: npt.ArrayLike) -> float:
    """Harmonic mean of TOFU's nine figures, each in [0, 1]; 0 as soon as one of them is 0.

    The nine: probability, ROUGE-L recall and truth ratio of retain rows, of real authors and of world facts.
    """
    nine = np.asarray(values, dtype=np.float64)
    if nine.shape != (9,):
        raise MetricError(f"model_utility: expected nine figures ({_NINE}), got shape {nine.shape}")
    if not ((nine >= 0.0) & (nine <= 1.0)).all():
        raise MetricError(f"model_utility: expected figures between 0 and 1, got {nine.tolist()}")
    return float(9.0 / (1.0 / nine).sum()) if nine.all() else 0.0


def _log_mean(scores: FloatArray) -> FloatArray:
    """log mean_k exp(scores) of each row, without underflow."""
    top = scores.max(axis=1)
    return np.log(np.exp(scores - top[:, None]).mean(axis=1)) + top


def _gaps(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Row i's share of N * (F_ours - F_theirs) at each of the 2N observed values, shape (N, 2N)."""
    points = np.concatenate([ours, theirs])
    return (ours[:, None] <= points).astype(np.float64) - (theirs[:, None] <= points)


def _ratios(values: npt.ArrayLike, name: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise MetricError(f"{name}: expected truth ratios of shape (N,), got shape {array.shape}")
    if not (np.isfinite(array) & (array > 0.0)).all():
        raise MetricError(f"{name}: expected finite truth ratios above 0; pass what `truth_ratios` gives")
    return array


def _scores(correct: npt.ArrayLike, wrong: npt.ArrayLike, name: str) -> tuple[FloatArray, FloatArray]:
    right, false = np.asarray(correct, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if right.size and not false.size:
        raise MetricError(
            f"{name}: expected the scores of at least one wrong answer per row, got none; give the rows `perturbed` "
            "answers, or leave this figure out of the suite"
        )
    if right.ndim != 1 or false.ndim != 2 or right.size == 0:
        raise MetricError(
            f"{name}: expected scores of shapes (N,) and (N, K), got {right.shape} and {false.shape}"
        )
    if len(right) != len(false):
        raise MetricError(f"{name}: expected as many rows on both sides, got {len(right)} and {len(false)}")
    if not (np.isfinite(right).all() and np.isfinite(false).all()):
        raise MetricError(f"{name}: expected finite scores, got NaN or infinite ones")
    if max(right.max(), false.max()) > 1e-3:
        raise MetricError(f"{name}: expected log-probabilities <= 0; pass mean log_softmax values")
    return right, false
