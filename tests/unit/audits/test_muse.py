"""MUSE's figures, ROUGE-L F1 and the gibberish flag, by hand and against rouge_score."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from efface.audits.errors import MetricError
from efface.audits.gibberish import is_gibberish
from efface.audits.metrics import rouge_l_f1, rouge_l_recall
from efface.audits.muse import knowledge_memorization, verbatim_memorization

ASCII = st.text(string.ascii_letters + string.digits + " .,_-'\n", max_size=60)
WORDS = ASCII.filter(lambda text: any(c.isalnum() for c in text))
BOTH = [knowledge_memorization, verbatim_memorization]


def test_f1_by_hand() -> None:
    assert rouge_l_f1("Romeo and Juliet", "romeo loved juliet") == pytest.approx(2 / 3)
    assert rouge_l_f1("Paris", "Paris, of course: it is Paris.") == pytest.approx(2 / (1 + 6))
    assert rouge_l_f1("Paris", "paris") == 1.0
    assert rouge_l_f1("Paris", "") == 0.0
    with pytest.raises(MetricError, match="rouge_l_f1: expected a reference with at least one word"):
        rouge_l_f1("?!", "Paris")


@given(WORDS, ASCII)
def test_f1_is_googles_on_ascii_and_never_above_recall_and_precision(reference: str, candidate: str) -> None:
    oracle = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(reference, candidate)["rougeL"]
    assert rouge_l_f1(reference, candidate) == oracle.fmeasure
    assert (
        rouge_l_f1(reference, candidate)
        <= max(oracle.precision, rouge_l_recall(reference, candidate)) + 1e-12
    )


@pytest.mark.parametrize("figure", BOTH)
def test_means_by_hand(figure) -> None:
    assert figure(["the old city"], ["the old city"]) == 1.0  # perfect memory
    assert figure(["the old city"], [""]) == figure(["city"], ["tokyo"]) == 0.0  # none, and one word
    assert figure(["a b", "c d"], ["a b", "x d"]) == pytest.approx(0.75)


@given(st.lists(st.tuples(WORDS, ASCII), min_size=1, max_size=5))
def test_means_are_those_of_the_formula(rows: list[tuple[str, str]]) -> None:
    references, answers = zip(*rows, strict=True)
    oracle = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    expected = math.fsum(oracle.score(r, a)["rougeL"].fmeasure for r, a in rows) / len(rows)
    for figure in BOTH:
        assert figure(references, answers) == pytest.approx(expected)


@pytest.mark.parametrize("figure", BOTH)
@pytest.mark.parametrize(
    ("references", "answers"), [([], []), (["a"], []), (["a"], ["a", "b"]), ([], ["a"]), (["..."], ["a"])]
)
def test_rows_that_are_none_are_refused(figure, references: list[str], answers: list[str]) -> None:
    with pytest.raises(MetricError, match="expected"):
        figure(references, answers)


@pytest.mark.parametrize(
    ("text", "perplexity", "expected"),
    [
        ("A quiet author from Kuwait.", 20.0, False),
        ("A quiet author from Kuwait.", 5000.0, True),
        ("", 2.0, True),
        ("1956.", 2.0, True),
        ("a a a a a a a a a a", 2.0, True),
        ("Да", 2.0, False),
    ],
)
def test_gibberish(text: str, perplexity: float, expected: bool) -> None:
    assert is_gibberish(text, perplexity) is expected


def test_gibberish_thresholds_are_the_callers() -> None:
    assert is_gibberish("A quiet author.", 20.0, max_perplexity=10.0)
    assert not is_gibberish("a a a a a a a a a a", 2.0, max_repetition=0.99)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.5, -1.0])
def test_a_perplexity_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(MetricError, match="finite perplexity >= 1"):
        is_gibberish("text", bad)
