"""PDU's constrained form: by hand, its laws, and a problem whose answer is known."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_kit import f64, law

from efface.adapters.errors import ObjectiveError
from efface.adapters.objectives import Dual


def test_loss_and_update_by_hand() -> None:
    dual = Dual(weight=2.0, epsilon=0.5, step=0.1)
    assert dual.loss(torch.tensor(-3.0), torch.tensor(1.5)).item() == pytest.approx(-3 + 2 * (1.5 - 0.5))
    assert dual.update(1.5).weight == pytest.approx(2.0 + 0.1 * 1.0)
    assert dual.update(0.5) == dual
    assert Dual(weight=0.05, epsilon=0.5, step=0.1).update(-4.0).weight == 0.0


@law
@given(st.floats(0, 100), st.floats(-5, 5), st.floats(0.01, 10), st.floats(-50, 50))
def test_an_update_raises_the_price_of_a_broken_constraint_alone_and_never_below_nought(
    weight: float, epsilon: float, step: float, retain: float
) -> None:
    before = Dual(weight, epsilon, step)
    after = before.update(retain)
    assert after.weight == max(0.0, weight + step * (retain - epsilon))
    assert after.weight >= before.weight if retain >= epsilon else after.weight <= before.weight
    assert (after.epsilon, after.step) == (epsilon, step)
    assert before.weight == weight


def test_the_gradient_is_the_forget_losss_and_weight_times_the_retain_terms() -> None:
    forget, retain = f64(1.0)[0].requires_grad_(), f64(2.0)[0].requires_grad_()
    Dual(weight=7.0, epsilon=1.0).loss(forget, retain).backward()
    assert forget.grad is not None
    assert retain.grad is not None
    assert (forget.grad.item(), retain.grad.item()) == (1.0, 7.0)


def test_it_finds_the_best_point_inside_the_constraint_and_its_price() -> None:
    # Minimise -x subject to x^2 <= 4: x = 2, where -1 + lambda 2x = 0, so lambda = 1/4.
    x, dual = f64(0.5).requires_grad_(), Dual(weight=1.0, epsilon=4.0, step=0.005)
    for _ in range(1500):
        retain = x.square().sum()
        (slope,) = torch.autograd.grad(dual.loss(-x.sum(), retain), x)
        x = (x - 0.02 * slope).detach().requires_grad_()
        dual = dual.update(retain.item())
    assert x.item() == pytest.approx(2.0, abs=1e-2)
    assert dual.weight == pytest.approx(0.25, abs=1e-2)


def test_it_is_frozen_and_says_what_is_wrong() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dual(1.0, 1.0).weight = 2.0  # type: ignore[misc]
    for bad, name in (
        ({"weight": -1.0}, "weight"),
        ({"weight": math.nan}, "weight"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"step": 0.0}, "step"),
    ):
        with pytest.raises(ObjectiveError, match=name):
            Dual(**{"weight": 1.0, "epsilon": 1.0, **bad})
    with pytest.raises(ObjectiveError, match="retain loss"):
        Dual(1.0, 1.0).update(math.nan)
