"""DPO, AltPO, IPO and KTO against algebra, a slow second implementation, finite differences and their limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_kit import BETAS, SUMS, f64, gradient, law, mean, softplus
from torch import Tensor

from efface.adapters.errors import ObjectiveError
from efface.adapters.objectives import altpo, dpo, ipo, kto_undesirable, npo

PAIRED = (dpo, ipo)
pairs = st.lists(st.tuples(SUMS, SUMS, SUMS, SUMS), min_size=1, max_size=5)
Pair = tuple[float, float, float, float]


def columns(rows: list[Pair]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(s, s_ref, s', s'_ref), each [B]."""
    return tuple(f64(*column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


def gain(row: Pair) -> float:
    s, ref, alternate, ref_alternate = row
    return (alternate - ref_alternate) - (s - ref)


# --- by hand


def test_dpo_by_hand() -> None:
    # The forget answer rose by 1 and the refusal fell by 2: a gain of -3; the second row the other way round.
    loss = dpo(f64(-1, -4), f64(-2, -3), f64(-5, -1), f64(-3, -3), beta=0.5)
    expected = 4 * (math.log(1 + math.e**1.5) + math.log(1 + math.e**-1.5)) / 2
    assert loss.item() == pytest.approx(expected)


def test_altpo_by_hand_is_a_mean_over_alternates() -> None:
    alternates, references = f64(-1, -2, -3).reshape(1, 3), f64(-1, -1, -1).reshape(1, 3)
    loss = altpo(f64(-2), f64(-2), alternates, references, beta=1.0)
    assert loss.item() == pytest.approx(
        2 * (math.log(2) + math.log(1 + math.e) + math.log(1 + math.e**2)) / 3
    )


def test_ipo_by_hand() -> None:
    # Gains of 3 and -1 against a margin of 1/(2 * 0.25) = 2.
    loss = ipo(f64(-3, 0), f64(-1, -1), f64(-1, -2), f64(-2, -2), tau=0.25)
    assert loss.item() == pytest.approx(((3 - 2) ** 2 + (-1 - 2) ** 2) / 2)


def test_kto_by_hand() -> None:
    loss = kto_undesirable(f64(-1, -4), f64(-2, -2), beta=0.5, z_ref=1.0, weight=3.0)
    assert loss.item() == pytest.approx(3 * (0.5 + 1 / (1 + math.e**1.5)) / 2)


# --- a slow second implementation


@law
@given(pairs, BETAS)
def test_dpo_is_the_slow_one(rows: list[Pair], beta: float) -> None:
    slow = mean([2 / beta * softplus(-beta * gain(row)) for row in rows])
    assert dpo(*columns(rows), beta=beta).item() == pytest.approx(slow, rel=1e-12)


@law
@given(pairs, st.floats(0.05, 5))
def test_ipo_is_the_slow_one(rows: list[Pair], tau: float) -> None:
    slow = mean([(gain(row) - 1 / (2 * tau)) ** 2 for row in rows])
    assert ipo(*columns(rows), tau=tau).item() == pytest.approx(slow, rel=1e-9, abs=1e-12)


@law
@given(st.lists(st.tuples(SUMS, SUMS), min_size=1, max_size=5), BETAS, st.floats(0, 5), st.floats(0.1, 4))
def test_kto_is_the_slow_one(
    rows: list[tuple[float, float]], beta: float, z_ref: float, weight: float
) -> None:
    slow = mean([weight * (1 - 1 / (1 + math.exp(-beta * (z_ref - (s - ref))))) for s, ref in rows])
    s, refs = (f64(*column) for column in zip(*rows, strict=True))
    loss = kto_undesirable(s, refs, beta=beta, z_ref=z_ref, weight=weight)
    assert loss.item() == pytest.approx(slow, rel=1e-6, abs=1e-12)


@law
@given(
    st.integers(1, 3).flatmap(
        lambda k: st.lists(st.lists(SUMS, min_size=2 * k + 2, max_size=2 * k + 2), min_size=1)
    )
)
def test_altpo_is_dpo_over_every_pair(rows: list[list[float]]) -> None:
    k = (len(rows[0]) - 2) // 2
    every = [(row[0], row[1], row[2 + i], row[2 + k + i]) for row in rows for i in range(k)]
    grid = f64(*(value for row in rows for value in row)).reshape(len(rows), -1)
    loss = altpo(grid[:, 0], grid[:, 1], grid[:, 2 : 2 + k], grid[:, 2 + k :], beta=0.7)
    assert loss.item() == pytest.approx(dpo(*columns(every), beta=0.7).item(), rel=1e-12)


# --- gradients


def test_gradients_agree_with_finite_differences() -> None:
    s, ref = f64(-3, -0.5, -12).requires_grad_(), f64(-2, -1, -11)
    other, ref_other = f64(-4, -2, -6).requires_grad_(), f64(-5, -1, -7)
    many = f64(-4, -2, -6, -3, -9, -1).reshape(3, 2).requires_grad_()
    ref_many = many.detach() - 1
    check = torch.autograd.gradcheck
    assert check(lambda x, y: dpo(x, ref, y, ref_other, beta=0.3), (s, other))
    assert check(lambda x, y: altpo(x, ref, y, ref_many, beta=0.3), (s, many))
    assert check(lambda x, y: ipo(x, ref, y, ref_other, tau=0.3), (s, other))
    assert check(lambda x: kto_undesirable(x, ref, beta=0.3, z_ref=0.5), (s,))


# --- limits


@law
@given(pairs)
def test_npo_becomes_gradient_ascent_up_to_a_constant_as_beta_vanishes(rows: list[Pair]) -> None:
    s, ref, *_ = columns(rows)
    rest = npo(s, ref, beta=1e-6) - 2 / 1e-6 * math.log(2)
    assert rest.item() == pytest.approx((s - ref).mean().item(), abs=1e-2)


@law
@given(pairs)
def test_dpo_becomes_ascent_minus_descent_as_beta_vanishes(rows: list[Pair]) -> None:
    s, ref, other, ref_other = columns(rows)
    found = gradient(lambda x: dpo(x, ref, other, ref_other, beta=1e-7), s)
    torch.testing.assert_close(found, torch.full_like(s, 1 / len(rows)), rtol=1e-5, atol=0)
    found = gradient(lambda x: dpo(s, ref, x, ref_other, beta=1e-7), other)
    torch.testing.assert_close(found, torch.full_like(s, -1 / len(rows)), rtol=1e-5, atol=0)


@law
@given(pairs, BETAS)
def test_dpo_with_the_alternate_at_its_reference_is_npo(rows: list[Pair], beta: float) -> None:
    s, ref, other, _ = columns(rows)
    assert dpo(s, ref, other, other, beta=beta).item() == pytest.approx(
        npo(s, ref, beta=beta).item(), rel=1e-12
    )


@law
@given(pairs, BETAS)
def test_altpo_with_one_alternate_is_dpo(rows: list[Pair], beta: float) -> None:
    s, ref, other, ref_other = columns(rows)
    loss = altpo(s, ref, other[:, None], ref_other[:, None], beta=beta)
    assert loss.item() == pytest.approx(dpo(s, ref, other, ref_other, beta=beta).item(), rel=1e-12)


def test_ipo_rests_at_its_margin_where_dpo_pulls_on() -> None:
    at_margin = f64(-7).requires_grad_()
    loss = ipo(at_margin, f64(-2), f64(-1), f64(-1), tau=0.1)
    loss.backward()
    assert (loss.item(), at_margin.grad.item()) == (0.0, 0.0)
    assert gradient(lambda x: dpo(x, f64(-2), f64(-1), f64(-1), beta=0.1), f64(-7)).item() > 0.5


@law
@given(pairs)
def test_ipo_becomes_plain_difference_as_tau_vanishes(rows: list[Pair]) -> None:
    tau = 1e-7
    s, ref, other, ref_other = columns(rows)
    found = tau * gradient(lambda x: ipo(x, ref, other, ref_other, tau=tau), s)
    torch.testing.assert_close(found, torch.full_like(s, 1 / len(rows)), rtol=1e-4, atol=0)


@law
@given(st.lists(st.tuples(SUMS, SUMS), min_size=1, max_size=5), st.floats(0.1, 4))
def test_kto_is_bounded_and_half_its_weight_as_beta_vanishes(
    rows: list[tuple[float, float]], weight: float
) -> None:
    s, ref = (f64(*column) for column in zip(*rows, strict=True))
    assert 0.0 <= kto_undesirable(s, ref, beta=2.0, weight=weight).item() <= weight
    assert kto_undesirable(s, ref, beta=1e-9, weight=weight).item() == pytest.approx(weight / 2, rel=1e-6)
    found = gradient(lambda x: kto_undesirable(x, ref, beta=1e-6, weight=weight), s)
    torch.testing.assert_close(found, torch.full_like(s, weight * 1e-6 / 4 / len(rows)), rtol=1e-4, atol=0)


def test_kto_far_from_its_reference_is_nought_or_its_weight() -> None:
    loss = kto_undesirable(f64(-1e4), f64(0)), kto_undesirable(f64(0), f64(-1e4))
    assert [value.item() for value in loss] == [0.0, 1.0]
    # Not 1 - sigmoid(-x), which is 0 already at x = -37.
    assert kto_undesirable(f64(-400), f64(0), beta=0.1).item() == pytest.approx(math.exp(-40), rel=1e-6)


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_long_answers_overflow_nothing(far: float) -> None:
    for loss in PAIRED:
        s, other = f64(far, -1).float().requires_grad_(), f64(-far, -1).float().requires_grad_()
        found = loss(s, torch.zeros(2), other, torch.zeros(2))
        found.backward()
        assert found.isfinite()
        assert s.grad is not None
        assert other.grad is not None
        assert s.grad.isfinite().all()
        torch.testing.assert_close(s.grad, -other.grad)


# --- arguments that make no sense


@pytest.mark.parametrize("loss", PAIRED)
def test_bad_vectors_raise(loss: object) -> None:
    with pytest.raises(ObjectiveError, match=r"four vectors .* got \(2,\) and \(2,\) and \(1,\) and \(2,\)"):
        loss(f64(-1, -2), f64(-1, -2), f64(-1), f64(-1, -2))  # type: ignore[operator]
    with pytest.raises(ObjectiveError, match="token ids"):
        loss(*(torch.tensor([3]) for _ in range(4)))  # type: ignore[operator]


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
def test_bad_numbers_raise(value: float) -> None:
    four = [f64(-1)] * 4
    grids = [f64(-1).reshape(1, 1)] * 2
    with pytest.raises(ObjectiveError, match="beta"):
        dpo(*four, beta=value)
    with pytest.raises(ObjectiveError, match="beta"):
        altpo(f64(-1), f64(-1), *grids, beta=value)
    with pytest.raises(ObjectiveError, match="tau"):
        ipo(*four, tau=value)
    with pytest.raises(ObjectiveError, match="beta"):
        kto_undesirable(f64(-1), f64(-1), beta=value)
    with pytest.raises(ObjectiveError, match="weight"):
        kto_undesirable(f64(-1), f64(-1), weight=value)
    if value != 0.0:
        with pytest.raises(ObjectiveError, match="z_ref"):
            kto_undesirable(f64(-1), f64(-1), z_ref=value)


def test_bad_alternates_raise() -> None:
    with pytest.raises(ObjectiveError, match=r"alternate_logps \[B, K\], got \(1,\) and \(1,\)"):
        altpo(f64(-1), f64(-1), f64(-1), f64(-1))
    with pytest.raises(ObjectiveError, match=r"ref_alternate_logps \(1, 1\), got \(1,\) and \(1, 2\)"):
        altpo(f64(-1), f64(-1), f64(-1).reshape(1, 1), f64(-1, -1).reshape(1, 2))
    with pytest.raises(ObjectiveError, match="B > 0"):
        altpo(f64(-1), f64(-1), torch.zeros(1, 0), torch.zeros(1, 0))
