"""Drift by hand, and the divergence against scipy's over float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from efface.audits.drift import mean_drift, probability_drift, row_kl, token_kl
from efface.audits.errors import MetricError


def test_probability_drift_by_hand() -> None:
    assert probability_drift(np.log([0.8]), np.log([0.2])) == pytest.approx(-0.6)
    assert probability_drift(np.log([0.5, 0.125]), np.log([1.0, 1.0])) == pytest.approx(0.75)
    assert probability_drift([-3.0, -1.0], [-3.0, -1.0]) == 0.0
    assert probability_drift([0.0], [-1e5]) == -1.0  # known by heart, then gone


def test_divergence_by_hand() -> None:
    before, after = (
        torch.log(torch.tensor([[0.5, 0.5], [1.0, 1.0]])),
        torch.log(torch.tensor([[0.25, 0.75], [2.0, 2.0]])),
    )
    found = token_kl(before, after)
    assert found[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert found[1] == pytest.approx(0.0, abs=1e-7)  # a constant added to logits changes nothing
    assert row_kl([0.5]) == 0.5
    assert row_kl([0.0, 1.0]) == 0.5


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 40), st.floats(0, 8))
def test_divergence_is_scipys(seed: int, n: int, v: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    before, after = scale * draw.normal(size=(n, v)), scale * draw.normal(size=(n, v))
    expected = rel_entr(softmax(before, -1), softmax(after, -1)).sum(-1)
    found = token_kl(torch.tensor(before), torch.tensor(after)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert (found >= 0).all()
    assert (token_kl(torch.tensor(before), torch.tensor(before)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    before, after = (torch.randn(4, 5000, generator=draw).to(dtype) for _ in range(2))
    assert token_kl(before, after).dtype == torch.float32
    assert torch.equal(token_kl(before, after), token_kl(before.float(), after.float()))


def test_tokens_that_cannot_come() -> None:
    masked, open_ = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert token_kl(masked, masked).item() == 0.0
    assert token_kl(masked, open_).item() == pytest.approx(math.log(1.5))
    assert token_kl(open_, masked).item() == math.inf
    assert token_kl(torch.tensor([[math.nan, 0.0, 0.0]]), open_).isnan().all()


def test_summary_by_hand() -> None:
    found = mean_drift([-0.5, 0.0, 0.2, -0.1])
    assert (found.mean, found.least, found.most, found.n) == (pytest.approx(-0.1), -0.5, 0.2, 4)
    assert -0.5 <= found.low < found.mean < found.high <= 0.2
    one = mean_drift([0.25])
    assert (one.mean, one.low, one.high, one.n) == (0.25, 0.25, 0.25, 1)
    assert mean_drift([0.0, 1.0, 0.5], seed=1) == mean_drift([0.0, 1.0, 0.5], seed=1)


@pytest.mark.parametrize("bad", [[], [[0.1]], [math.nan], [math.inf]])
@pytest.mark.parametrize("figure", [mean_drift, row_kl, lambda x: probability_drift(x, [-1.0])])
def test_rows_that_are_none_are_refused(figure, bad) -> None:
    with pytest.raises(MetricError, match="expected"):
        figure(bad)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(MetricError, match="same answer tokens under both models, got 1 and 2"):
        probability_drift([-1.0], [-1.0, -1.0])
    with pytest.raises(MetricError, match=r"one shape \(N, V\), got \(1, 2\) and \(1, 3\)"):
        token_kl(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(MetricError, match="divergences >= 0"):
        row_kl([-0.1])
