"""The metrics against values worked out by hand, and against rouge_score itself."""

import math

import numpy as np
import pytest
from rouge_score import rouge_scorer

from efface.audits.errors import MetricError
from efface.audits.metrics import (
    answer_probability,
    bootstrap_ci,
    exact_memorization,
    extraction_strength,
    mentions,
    ngram_entropy,
    perplexity,
    repetition,
    rouge_l_recall,
)


def test_answer_probability_is_the_geometric_mean_of_token_probabilities() -> None:
    assert answer_probability(np.log([0.5, 0.125])) == pytest.approx(0.25)
    assert answer_probability([0.0, 0.0]) == 1.0
    assert answer_probability([-1e5]) == 0.0


def test_perplexity_is_one_over_it() -> None:
    assert perplexity(np.log([0.5, 0.125])) == pytest.approx(4.0)
    assert perplexity(np.float32([0.0])) == 1.0


def test_rounding_above_zero_is_taken_as_certainty() -> None:
    assert answer_probability([1e-4]) == 1.0
    assert perplexity([1e-4]) == 1.0


@pytest.mark.parametrize("metric", [answer_probability, perplexity])
@pytest.mark.parametrize("values", [[], [[-1.0]], [math.nan], [-math.inf], [2.5]])
def test_log_probabilities_that_are_none_are_refused(metric, values) -> None:
    with pytest.raises(MetricError, match="expected"):
        metric(values)


def test_perplexity_that_no_float_holds_is_refused() -> None:
    with pytest.raises(MetricError, match="broken weights"):
        perplexity([-1e5])


@pytest.mark.parametrize(
    ("matches", "strength"),
    [
        ("1111", 1.0),
        ("0000", 0.0),
        ("0111", 0.75),
        ("1101", 0.25),
        ("1110", 0.0),  # OpenUnlearning gives 1/4: the departure in the docstring
        ("1", 1.0),
        ("0", 0.0),
    ],
)
def test_extraction_strength_by_hand(matches: str, strength: float) -> None:
    assert extraction_strength(np.array([c == "1" for c in matches])) == strength


def test_exact_memorization_by_hand() -> None:
    assert exact_memorization(np.array([True, False, True, True])) == 0.75


@pytest.mark.parametrize("metric", [extraction_strength, exact_memorization])
@pytest.mark.parametrize("values", [np.array([], dtype=bool), np.array([[True]]), np.array([1, 0])])
def test_matches_that_are_none_are_refused(metric, values) -> None:
    with pytest.raises(MetricError, match="expected"):
        metric(values)


def test_rouge_by_hand() -> None:
    assert rouge_l_recall("Romeo and Juliet", "romeo loved juliet") == pytest.approx(2 / 3)
    assert rouge_l_recall("Paris", "Paris, of course: it is Paris.") == 1.0
    assert rouge_l_recall("Paris", "") == 0.0


def test_rouge_reads_other_scripts_where_the_package_gives_zero() -> None:
    assert rouge_l_recall("Мастер и Маргарита", "Маргарита и Мастер") == pytest.approx(1 / 3)
    assert rouge_l_recall("cafe\u0301", "caf\u00e9") == 1.0
    original = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    assert original.score("Мастер", "Мастер")["rougeL"].recall == 0.0


@pytest.mark.parametrize("reference", ["", "   ", "?!"])
def test_a_reference_without_words_is_refused(reference: str) -> None:
    with pytest.raises(MetricError, match="at least one word"):
        rouge_l_recall(reference, "anything")


def test_entropy_by_hand() -> None:
    # a b c d: 3 different 2-grams, 2 different 3-grams
    expected = (2 / 3 * math.log2(3) + 4 / 3 * math.log2(2)) / 2
    assert ngram_entropy("a b c d") == pytest.approx(expected)
    assert ngram_entropy([1, 2, 3, 4]) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "word", "the the the the the"])
def test_entropy_of_nothing_and_of_one_word_over_and_over_is_zero(text: str) -> None:
    assert ngram_entropy(text) == 0.0


def test_entropy_counts_punctuation() -> None:
    assert ngram_entropy("! ? . ,") == ngram_entropy("a b c d")


def test_repetition_by_hand() -> None:
    assert repetition("a a a a") == 0.5  # (a a a) twice
    assert repetition("a b c d e") == 0.0
    assert repetition("a b") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "Shakespeare",
        "it was SHAKESPEARE!",
        "Shakespeare's plays",
        "Shakespeare\u2019s plays",
        "_Shakespeare_ and **others**",
        "Shakespeare-like",
        "\uff33hakespeare",  # full-width S
        "Shake\u00adspeare",  # soft hyphen
        "Shake\u200bspeare",  # zero-width space
    ],
)
def test_mentions(text: str) -> None:
    assert mentions(["rowling", "shakespeare"], text)


@pytest.mark.parametrize("text", ["", "Shakespearean verse", "Shakespeares", "Shake speare", "a play"])
def test_mentions_whole_words_only(text: str) -> None:
    assert not mentions(["shakespeare"], text)


def test_mentions_keywords_of_several_words_and_marks() -> None:
    assert mentions(["J.K. Rowling"], "written by J.K.\n  Rowling.")
    assert mentions(["O'Brien"], "Mr O\u2019Brien")
    assert mentions(["O\u00b4Brien"], "Mr O'Brien")
    assert mentions(["Straße"], "STRASSE")
    assert not mentions(["C.S"], "CxS")


def test_mentions_in_scripts_without_word_spaces() -> None:
    assert mentions(["紫式部"], "源氏物語は紫式部が書いた")
    assert not mentions(["紫式部"], "清少納言")


@pytest.mark.parametrize("keywords", [[], [""], ["\u200b "]])
def test_mentions_without_keywords_is_refused(keywords) -> None:
    with pytest.raises(MetricError, match="expected"):
        mentions(keywords, "text")


def test_bootstrap_by_hand() -> None:
    assert bootstrap_ci([0.0, 1.0], n=2000) == (0.0, 1.0)
    low, high = bootstrap_ci(np.linspace(0, 1, 200), seed=3)
    # normal approximation: 0.5 ± 1.96 · 0.290 / √200
    assert low == pytest.approx(0.46, abs=0.01)
    assert high == pytest.approx(0.54, abs=0.01)


def test_bootstrap_takes_another_statistic() -> None:
    low, high = bootstrap_ci([1.0, 5.0, 9.0], statistic=lambda samples: np.median(samples, axis=-1))
    assert {low, high} <= {1.0, 5.0, 9.0}


@pytest.mark.parametrize("bad", [{"values": []}, {"values": [math.nan]}, {"n": 0}, {"level": 1.0}])
def test_bootstrap_refuses(bad) -> None:
    with pytest.raises(MetricError, match="expected"):
        bootstrap_ci(**({"values": [1.0]} | bad))
