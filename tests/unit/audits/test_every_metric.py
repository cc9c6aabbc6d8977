"""Every metric on the cases that matter: perfect memory, none, one token, empty; and the table of them in the docs."""

import inspect
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface.audits as audits
from efface.audits import MetricError

DOCS = Path(__file__).parents[3] / "docs" / "audits.md"
CERTAIN, LOST = [0.0, 0.0, 0.0], [-200.0, -200.0, -200.0]
RIGHT, WRONG = np.array([True] * 3), np.array([False] * 3)
FAR = [[-400.0]]
BYTES = len(zlib.compress(b"aaaa"))


def spread(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """``function`` of a tuple; of the figures of one row, that row's."""
    return lambda x: np.ravel(function(*x))[0]


# (name, call, perfect memory or no change, none or all lost, one token or row, empty)
Case = tuple[str, Callable[[Any], Any], tuple[Any, float], tuple[Any, float], tuple[Any, float], Any]
CASES: list[Case] = [
    ("answer_probability", audits.answer_probability, (CERTAIN, 1), (LOST, 0), ([math.log(0.25)], 0.25), []),
    ("exact_memorization", audits.exact_memorization, (RIGHT, 1), (WRONG, 0), (RIGHT[:1], 1), RIGHT[:0]),
    ("extraction_strength", audits.extraction_strength, (RIGHT, 1), (WRONG, 0), (WRONG[:1], 0), RIGHT[:0]),
    (
        "rouge_l_recall",
        spread(audits.rouge_l_recall),
        (("a b", "a b"), 1),
        (("a b", ""), 0),
        (("a", "a c"), 1),
        ("", "a"),
    ),
    (
        "rouge_l_f1",
        spread(audits.rouge_l_f1),
        (("a b", "a b"), 1),
        (("a b", ""), 0),
        (("a", "a c"), 2 / 3),
        ("", "a"),
    ),
    (
        "knowledge_memorization",
        spread(audits.knowledge_memorization),
        ((["a b"], ["a b"]), 1),
        ((["a b"], [""]), 0),
        ((["a"], ["a c"]), 2 / 3),
        ([], []),
    ),
    (
        "verbatim_memorization",
        spread(audits.verbatim_memorization),
        ((["a b"], ["a b"]), 1),
        ((["a b"], [""]), 0),
        ((["a"], ["a c"]), 2 / 3),
        ([], []),
    ),
    (
        "mentions",
        spread(audits.mentions),
        ((["hamlet"], "it is Hamlet"), 1),
        ((["hamlet"], ""), 0),
        ((["a"], "a"), 1),
        ([], "a"),
    ),
    (
        "truth_ratios",
        spread(audits.truth_ratios),
        (([0.0], FAR), math.exp(-400)),
        (([-400.0], [[0.0]]), math.exp(400)),
        (([-1.0], [[-1.0]]), 1),
        ([], []),
    ),
    (
        "truth_shares",
        spread(audits.truth_shares),
        (([0.0], FAR), 1),
        (([-400.0], [[0.0]]), 0),
        (([-1.0], [[-1.0]]), 0.5),
        ([], []),
    ),
    ("forget_truth_ratio", audits.forget_truth_ratio, ([1e-9], 0), ([1.0], 1), ([2.0], 0.5), []),
    ("retain_truth_ratio", audits.retain_truth_ratio, ([1e-9], 1), ([5.0], 0), ([0.25], 0.75), []),
    (
        "choice_probabilities",
        spread(audits.choice_probabilities),
        (([0.0], FAR), 1),
        (([-400.0], [[0.0]]), 0),
        (([-1.0], [[-1.0]]), 0.5),
        ([], []),
    ),
    (
        "forget_quality",
        lambda x: audits.forget_quality(*x).statistic,
        (([1.0, 2.0], [1.0, 2.0]), 0),
        (([1.0, 2.0], [3.0, 4.0]), 1),
        (([1.0], [1.0]), 0),
        ([], [1.0]),
    ),
    ("model_utility", audits.model_utility, ([1.0] * 9, 1), ([0.0] * 9, 0), ([0.5] * 9, 0.5), []),
    ("loss_score", audits.loss_score, (CERTAIN, 0), (LOST, 200), ([-2.0], 2), []),
    (
        "zlib_score",
        lambda x: BYTES * audits.zlib_score(x, "aaaa"),
        (CERTAIN, 0),
        (LOST, 200),
        ([-2.0], 2),
        [],
    ),
    ("min_k_score", audits.min_k_score, (CERTAIN, 0), (LOST, 200), ([-2.0], 2), []),
    (
        "min_k_plus_plus_score",
        lambda x: audits.min_k_plus_plus_score(x, [-1.0] * len(x), [1.0] * len(x)),
        (CERTAIN, -1),
        (LOST, 199),
        ([-2.0], 1),
        [],
    ),
    (
        "reference_score",
        lambda x: audits.reference_score(x, [-1.0] * max(1, len(x))),
        (CERTAIN, -1),
        (LOST, 199),
        ([-2.0], 1),
        [],
    ),
    (
        "auc",
        spread(audits.auc),
        (([0.0, 0.1], [5.0, 6.0]), 1),
        (([9.0], [5.0, 6.0]), 0),
        (([1.0], [1.0]), 0.5),
        ([], [1.0]),
    ),
    ("priv_leak", lambda x: audits.priv_leak(x, 0.5), (1.0, -100), (0.5, 0), (0.0, 100), math.nan),
    ("s_mia", lambda x: audits.s_mia(x, 0.5), (1.0, 0), (0.5, 1), (0.0, 0), math.nan),
    (
        "probability_drift",
        lambda x: audits.probability_drift([0.0] * max(1, len(x)), x),
        (CERTAIN, 0),
        (LOST, -1),
        ([math.log(0.5)], -0.5),
        [],
    ),
    (
        "token_kl",
        lambda x: float(audits.token_kl(torch.zeros(1, 2), x)),
        (torch.zeros(1, 2), 0),
        (torch.tensor([[0.0, 400.0]]), 200 - math.log(2)),
        (torch.ones(1, 2), 0),
        torch.zeros(0),
    ),
    ("perplexity", audits.perplexity, (CERTAIN, 1), (LOST, math.exp(200)), ([math.log(0.25)], 4), []),
    (
        "depth_score",
        lambda x: audits.depth_score(x, [1.0] * max(1, len(x))),
        ([0.0, 0.0], 0),
        ([1.0, 1.0], 1),
        ([0.5], 0.5),
        [],
    ),
]
# An empty text has an answer for these: it says nothing, fluently.
TEXTS = {
    "ngram_entropy": (audits.ngram_entropy, ""),
    "repetition": (audits.repetition, ""),
    "is_gibberish": (lambda text: not audits.is_gibberish(text, 1.0), ""),
}
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])


@each
def test_perfect_memory_none_and_one_token(case: Case) -> None:
    _, call, *known, _ = case
    for value, expected in known:
        assert float(call(value)) == pytest.approx(expected, abs=1e-6, rel=1e-5)


@each
def test_empty_is_refused(case: Case) -> None:
    with pytest.raises(MetricError, match="expected"):
        case[1](case[-1])


@pytest.mark.parametrize("name", TEXTS)
def test_an_empty_answer_is_scored(name: str) -> None:
    call, text = TEXTS[name]
    assert float(call(text)) == 0.0


def documented() -> list[str]:
    text = DOCS.read_text(encoding="utf-8")
    metrics = text[text.index("## Metrics\n") : text.index("## Scope\n")]
    return re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE)


def test_the_table_in_the_docs_is_these_metrics_and_all_are_public() -> None:
    assert sorted(documented()) == sorted([*(case[0] for case in CASES), *TEXTS])
    for name in documented():
        function = getattr(audits, name)
        assert name in audits.__all__
        assert inspect.getdoc(function), name


@pytest.mark.parametrize("name", [case[0] for case in CASES if case[0] not in ("mentions", "perplexity")])
def test_papers_of_the_table_stand_in_the_docstrings(name: str) -> None:
    """Every arXiv id of a row is named where the figure is defined, in its docstring or its module's."""
    (line,) = (
        row for row in DOCS.read_text(encoding="utf-8").splitlines() if row.startswith(f"| `{name}` |")
    )
    papers = re.findall(r"\d{4}\.\d{5}", line)
    function = getattr(audits, name)
    text = (inspect.getdoc(function) or "") + (inspect.getdoc(inspect.getmodule(function)) or "")
    assert papers
    assert all(paper in text for paper in papers), papers
