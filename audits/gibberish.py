"""Is what the model says still language? A flag per answer, from figures that need no classifier."""

from __future__ import annotations

import math

from .errors import MetricError
from .metrics import repetition

MAX_PERPLEXITY = 500.0
"""Under the unadapted base: an answer that odd to it is no language."""
MAX_REPETITION = 0.5
"""An answer of which more than half the 3-grams have been said before goes in circles."""


def is_gibberish(
    text: str,
    perplexity: float,
    *,
    max_perplexity: float = MAX_PERPLEXITY,
    max_repetition: float = MAX_REPETITION,
) -> bool:
    """Whether ``text`` is no language: without a letter, going in circles, or very odd to the unadapted base.

    ``perplexity``: `metrics.perplexity` of the answer under the base, >= 1. An empty answer is gibberish.

    Departure: OpenUnlearning (arXiv 2506.12618) and AltPO (arXiv 2409.13474) ask a trained classifier, which
    speaks English only and is one more model to trust; the thresholds here are ours
    (`benchmarks/results/tofu-cpu.md` has the share that they flag of each model's answers).
    """
    if not (math.isfinite(perplexity) and perplexity >= 1.0):
        raise MetricError(f"is_gibberish: expected a finite perplexity >= 1, got {perplexity}")
    silent = not any(char.isalpha() for char in text)
    return silent or repetition(text) > max_repetition or perplexity > max_perplexity
