"""MUSE's two memorization figures (arXiv 2407.06460) over a set of answers: what is known, what is recited."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import MetricError
from .metrics import rouge_l_f1


def knowledge_memorization(references: Sequence[str], answers: Sequence[str]) -> float:
    """KnowMem: mean ROUGE-L F1 of generated answers to questions, in [0, 1]; low is wanted on forget rows.

    MUSE (arXiv 2407.06460), equation 2: 1/|D| sum ROUGE(f(q), a); F1 as OpenUnlearning's configuration has it.
    MUSE asks with few-shot examples and at most 32 new tokens; how the answers came about is the caller's.
    Raises `MetricError` for no rows, sides of unequal length and references without a word.
    """
    return _mean_f1(references, answers, "knowledge_memorization")


def verbatim_memorization(continuations: Sequence[str], generated: Sequence[str]) -> float:
    """VerbMem: mean ROUGE-L F1 of greedy continuations of a document's opening, in [0, 1]; low is wanted.

    MUSE (arXiv 2407.06460), equation 1: 1/|D| sum ROUGE(f(x[:l]), x[l+1:]). `question_ids` gives a document's
    first half as opening; MUSE takes a fixed number of tokens and at most 128 new ones.
    Raises `MetricError` for no rows, sides of unequal length and continuations without a word.
    """
    return _mean_f1(continuations, generated, "verbatim_memorization")


def _mean_f1(references: Sequence[str], answers: Sequence[str], name: str) -> float:
    if not references or len(references) != len(answers):
        raise MetricError(
            f"{name}: expected one answer for each of at least one reference, got {len(answers)} for {len(references)}"
        )
    return sum(map(rouge_l_f1, references, answers)) / len(references)
