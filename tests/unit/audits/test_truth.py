"""TOFU's figures against values worked out by hand, the formulas of its code, and scipy."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import hmean, ks_2samp

from efface.audits.errors import MetricError, MissingReference
from efface.audits.truth import (
    choice_probabilities,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    retain_truth_ratio,
    truth_ratios,
    truth_shares,
)


def test_truth_ratio_by_hand() -> None:
    # Wrong answers at 0.1 and 0.4: geometric mean 0.2. The truth at 0.4 and at 0.1.
    wrong = np.log([[0.1, 0.4], [0.1, 0.4]])
    assert truth_ratios(np.log([0.4, 0.1]), wrong) == pytest.approx([0.5, 2.0])


def test_truth_ratio_is_that_of_tofus_code() -> None:
    draw = np.random.default_rng(0)
    paraphrased, perturbed = draw.uniform(0, 3, 40), draw.uniform(0, 3, (40, 5))  # losses
    # OpenUnlearning, memorization.py
    wrong, correct = np.exp(-perturbed.mean(axis=-1)), np.exp(-paraphrased)
    ratios = truth_ratios(-paraphrased, -perturbed)
    assert ratios == pytest.approx(wrong / (correct + 1e-10))
    assert forget_truth_ratio(ratios) == pytest.approx(np.minimum(ratios, 1 / (ratios + 1e-10)).mean())
    assert retain_truth_ratio(ratios) == pytest.approx(np.maximum(0, 1 - ratios).mean())


def test_truth_ratio_of_the_paper_averages_probabilities() -> None:
    # Wrong answers at 0.1 and 0.4: arithmetic mean 0.25.
    wrong = np.log([[0.1, 0.4], [0.1, 0.4]])
    assert truth_ratios(np.log([0.5, 0.1]), wrong, average="arithmetic") == pytest.approx([0.5, 2.5])
    far = truth_ratios([-5000.0, -1.0], [[-1.0, -2.0], [-5000.0, -5001.0]], average="arithmetic")
    assert np.isfinite(far).all()


def test_open_unlearnings_truth_ratio_by_hand() -> None:
    wrong = np.log([[0.1, 0.4], [0.1, 0.4], [0.2, 0.2]])
    assert truth_shares(np.log([0.4, 0.1, 0.2]), wrong) == pytest.approx([2 / 3, 1 / 3, 0.5])
    assert truth_shares([-5000.0], [[-1.0]]) == pytest.approx([0.0])  # no memory
    assert truth_shares([0.0], [[-5000.0]]) == pytest.approx([1.0])  # perfect memory, one wrong answer


LOSSES = st.integers(1, 12).flatmap(
    lambda n: st.integers(1, 5).flatmap(
        lambda k: st.tuples(
            st.lists(st.floats(0, 12), min_size=n, max_size=n),
            st.lists(st.lists(st.floats(0, 12), min_size=k, max_size=k), min_size=n, max_size=n),
        )
    )
)


@given(LOSSES)
def test_every_figure_is_what_the_definitions_give_row_by_row(
    losses: tuple[list[float], list[list[float]]],
) -> None:
    """A second implementation: plain Python floats, probabilities first, one row at a time."""
    right = [math.exp(-loss) for loss in losses[0]]
    wrong = [[math.exp(-loss) for loss in row] for row in losses[1]]
    typical = [math.prod(row) ** (1 / len(row)) for row in wrong]
    ratios = [w / c for c, w in zip(right, typical, strict=True)]
    correct, false = -np.array(losses[0]), -np.array(losses[1])
    found = truth_ratios(correct, false)
    assert found == pytest.approx(ratios, rel=1e-6)
    paper = [sum(row) / len(row) / c for c, row in zip(right, wrong, strict=True)]
    assert truth_ratios(correct, false, average="arithmetic") == pytest.approx(paper, rel=1e-6)
    # OpenUnlearning's with its 1e-10
    shares = [c / (c + w + 1e-10) for c, w in zip(right, typical, strict=True)]
    assert truth_shares(correct, false) == pytest.approx(shares, abs=1e-4)
    chosen = [c / (c + sum(row)) for c, row in zip(right, wrong, strict=True)]
    assert choice_probabilities(correct, false) == pytest.approx(chosen, rel=1e-6)
    n = len(ratios)
    assert forget_truth_ratio(found) == pytest.approx(sum(min(r, 1 / r) for r in ratios) / n, rel=1e-6)
    kept = sum(max(0.0, 1 - r) for r in ratios) / n
    assert retain_truth_ratio(found) == pytest.approx(kept, rel=1e-6, abs=1e-12)


@given(LOSSES, st.integers(0, 99))
@example(([0.0, 0.0, 0.0, 1.0, 1.0], [[0.0], [0.0], [1.0], [0.0], [0.0]]), 0)  # p rounds to more than 1
def test_forget_quality_is_the_largest_gap_between_two_staircases(
    losses: tuple[list[float], list[list[float]]], seed: int
) -> None:
    ours = truth_ratios(-np.array(losses[0]), -np.array(losses[1]))
    theirs = np.random.default_rng(seed).lognormal(0, 2, len(ours))
    steps = [
        abs(sum(a <= x for a in ours) - sum(b <= x for b in theirs)) / len(ours) for x in (*ours, *theirs)
    ]
    assert forget_quality(ours, theirs, n=2).statistic == pytest.approx(max(steps))


def test_truth_ratio_of_a_collapsed_model_stays_finite() -> None:
    ratios = truth_ratios([-5000.0, -1.0], [[-1.0], [-5000.0]])
    assert np.isfinite(ratios).all()
    assert forget_truth_ratio(ratios) == pytest.approx(0.0)
    assert retain_truth_ratio(ratios) == pytest.approx(0.5)


def test_aggregates_by_hand() -> None:
    assert forget_truth_ratio([0.5, 2.0, 1.0]) == pytest.approx(2 / 3)
    assert retain_truth_ratio([0.25, 1.0, 7.0]) == pytest.approx(0.25)


def test_choice_probability_by_hand() -> None:
    found = choice_probabilities(np.log([0.5, 0.1]), np.log([[0.25, 0.25], [0.2, 0.7]]))
    assert found == pytest.approx([0.5, 0.1])
    assert choice_probabilities([-5000.0], [[-1.0]]) == pytest.approx([0.0])
    assert choice_probabilities([-1.0], [[-5000.0]]) == pytest.approx([1.0])


def test_forget_quality_of_a_model_with_itself_is_perfect() -> None:
    ratios = np.linspace(0.1, 2, 40)
    found = forget_quality(ratios, ratios)
    assert (found.statistic, found.p_value, found.low, found.high, found.n) == (0.0, 1.0, 0.0, 0.0, 40)


def test_forget_quality_of_models_without_overlap() -> None:
    found = forget_quality(np.linspace(0.1, 0.2, 40), np.linspace(1, 2, 40))
    assert (found.statistic, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.p_value < 1e-20


@pytest.mark.parametrize("flip", [False, True])
def test_forget_quality_is_scipys(flip: bool) -> None:
    draw = np.random.default_rng(1)
    ours, theirs = draw.lognormal(0, 1, 40), draw.lognormal(0.5, 1, 40)
    # TOFU's older code inverts the ratio; the test does not see it.
    found = forget_quality(1 / ours, 1 / theirs) if flip else forget_quality(ours, theirs)
    expected = ks_2samp(ours, theirs)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.low < found.statistic < found.high


def test_forget_quality_interval_is_that_of_resampled_pairs() -> None:
    draw = np.random.default_rng(2)
    ours, theirs = draw.lognormal(0, 1, 12), draw.lognormal(1, 1, 12)
    found = forget_quality(ours, theirs, n=200, seed=7, level=0.9)
    picks = np.random.default_rng(7).integers(0, 12, size=(200, 12))
    slow = [ks_2samp(ours[rows], theirs[rows]).statistic for rows in picks]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(slow, [5, 95])))


def test_forget_quality_is_the_same_for_a_seed() -> None:
    draw = np.random.default_rng(3)
    ours, theirs = draw.lognormal(0, 1, 50), draw.lognormal(0.5, 1, 50)
    assert forget_quality(ours, theirs, seed=3) == forget_quality(ours, theirs, seed=3)
    assert forget_quality(ours, theirs, n=5, seed=3) != forget_quality(ours, theirs, n=5, seed=4)


@pytest.mark.parametrize("reference", [None, [], np.array([])])
def test_forget_quality_without_a_reference_says_how_to_get_one(reference) -> None:
    with pytest.raises(MissingReference, match=r"retain-only model.*tofu\.py prepare"):
        forget_quality([1.0], reference)


def test_forget_quality_refuses_other_rows() -> None:
    with pytest.raises(MetricError, match="same rows under both models, got 2 and 3"):
        forget_quality([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("bad", [[], [[1.0]], [math.nan], [math.inf], [0.0], [-1.0]])
@pytest.mark.parametrize(
    "figure", [forget_truth_ratio, retain_truth_ratio, lambda r: forget_quality(r, [1.0])]
)
def test_ratios_that_are_none_are_refused(figure, bad) -> None:
    with pytest.raises(MetricError, match="expected"):
        figure(bad)


@pytest.mark.parametrize("figure", [truth_ratios, truth_shares, choice_probabilities])
@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ([], []),
        ([-1.0], [-1.0]),
        ([-1.0], [[]]),
        ([-1.0, -2.0], [[-1.0]]),
        ([math.nan], [[-1.0]]),
        ([-1.0], [[-math.inf]]),
        ([0.5], [[-1.0]]),
    ],
)
def test_scores_that_are_none_are_refused(figure, correct, wrong) -> None:
    with pytest.raises(MetricError, match="expected"):
        figure(correct, wrong)


@pytest.mark.parametrize("figure", [truth_ratios, truth_shares, choice_probabilities])
@pytest.mark.parametrize("nothing", [[[]], [], np.empty((1, 0))])
def test_wrong_answers_that_are_not_there_are_asked_for(figure, nothing) -> None:
    with pytest.raises(MetricError, match="give the rows `perturbed` answers"):
        figure([-1.0], nothing)


def test_an_unknown_average_is_refused() -> None:
    with pytest.raises(MetricError, match="'geometric' or 'arithmetic', got 'mean'"):
        truth_ratios([-1.0], [[-1.0]], average="mean")  # type: ignore[arg-type]


@given(st.lists(st.floats(0.01, 1.0), min_size=9, max_size=9))
def test_model_utility_is_the_harmonic_mean(nine: list[float]) -> None:
    assert model_utility(nine) == pytest.approx(hmean(nine))


def test_model_utility_with_a_figure_of_zero_is_zero() -> None:
    assert model_utility([1.0] * 8 + [0.0]) == 0.0


@pytest.mark.parametrize("bad", [[0.5] * 8, [0.5] * 8 + [1.2], [0.5] * 8 + [math.nan], [[0.5] * 9]])
def test_model_utility_refuses(bad) -> None:
    with pytest.raises(MetricError, match="expected"):
        model_utility(bad)
