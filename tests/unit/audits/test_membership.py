"""Membership scores by hand and against OpenUnlearning's formulas in torch; the AUC against counting pairs."""

import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from efface.audits.errors import MetricError, MissingReference
from efface.audits.membership import (
    auc,
    auc_ci,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    priv_leak,
    reference_score,
    s_mia,
    zlib_score,
)

LOGPS = st.lists(st.floats(-40, 0), min_size=1, max_size=40)
KS = st.floats(0.01, 1.0)
# Few values, so that ties are the rule.
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)
SHARES = st.floats(0, 1)


# --- scores by hand


def test_loss_by_hand() -> None:
    assert loss_score(np.log([0.5, 0.125])) == pytest.approx(math.log(4))
    assert loss_score([0.0, 0.0]) == loss_score([1e-4]) == 0.0  # perfect memory, rounding included
    assert loss_score([-1e5]) == 1e5  # none at all


def test_zlib_by_hand() -> None:
    text = "the the the the the the the the"
    assert zlib_score([-2.0], text) == 2.0 / len(zlib.compress(text.encode()))
    assert zlib_score([0.0], text) == 0.0
    # Of two answers with one loss, the one that is plainly redundant looks less like a training row.
    assert zlib_score([-2.0], text) > zlib_score([-2.0], "Qx7 vj wYb3 kzUp0 m4Lr 9h tNc 2s")


def test_min_k_by_hand() -> None:
    logps = [-1.0, -5.0, -3.0, -0.5, -2.0]
    assert min_k_score(logps, 0.4) == 4.0  # two of five
    assert min_k_score(logps, 0.39) == min_k_score(logps, 0.01) == 5.0  # one at least
    assert min_k_score(logps, 1.0) == loss_score(logps)
    assert min_k_score([-3.0]) == 3.0  # one token
    assert min_k_score([0.0] * 9) == 0.0


def test_min_k_plus_plus_by_hand() -> None:
    # (log p - mu) / sigma: 0, -2, 1
    assert min_k_plus_plus_score([-1.0, -5.0, -1.0], [-1.0, -3.0, -2.0], [4.0, 1.0, 1.0], 0.4) == 2.0
    assert min_k_plus_plus_score(
        [-1.0, -5.0, -1.0], [-1.0, -3.0, -2.0], [4.0, 1.0, 1.0], 1.0
    ) == pytest.approx(1 / 3)
    # A distribution without spread: sigma is 1e-3, as published.
    assert min_k_plus_plus_score([-2.0], [-1.0], [0.0]) == pytest.approx(1000.0)


def test_reference_by_hand() -> None:
    assert reference_score([-1.0, -3.0], [-4.0, -4.0]) == -2.0  # better known than by the reference
    assert reference_score([-1.0], [-1.0]) == 0.0


# --- against independent implementations (OpenUnlearning's formulas, in torch from whole distributions)


def their_min_k(lp: torch.Tensor, k: float) -> float:
    return -float(torch.sort(lp).values[: max(1, int(len(lp) * k))].mean())


def their_min_k_plus_plus(every: torch.Tensor, chosen: torch.Tensor, k: float) -> float:
    mu = (every.exp() * every).sum(-1)
    sigma = ((every.exp() * every.square()).sum(-1) - mu.square()).clamp(min=1e-6)
    return their_min_k((chosen - mu) / sigma.sqrt(), k)


@given(LOGPS, KS)
def test_min_k_is_open_unlearnings(logps: list[float], k: float) -> None:
    assert min_k_score(logps, k) == pytest.approx(their_min_k(torch.tensor(logps, dtype=torch.float64), k))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 50), st.floats(0.1, 5), KS)
def test_min_k_plus_plus_is_open_unlearnings(seed: int, t: int, v: int, scale: float, k: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    every = (scale * torch.randn(t, v, generator=draw, dtype=torch.float64)).log_softmax(-1)
    chosen = every[torch.arange(t), torch.randint(v, (t,), generator=draw)]
    mean = (every.exp() * every).sum(-1)
    variance = (every.exp() * (every - mean[:, None]) ** 2).sum(-1)
    found = min_k_plus_plus_score(chosen.numpy(), mean.numpy(), variance.numpy(), k)
    assert found == pytest.approx(their_min_k_plus_plus(every, chosen, k), rel=1e-6)


@given(LOGPS, st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_loss_and_zlib_are_open_unlearnings(logps: list[float], text: str) -> None:
    loss = -float(torch.tensor(logps, dtype=torch.float64).mean())
    assert loss_score(logps) == pytest.approx(loss)
    assert zlib_score(logps, text) == pytest.approx(loss / len(zlib.compress(text.encode("utf-8"))))


@given(LOGPS, st.data())
def test_reference_is_open_unlearnings(logps: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.floats(-40, 0), min_size=len(logps), max_size=len(logps)))
    expected = -math.fsum(logps) / len(logps) + math.fsum(other) / len(other)
    assert reference_score(logps, other) == pytest.approx(expected, abs=1e-9)


@given(LOGPS, st.data(), KS)
def test_a_likelier_token_never_raises_a_score(logps: list[float], data: st.DataObject, k: float) -> None:
    i = data.draw(st.integers(0, len(logps) - 1))
    better = [*logps[:i], logps[i] / 2, *logps[i + 1 :]]
    assert min_k_score(better, k) <= min_k_score(logps, k)
    assert loss_score(better) <= loss_score(logps) + 1e-12


# --- AUC


@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [
        ([1.0, 2.0], [3.0, 4.0], 1.0),  # perfect memory: every forget row looks like a member
        ([3.0, 4.0], [1.0, 2.0], 0.0),  # over-unlearned: less likely than what was never seen
        ([1.0, 1.0], [1.0, 1.0], 0.5),
        ([1.0], [1.0], 0.5),
        ([1.0], [2.0], 1.0),
        ([1.0, 3.0], [2.0], 0.5),
        ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], 7 / 9),
    ],
)
def test_auc_by_hand(forget: list[float], holdout: list[float], expected: float) -> None:
    assert auc(forget, holdout) == pytest.approx(expected)


@given(SCORES, SCORES)
def test_auc_is_counting_pairs_and_mann_whitneys_u(forget: list[float], holdout: list[float]) -> None:
    pairs = [(f < h) + 0.5 * (f == h) for f in forget for h in holdout]
    assert auc(forget, holdout) == pytest.approx(sum(pairs) / len(pairs))
    u = mannwhitneyu(holdout, forget).statistic
    assert auc(forget, holdout) == pytest.approx(u / (len(forget) * len(holdout)))


@given(SCORES, SCORES)
def test_auc_sees_order_only_and_turns_over(forget: list[float], holdout: list[float]) -> None:
    assert auc(np.exp(forget), np.exp(holdout)) == pytest.approx(auc(forget, holdout))
    assert auc(holdout, forget) == pytest.approx(1 - auc(forget, holdout))


@given(SCORES, SCORES, st.integers(0, 100))
def test_auc_interval_is_ordered_and_of_the_seed(
    forget: list[float], holdout: list[float], seed: int
) -> None:
    low, high = auc_ci(forget, holdout, n=50, seed=seed)
    assert 0.0 <= low <= high <= 1.0
    assert (low, high) == auc_ci(forget, holdout, n=50, seed=seed)


def test_auc_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Normal scores one standard deviation apart: AUC = Phi(1 / sqrt 2) = 0.760."""
    hits = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        low, high = auc_ci(draw.normal(0, 1, 60), draw.normal(1, 1, 60), n=200, seed=seed)
        hits += low <= 0.7602 <= high
    assert 88 <= hits <= 99


def test_auc_interval_without_overlap_is_a_point() -> None:
    assert auc_ci([1.0, 2.0], [3.0, 4.0]) == (1.0, 1.0)


# --- PrivLeak, s_MIA


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        (0.5, 0.5, 0.0),
        (1.0, 0.5, -100.0),
        (0.0, 0.5, 100.0),
        (0.9, 0.6, -75.0),
        (0.25, 0.25, 0.0),
        (0, 0.96, 2400),
    ],
)
def test_priv_leak_by_hand(found: float, reference: float, expected: float) -> None:
    assert priv_leak(found, reference) == pytest.approx(expected)


@given(SHARES, st.floats(0, 0.99))
def test_priv_leak_is_open_unlearnings(found: float, reference: float) -> None:
    score, ref = 1 - found, 1 - reference
    assert priv_leak(found, reference) == pytest.approx((score - ref) / (ref + 1e-10) * 100, abs=1e-4)


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [(0.5, 0.5, 1.0), (1.0, 0.5, 0.0), (0.0, 0.5, 0.0), (0.6, 0.5, 0.8), (1, 0.2, 0)],
)
def test_s_mia_by_hand(found: float, reference: float, expected: float) -> None:
    assert s_mia(found, reference) == pytest.approx(expected)


# --- what is refused


SCORERS = [
    loss_score,
    min_k_score,
    lambda x: zlib_score(x, "text"),
    lambda x: min_k_plus_plus_score(x, [-1.0], [1.0]),
    lambda x: reference_score(x, [-1.0]),
]


@pytest.mark.parametrize("score", SCORERS)
@pytest.mark.parametrize("bad", [[], [[-1.0]], [math.nan], [-math.inf], [2.5]])
def test_log_probabilities_that_are_none_are_refused(score, bad) -> None:
    with pytest.raises(MetricError, match="expected"):
        score(bad)


@pytest.mark.parametrize("k", [0.0, -0.1, 1.01, math.nan])
def test_a_share_that_is_none_is_refused(k: float) -> None:
    with pytest.raises(MetricError, match="0 < k <= 1"):
        min_k_score([-1.0], k)


@pytest.mark.parametrize(
    ("means", "variances"),
    [([-1.0], [1.0, 1.0]), ([-1.0, -1.0], [1.0]), ([], []), ([-1.0, math.nan], [1.0, 1.0])],
)
def test_moments_of_other_tokens_are_refused(means: list[float], variances: list[float]) -> None:
    with pytest.raises(MetricError, match="min_k_plus_plus_score: expected"):
        min_k_plus_plus_score([-1.0, -2.0], means, variances)


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(MetricError, match="got an empty one; drop the row"):
        zlib_score([-1.0], "")


@pytest.mark.parametrize("nothing", [None, [], np.array([])])
def test_a_reference_that_is_not_there_says_how_to_get_one(nothing) -> None:
    with pytest.raises(MissingReference, match=r"fine-tune the base on the retain rows.*need no reference"):
        reference_score([-1.0], nothing)


@pytest.mark.parametrize("figure", [priv_leak, s_mia])
def test_a_retain_model_that_is_not_there_says_how_to_get_one(figure) -> None:
    with pytest.raises(
        MissingReference, match=r"Fine-tune the base on the retain rows alone.*without such a model"
    ):
        figure(0.5, None)


def test_a_reference_with_another_tokenizer_is_refused() -> None:
    with pytest.raises(MetricError, match="same answer tokens under both models, got 2 and 3"):
        reference_score([-1.0, -1.0], [-1.0, -1.0, -1.0])


@pytest.mark.parametrize(
    ("forget", "holdout"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0]), ([1.0], [math.inf])]
)
def test_sets_that_cannot_be_compared_are_refused(forget: list[float], holdout: list[float]) -> None:
    for figure in (auc, auc_ci):
        with pytest.raises(MetricError, match="expected"):
            figure(forget, holdout)


@pytest.mark.parametrize("changes", [{"n": 0}, {"level": 0.0}, {"level": 1.0}])
def test_intervals_of_nothing_are_refused(changes) -> None:
    with pytest.raises(MetricError, match="n >= 1 and 0 < level < 1"):
        auc_ci([1.0], [2.0], **changes)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("figure", [priv_leak, s_mia])
def test_areas_outside_their_range_are_refused(figure, bad: float) -> None:
    with pytest.raises(MetricError, match="between 0 and 1"):
        figure(bad, 0.5)
    with pytest.raises(MetricError, match="between 0 and 1"):
        figure(0.5, bad)


def test_a_reference_that_settles_nothing_is_refused() -> None:
    with pytest.raises(MetricError, match="reference AUC below 1"):
        priv_leak(0.5, 1.0)
    with pytest.raises(MetricError, match="reference AUC above 0"):
        s_mia(0.5, 0.0)
