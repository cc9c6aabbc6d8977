"""How deep forgetting reaches: one number from the drops that `patching.py` measures layer by layer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import MetricError, MissingReference
from .metrics import FloatArray, bootstrap_ci

THRESHOLD = 0.05
"""Nats per token: a layer whose baseline drops less does not carry the knowledge."""


@dataclass(frozen=True, slots=True)
class Depth:
    """``score`` over the ``n`` rows that have a gap, with a 95 % bootstrap interval over them; ``skipped`` had none.

    ``drops``: mean drop of those rows at each layer in nats per token, the first layer first; ``baseline``: the
    same of the source that does not know the answer.
    """

    score: float
    low: float
    high: float
    n: int
    skipped: int
    drops: tuple[float, ...]
    baseline: tuple[float, ...]


def depth_score(drops: npt.ArrayLike, baseline: npt.ArrayLike, *, threshold: float = THRESHOLD) -> float:
    """Unlearning Depth Score of one row, in [0, 1]: 0 all knowledge still there, 1 as absent as in the baseline.

    Arxiv 2605.24614, section 3.3: over the layers l whose baseline drop b_l exceeds ``threshold``,
    sum_l b_l clip(d_l / b_l, 0, 1) / sum_l b_l. ``drops`` d, ``baseline`` b: nats per token, shape (L,).

    Raises `MetricError` where no layer has a gap: the baseline knows the answer as well as the target does.
    """
    found, gaps = _layers(drops, baseline, threshold)
    known = gaps > threshold
    if not known.any():
        raise MetricError(
            f"depth_score: expected a layer whose baseline drop exceeds {threshold:g} nats, got at most "
            f"{gaps.max():.3g}: nothing of this answer was there to be forgotten; leave the row out"
        )
    return float(np.clip(found[known], 0.0, gaps[known]).sum() / gaps[known].sum())


def unlearning_depth(
    drops: npt.ArrayLike,
    baseline: npt.ArrayLike | None,
    *,
    threshold: float = THRESHOLD,
    n: int = 1000,
    seed: int = 0,
) -> Depth:
    """Mean `depth_score` over rows; ``drops``, ``baseline``: shape (N, L). Rows without a gap are left out, counted.

    Raises `MissingReference` without a baseline, `MetricError` where no row has a gap.
    """
    if baseline is None:
        raise MissingReference(
            "unlearning_depth: expected the drops of a source that does not know the answers, got none. Measure "
            "patched_drops(..., source=load_base(RETAIN_ONLY_MODEL)) or, without such a model, "
            "patched_drops(..., source='withheld')"
        )
    found, gaps = _rows(drops, baseline)
    known = (gaps > threshold).any(axis=1)
    if not known.any():
        raise MetricError(
            f"unlearning_depth: expected at least one row with a baseline drop above {threshold:g} nats, got none of "
            f"{len(gaps)}: the target knows these answers no better than the baseline does"
        )
    pairs = zip(found[known], gaps[known], strict=True)
    scores = [depth_score(row, gap, threshold=threshold) for row, gap in pairs]
    low, high = bootstrap_ci(scores, n=n, seed=seed)
    means = (tuple(map(float, side[known].mean(axis=0))) for side in (found, gaps))
    return Depth(float(np.mean(scores)), low, high, len(scores), int((~known).sum()), *means)


def _layers(drops: npt.ArrayLike, baseline: npt.ArrayLike, threshold: float) -> tuple[FloatArray, FloatArray]:
    if not threshold >= 0.0:
        raise MetricError(f"depth_score: expected a threshold >= 0 nats, got {threshold}")
    found, gaps = _rows(np.asarray(drops)[None], np.asarray(baseline)[None])
    return found[0], gaps[0]


def _rows(drops: npt.ArrayLike, baseline: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    found, gaps = np.asarray(drops, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if found.ndim != 2 or 0 in found.shape or found.shape != gaps.shape:
        raise MetricError(
            f"expected drops of the same rows and layers on both sides, got shapes {found.shape} and {gaps.shape}"
        )
    if not (np.isfinite(found).all() and np.isfinite(gaps).all()):
        raise MetricError("expected finite drops, got NaN or infinite ones")
    return found, gaps
