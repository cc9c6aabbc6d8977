"""GradAscent, WGA, SatImp and IdkNLL against algebra, a slow second implementation, differences and limits."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_kit import JUNK, f64, gradient, grids, law, mean, slope
from torch import Tensor

from efface.adapters.errors import ObjectiveError
from efface.adapters.objectives import grad_ascent, idk_nll, satimp, wga

EXPONENTS = st.floats(0, 6)
Grid = tuple[list[list[float]], list[list[bool]]]
TOKEN_LOSSES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (grad_ascent, wga, satimp, idk_nll)


def tensors(grid: Grid) -> tuple[Tensor, Tensor]:
    return torch.tensor(grid[0], dtype=torch.float64), torch.tensor(grid[1])


def kept(logps: Tensor, mask: Tensor) -> list[float]:
    """The counted log-probabilities, one by one."""
    rows = zip(logps.tolist(), mask.tolist(), strict=True)
    return [value for row, on in rows for value, counts in zip(row, on, strict=True) if counts]


def slow_satimp(logps: Tensor, frozen: Tensor, mask: Tensor, beta1: float, beta2: float) -> float:
    """The weights are of ``frozen``: what has no gradient stays where it was."""
    terms = zip(kept(logps, mask), kept(frozen, mask), strict=True)
    return mean([math.exp(at) ** beta1 * (1 - math.exp(at)) ** beta2 * logp for logp, at in terms])


# --- by hand

HALF, QUARTER = math.log(0.5), math.log(0.25)
BY_HAND = torch.tensor([[HALF, QUARTER], [QUARTER, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True], [True, False]])


def test_grad_ascent_by_hand_is_a_mean_over_tokens_not_over_rows() -> None:
    assert grad_ascent(BY_HAND, MASK).item() == pytest.approx((HALF + 2 * QUARTER) / 3)


def test_idk_nll_by_hand_is_descent() -> None:
    assert idk_nll(BY_HAND, MASK).item() == pytest.approx(-(HALF + 2 * QUARTER) / 3)


def test_wga_by_hand() -> None:
    assert wga(BY_HAND, MASK, beta=2.0).item() == pytest.approx((0.25 * HALF + 2 * 0.0625 * QUARTER) / 3)


def test_satimp_by_hand_beta1_is_of_p_and_beta2_of_the_rest() -> None:
    # p = 1/4: p^2 (1-p)^1 = 3/64; were the exponents swapped it would be 9/64.
    expected = (1 / 8 * HALF + 2 * 3 / 64 * QUARTER) / 3
    assert satimp(BY_HAND, MASK, beta1=2.0, beta2=1.0).item() == pytest.approx(expected)


# --- a slow second implementation


@law
@given(grids())
def test_grad_ascent_is_the_slow_one_and_idk_its_negative(grid: Grid) -> None:
    logps, mask = tensors(grid)
    assert grad_ascent(logps, mask).item() == pytest.approx(mean(kept(logps, mask)), rel=1e-12)
    assert idk_nll(logps, mask).item() == pytest.approx(-mean(kept(logps, mask)), rel=1e-12)


@law
@given(grids(), EXPONENTS, EXPONENTS)
def test_satimp_and_wga_are_the_slow_ones(grid: Grid, beta1: float, beta2: float) -> None:
    logps, mask = tensors(grid)
    slow = slow_satimp(logps, logps, mask, beta1, beta2)
    assert satimp(logps, mask, beta1=beta1, beta2=beta2).item() == pytest.approx(slow, rel=1e-6, abs=1e-9)
    slow = slow_satimp(logps, logps, mask, beta1, 0.0)
    assert wga(logps, mask, beta=beta1).item() == pytest.approx(slow, rel=1e-9, abs=1e-12)


# --- gradients


def test_gradients_agree_with_finite_differences() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    grid = f64(-1, -2, -0.3, -4, -0.05, -6).reshape(2, 3)
    for loss in (grad_ascent, idk_nll):
        assert torch.autograd.gradcheck(lambda x, of=loss: of(x, mask), (grid.clone().requires_grad_(),))
    for beta1, beta2 in ((1.0, 0.0), (5.0, 1.0), (0.5, 0.1)):
        # The weights are constants: differentiating them too would give another slope.
        expected = slope(lambda x, a=beta1, b=beta2: slow_satimp(x, grid, mask, a, b), grid)
        found = gradient(lambda x, a=beta1, b=beta2: satimp(x, mask, beta1=a, beta2=b), grid)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        moving = slope(lambda x, a=beta1, b=beta2: slow_satimp(x, x, mask, a, b), grid)
        assert not torch.allclose(found, moving, rtol=1e-2)
    expected = slope(lambda x: slow_satimp(x, grid, mask, 2.0, 0.0), grid)
    torch.testing.assert_close(
        gradient(lambda x: wga(x, mask, beta=2.0), grid), expected, rtol=1e-6, atol=1e-9
    )


# --- limits


@law
@given(grids(), EXPONENTS)
def test_without_exponents_they_are_gradient_ascent(grid: Grid, beta: float) -> None:
    logps, mask = tensors(grid)
    for loss in (lambda x: wga(x, mask, beta=0.0), lambda x: satimp(x, mask, beta1=0.0, beta2=0.0)):
        assert loss(logps).item() == pytest.approx(grad_ascent(logps, mask).item(), rel=1e-12)
        torch.testing.assert_close(gradient(loss, logps), gradient(lambda x: grad_ascent(x, mask), logps))
    assert satimp(logps, mask, beta1=beta, beta2=0.0).item() == pytest.approx(
        wga(logps, mask, beta=beta).item()
    )


@law
@given(grids(low=-1e5), st.floats(0.2, 6))
def test_wga_has_a_floor_where_gradient_ascent_has_none(grid: Grid, beta: float) -> None:
    # p^beta log p is least at p = e^(-1/beta), where it is -1/(e beta).
    logps, mask = tensors(grid)
    assert -1 / (math.e * beta) - 1e-12 <= wga(logps, mask, beta=beta).item() <= 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", TOKEN_LOSSES)
def test_extremes_are_finite(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    # Gone, certain, and a log-probability that rounding pushed above zero; then a very long answer.
    logps = torch.tensor([[-1e5, 0.0, 1e-7], [-1e-9, -30.0, -1.0]], dtype=dtype).requires_grad_()
    found = loss(logps, torch.ones(2, 3, dtype=torch.bool))
    found.backward()
    assert found.isfinite()
    assert logps.grad is not None
    assert logps.grad.isfinite().all()
    long = torch.full((1, 200_000), -0.5, dtype=dtype)
    every = torch.ones_like(long, dtype=torch.bool)
    assert loss(long, every).item() == pytest.approx(loss(long[:, :1], every[:, :1]).item(), rel=1e-5)


def test_importance_keeps_its_digits_as_p_nears_one() -> None:
    # In float32 1 - exp(-1e-9) is 0; the weight (1 - p)^0.5 is not.
    loss = satimp(torch.tensor([[-1e-9]]), torch.tensor([[True]]), beta1=0.0, beta2=0.5)
    assert loss.item() == pytest.approx(-1e-9 * 1e-9**0.5, rel=1e-5)


def test_low_precision_is_averaged_in_float32() -> None:
    logps = torch.tensor([[-1.0, -0.25, -3.5]]).bfloat16()
    for loss in (grad_ascent, wga, satimp):
        found = loss(logps, torch.ones(1, 3, dtype=torch.bool))
        assert found.dtype == torch.float32
        assert found.item() == loss(logps.float(), torch.ones(1, 3, dtype=torch.bool)).item()


# --- masks and arguments


@law
@given(grids(), st.sampled_from(JUNK))
def test_what_stands_outside_the_mask_reaches_neither_loss_nor_gradient(grid: Grid, junk: float) -> None:
    clean, mask = tensors(grid)
    dirty = clean.masked_fill(~mask, junk)
    for loss in TOKEN_LOSSES:
        assert loss(dirty, mask).item() == loss(clean, mask).item()
        found = gradient(lambda x, of=loss: of(x, mask), dirty)
        assert (found[~mask] == 0).all()
        torch.testing.assert_close(found, gradient(lambda x, of=loss: of(x, mask), clean), rtol=0, atol=0)


@pytest.mark.parametrize("loss", TOKEN_LOSSES)
def test_bad_grids_raise(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ObjectiveError, match=r"\(1, 2\) and mask \(2,\)"):
        loss(torch.zeros(1, 2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ObjectiveError, match="at least one counted token"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(ObjectiveError, match="bool mask"):
        loss(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(ObjectiveError, match="token ids"):
        loss(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_bad_exponents_raise(value: float) -> None:
    with pytest.raises(ObjectiveError, match="beta"):
        wga(BY_HAND, MASK, beta=value)
    with pytest.raises(ObjectiveError, match="beta1"):
        satimp(BY_HAND, MASK, beta1=value)
    with pytest.raises(ObjectiveError, match="beta2"):
        satimp(BY_HAND, MASK, beta2=value)
