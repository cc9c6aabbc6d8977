"""One-sided confidence bounds on what a gate looks at, over the choice of rows.

A gate without them asks how the rows at hand came out; with them, how rows like these would: with ten of them a rate of
0 is compatible with one of 26 % (95 %). Rates: Clopper and Pearson (Biometrika 26, 1934), exact. Means of figures in
[0, 1]: Wilson's score bound (JASA 22, 1927) with the variance of a rate of that mean, which no figure in [0, 1]
exceeds, so it errs on the side of caution. Ratios of two means over the same rows: percentile bootstrap of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm

from .errors import MetricError
from .metrics import FloatArray, bootstrap_ci

Side = Literal["upper", "lower"]
_HUGE = 2.0**1000  # stands for infinity, between which and which nothing can be interpolated
MIN_PAIRS = 8
"""Rows below which a bootstrap of a ratio says next to nothing: no bound is given then."""


def rate_bound(hits: int, n: int, confidence: float, side: Side) -> float:
    """Clopper-Pearson: the rate at which so few (many) as ``hits`` of ``n`` have probability 1 - confidence."""
    _require(confidence)
    if not 0 <= hits <= n or n < 1:
        raise MetricError(f"rate_bound: expected 0 <= hits <= n and n >= 1, got {hits} of {n}")
    if side == "upper":
        return 1.0 if hits == n else float(beta.ppf(confidence, hits + 1, n - hits))
    return 0.0 if hits == 0 else float(beta.ppf(1.0 - confidence, hits, n - hits + 1))


def mean_bound(values: npt.ArrayLike, confidence: float, side: Side) -> float:
    """Wilson's bound on the mean of figures in [0, 1], shape (N,)."""
    _require(confidence)
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or found.size == 0 or not ((found >= 0) & (found <= 1)).all():
        raise MetricError(f"mean_bound: expected figures in [0, 1] of shape (N,), got shape {found.shape}")
    return share_bound(float(found.mean()), found.size, confidence, side)


def share_bound(mean: float, n: int, confidence: float, side: Side) -> float:
    """The same from the ``mean`` of ``n`` figures alone, which is all that it depends on."""
    _require(confidence)
    if not 0.0 <= mean <= 1.0 or n < 1:
        raise MetricError(f"share_bound: expected a mean in [0, 1] of n >= 1 figures, got {mean} of {n}")
    z = float(norm.ppf(confidence))
    edge = float(_wilson(mean, np.asarray(n), z if side == "upper" else -z))
    # Rounding must not put a bound on the wrong side of its figure.
    return min(1.0, max(mean, edge)) if side == "upper" else max(0.0, min(mean, edge))


def _wilson(p: float, n: npt.NDArray[np.int64], z: float) -> FloatArray:
    """Wilson's score bound of a share ``p`` of each of ``n`` rows: upper for z > 0, lower for z < 0."""
    wide = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return np.asarray((p + z * z / (2 * n) + wide) / (1 + z * z / n))


def rows_to_show(
    share: float, threshold: float, confidence: float, *, exact: bool, most: int = 5000
) -> int | None:
    """The fewest rows with this ``share`` (rounded up to whole rows where ``exact``, of a rate by Clopper and Pearson;
    else a mean by Wilson) whose upper bound is at most ``threshold``; None where ``most`` rows are too few.
    """
    _require(confidence)
    n = np.arange(1, most + 1)
    if exact:
        hits = np.minimum(n, np.ceil(share * n - 1e-9))
        edge = np.where(hits == n, 1.0, beta.ppf(confidence, hits + 1, np.maximum(n - hits, 1)))
    else:
        edge = _wilson(share, n, float(norm.ppf(confidence)))
    enough = np.flatnonzero(edge <= threshold)
    return int(n[enough[0]]) if enough.size else None


def ratio_bound(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    confidence: float,
    side: Side,
    *,
    seed: int = 0,
    ratio: Callable[[FloatArray, FloatArray], FloatArray] | None = None,
) -> float | None:
    """Bootstrap bound on mean(after) / mean(before) over rows measured under both, shapes (N,).

    None for fewer than `MIN_PAIRS` rows. ``ratio`` takes resamples of both, shape (B, N), to their ratios (B,).
    A resample whose mean before is 0 counts as the worst ratio there is.
    """
    _require(confidence)
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if old.shape != new.shape or old.ndim != 1:
        raise MetricError(
            f"ratio_bound: expected the same rows twice, got shapes {old.shape} and {new.shape}"
        )
    if old.size < MIN_PAIRS:
        return None
    worst = _HUGE if side == "upper" else 0.0
    of = ratio or _of_means

    def statistic(picked: FloatArray) -> FloatArray:
        rows = picked.astype(np.int64)
        found = of(old[rows], new[rows])
        return np.where(np.isfinite(found), found, worst)

    # A two-sided interval of this level has the one-sided bound as its end.
    ends = bootstrap_ci(np.arange(old.size), statistic, seed=seed, level=2 * confidence - 1)
    edge = float(ends[1] if side == "upper" else ends[0])
    return edge if edge < _HUGE / 2**20 else math.inf


def _of_means(old: FloatArray, new: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return new.mean(axis=1) / old.mean(axis=1)


def _require(confidence: float) -> None:
    if not 0.5 < confidence < 1.0:
        raise MetricError(f"expected a confidence between 0.5 and 1, got {confidence}")
