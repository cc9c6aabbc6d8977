"""Laws of the metrics and of what an audit writes."""

import json
import string

import numpy as np
import pytest
from audit_kit import evaluation, known, report, row
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from efface.audits.aggregate import aggregate
from efface.audits.markup import element, escape
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
from efface.audits.report import render_html

LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=40)
MATCHES = st.lists(st.booleans(), min_size=1, max_size=40)
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=20)
ASCII = st.text(string.ascii_letters + string.digits + " .,_-'\n", max_size=60)


@given(LOGPROBS)
def test_probability_and_perplexity_are_bounded_and_inverse(logprobs) -> None:
    probability = answer_probability(logprobs)
    assert 0.0 < probability <= 1.0 <= perplexity(logprobs)
    assert probability * perplexity(logprobs) == pytest.approx(1.0)


@given(st.floats(-50, 0), st.integers(1, 60), st.integers(1, 60))
def test_probability_does_not_depend_on_length(logprob, m, n) -> None:
    assert answer_probability([logprob] * m) == pytest.approx(answer_probability([logprob] * n))


@given(LOGPROBS, st.data())
def test_probability_rises_with_every_token(logprobs, data) -> None:
    i = data.draw(st.integers(0, len(logprobs) - 1))
    raised = [*logprobs[:i], logprobs[i] / 2, *logprobs[i + 1 :]]
    assert answer_probability(raised) >= answer_probability(logprobs)


@given(MATCHES, st.data())
def test_memorization_is_monotone_and_bounded(matches, data) -> None:
    i = data.draw(st.integers(0, len(matches) - 1))
    better = np.array([*matches[:i], True, *matches[i + 1 :]])
    for metric in (extraction_strength, exact_memorization):
        assert 0.0 <= metric(np.array(matches)) <= metric(better) <= 1.0
    assert extraction_strength(better) <= exact_memorization(better)


@given(MATCHES)
def test_extraction_strength_is_open_unlearnings_but_for_a_wrong_last_token(matches) -> None:
    total = len(matches)
    k = next((k for k in range(total) if all(matches[k:])), total - 1)  # their loop ends at the last index
    expected = 1 - k / total if matches[-1] else 0.0
    assert extraction_strength(np.array(matches)) == pytest.approx(expected)


@given(ASCII.filter(lambda text: any(c.isalnum() for c in text)), ASCII)
def test_rouge_is_googles_on_ascii(reference, candidate) -> None:
    oracle = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    assert rouge_l_recall(reference, candidate) == oracle.score(reference, candidate)["rougeL"].recall


@given(st.text(max_size=80))
def test_text_figures_are_bounded(text) -> None:
    assert 0.0 <= ngram_entropy(text) <= np.log2(max(2, len(text)))
    assert 0.0 <= repetition(text) < 1.0


@given(st.lists(st.integers(0, 3), max_size=30))
def test_entropy_and_repetition_do_not_see_names_of_tokens(tokens) -> None:
    renamed = [f"token {t}" for t in tokens]
    assert ngram_entropy(tokens) == ngram_entropy(renamed)
    assert repetition(tokens) == repetition(renamed)


@given(
    st.text(string.ascii_letters, min_size=1, max_size=12),
    st.text(" .,;:!?\n", min_size=1),
    st.text(max_size=20),
)
def test_a_keyword_between_marks_is_mentioned_in_any_case(keyword, gap, rest) -> None:
    assert mentions([keyword.lower()], gap + keyword.upper() + gap + rest)
    assert not mentions([keyword], f"x{keyword}x")


@given(st.floats(-1e6, 1e6), st.integers(1, 30), st.integers(0, 2**32))
def test_bootstrap_of_constant_data_is_the_constant(value, size, seed) -> None:
    low, high = bootstrap_ci([value] * size, n=50, seed=seed)
    assert low == pytest.approx(value)
    assert high == pytest.approx(value)


@given(SHARES, st.integers(0, 2**32))
def test_bootstrap_is_deterministic_ordered_and_within_the_data(values, seed) -> None:
    low, high = bootstrap_ci(values, n=50, seed=seed)
    assert (low, high) == bootstrap_ci(values, n=50, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@given(st.permutations(known()))
@settings(max_examples=20)
def test_aggregates_do_not_depend_on_the_order_of_rows(rows) -> None:
    def means(items):
        return [(a.request, a.group, a.n, a.probability, a.mention_rate, a.perplexity) for a in items]

    assert means(aggregate(evaluation("e", *rows))) == means(aggregate(evaluation("e", *known())))


# A fixed mark around arbitrary text: single letters would be on the page anyway.
SECRETS = st.text(max_size=30).map(lambda text: f"zq7{text}7qz")


@given(SECRETS, SECRETS, SECRETS)
@settings(max_examples=25, deadline=None)
def test_masked_output_holds_no_text_of_any_row(prompt, reference, answer) -> None:
    texts = {"prompt": prompt, "reference": reference, "answer": answer}
    masked = tuple(
        evaluation(name, *(row(r.id, r.group, r.request, **texts) for r in known()))
        for name in ("base", "+ q1")
    )
    document = report(evaluations=masked)
    written = json.dumps(document.to_json(), allow_nan=False, ensure_ascii=False) + render_html(document)
    assert "zq7" not in written
    assert "7qz" not in written
    assert "zq7" not in repr(document)


@given(st.text())
def test_escaped_text_is_inert_and_can_be_written(text) -> None:
    shown = escape(text)
    assert not set("<>\"'") & set(shown)
    shown.encode("utf-8")
    assert element("p", text, title=text).html.count("<") == 2
