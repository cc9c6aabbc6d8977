"""IHL, CE-U, UNDIAL, BS-T and PDU against algebra, a slow second implementation, differences and limits."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objective_kit import (
    Positions,
    cross_entropy,
    f64,
    gradient,
    law,
    mean,
    positions,
    random_logits,
    slope,
    softmax,
)
from torch import Tensor

from efface.adapters import token_logprobs
from efface.adapters.errors import ObjectiveError
from efface.adapters.objectives import bst, ce_u, ihl, pdu, skip_first, undial

MIXES = st.floats(0, 1)
TARGETED: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    ihl,
    ce_u,
    bst,
    lambda logits, targets: undial(logits, targets, logits.detach().flip(-1)),
)
NAMES = ("ihl", "ce_u", "bst", "undial")


def tensors(at: Positions) -> tuple[Tensor, Tensor]:
    return torch.tensor(at[0], dtype=torch.float64), torch.tensor(at[1])


def ascent(logits: Tensor, targets: Tensor) -> Tensor:
    """Gradient ascent from logits, in the logits' own precision."""
    return logits.log_softmax(-1).gather(-1, targets[:, None]).mean()


# --- the second implementation: one row, plain floats; ``frozen`` are the logits whose target has no gradient


def slow_ihl(row: list[float], y: int) -> float:
    p = softmax(row)
    return max(0.0, 1 + p[y] - max(p[v] for v in range(len(p)) if v != y))


def slow_ce_u(row: list[float], frozen: list[float], y: int) -> float:
    weights = [0.0 if v == y else math.exp(z - max(frozen)) for v, z in enumerate(frozen)]
    return cross_entropy(row, [w / sum(weights) for w in weights])


def slow_undial(row: list[float], reference: list[float], y: int, beta: float) -> float:
    return cross_entropy(row, softmax([z - beta if v == y else z for v, z in enumerate(reference)]))


def slow_bst(row: list[float], frozen: list[float], y: int, mix: float, top_k: int) -> float:
    best = sorted(range(len(frozen)), key=lambda v: -frozen[v])[:top_k]
    belief = dict(zip(best, softmax([frozen[v] for v in best]), strict=True))
    target = [mix * belief.get(v, 0.0) + (1 - mix) * (v == y) for v in range(len(row))]
    return -cross_entropy(row, target)


def slow_pdu(row: list[float]) -> float:
    return (max(row) - mean(row)) ** 2


# --- by hand

THIRD = f64(0.5, 0.25, 0.25).log().reshape(1, 3)
FIRST = torch.tensor([0])


def test_ihl_by_hand() -> None:
    assert ihl(THIRD, FIRST).item() == pytest.approx(1 + 0.5 - 0.25)
    assert ihl(THIRD, torch.tensor([1])).item() == pytest.approx(1 + 0.25 - 0.5)


def test_ce_u_by_hand() -> None:
    # Without the first token the rest is (0, 1/2, 1/2); the gradient is p - q.
    assert ce_u(THIRD, FIRST).item() == pytest.approx(math.log(4))
    torch.testing.assert_close(
        gradient(lambda z: ce_u(z, FIRST), THIRD), f64(0.5, -0.25, -0.25).reshape(1, 3)
    )


def test_undial_by_hand() -> None:
    # beta log 2 halves the target's odds: (0.25, 0.25, 0.25), normalised to thirds.
    loss = undial(f64(0.5, 0.25, 0.25).log().reshape(1, 3), FIRST, THIRD, beta=math.log(2))
    assert loss.item() == pytest.approx(-(math.log(0.5) + 2 * math.log(0.25)) / 3)


def test_bst_by_hand() -> None:
    p = f64(0.4, 0.3, 0.2, 0.1)
    # The two likeliest, renormalised: (4/7, 3/7); half of it and half of the target, which is the third.
    loss = bst(p.log().reshape(1, 4), torch.tensor([2]), mix=0.5, top_k=2)
    expected = 0.5 * (4 / 7 * math.log(0.4) + 3 / 7 * math.log(0.3)) + 0.5 * math.log(0.2)
    assert loss.item() == pytest.approx(expected)


def test_pdu_by_hand() -> None:
    logits = f64(3, 1, -1, 1, 0, 0, 0, 4).reshape(2, 4)
    assert pdu(logits).item() == pytest.approx(((3 - 1) ** 2 + (4 - 1) ** 2) / 2)


# --- a slow second implementation


@law
@given(positions())
def test_ihl_ce_u_and_pdu_are_the_slow_ones(at: Positions) -> None:
    logits, targets = tensors(at)
    rows = list(zip(*at, strict=True))
    assert ihl(logits, targets).item() == pytest.approx(mean([slow_ihl(z, y) for z, y in rows]), abs=1e-12)
    assert ce_u(logits, targets).item() == pytest.approx(
        mean([slow_ce_u(z, z, y) for z, y in rows]), rel=1e-9
    )
    assert pdu(logits).item() == pytest.approx(mean([slow_pdu(z) for z in at[0]]), rel=1e-9, abs=1e-12)


@law
@given(positions(), st.floats(0, 30), st.integers(0, 3))
def test_undial_is_the_slow_one(at: Positions, beta: float, roll: int) -> None:
    logits, targets = tensors(at)
    reference = logits.roll(roll, -1) * 0.7
    rows = zip(at[0], reference.tolist(), at[1], strict=True)
    slow = mean([slow_undial(z, ref, y, beta) for z, ref, y in rows])
    assert undial(logits, targets, reference, beta=beta).item() == pytest.approx(slow, rel=1e-9, abs=1e-12)


@law
@given(positions(), MIXES, st.integers(1, 8))
def test_bst_is_the_slow_one(at: Positions, mix: float, top_k: int) -> None:
    logits, targets = tensors(at)
    slow = mean([slow_bst(z, z, y, mix, top_k) for z, y in zip(*at, strict=True)])
    assert bst(logits, targets, mix=mix, top_k=top_k).item() == pytest.approx(slow, rel=1e-9, abs=1e-12)


# --- gradients: more rows than one slice of the fused loss holds

MANY, MANY_TARGETS = random_logits(70, 6), torch.arange(70) % 6


def test_gradients_agree_with_finite_differences() -> None:
    other = random_logits(70, 6, seed=1)
    losses: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda z: ihl(z, MANY_TARGETS),
        lambda z: undial(z, MANY_TARGETS, other, beta=3.0),
        pdu,
        lambda z: 0.3 * ihl(z, MANY_TARGETS),
    )
    for loss in losses:
        assert torch.autograd.gradcheck(loss, (MANY.clone().requires_grad_(),), atol=1e-7)


def test_gradients_of_frozen_targets_agree_with_finite_differences() -> None:
    z, y = MANY[:5], MANY_TARGETS[:5]

    def slow_mean(row_loss: Callable[[list[float], list[float], int], float]) -> Callable[[Tensor], float]:
        return lambda at: mean(
            [row_loss(*row) for row in zip(at.tolist(), z.tolist(), y.tolist(), strict=True)]
        )

    expected = slope(slow_mean(slow_ce_u), z)
    torch.testing.assert_close(gradient(lambda at: ce_u(at, y), z), expected, rtol=1e-6, atol=1e-8)
    for mix, top_k in ((0.2, 3), (1.0, 2), (0.7, 20)):
        expected = slope(slow_mean(lambda a, b, c, m=mix, k=top_k: slow_bst(a, b, c, m, k)), z)
        found = gradient(lambda at, m=mix, k=top_k: bst(at, y, mix=m, top_k=k), z)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_the_reference_gets_no_gradient() -> None:
    ours, theirs = MANY.clone().requires_grad_(), MANY.flip(0).clone().requires_grad_()
    undial(ours, MANY_TARGETS, theirs).backward()
    assert theirs.grad is None
    assert ours.grad is not None


def test_nothing_is_kept_for_a_gradient_that_nobody_wants() -> None:
    assert not ihl(MANY, MANY_TARGETS).requires_grad
    with torch.no_grad():
        assert not ihl(MANY.clone().requires_grad_(), MANY_TARGETS).requires_grad


# --- limits


@law
@given(positions(low=-40, high=40))
def test_ihl_is_between_nought_and_two_for_every_token(at: Positions) -> None:
    logits, targets = tensors(at)
    for row, target in zip(logits, targets, strict=True):
        assert 0.0 <= ihl(row[None], target[None]).item() <= 2.0


def test_ihl_is_two_for_a_certain_target_nought_once_another_is_certain_one_when_undecided() -> None:
    sure = f64(100, 0, 0).reshape(1, 3)
    assert ihl(sure, FIRST).item() == pytest.approx(2)
    assert ihl(sure, torch.tensor([1])).item() == pytest.approx(0)
    assert ihl(f64(0, 0, 0).reshape(1, 3), FIRST).item() == pytest.approx(1)
    # Logits that lie in [0, 1] are logits all the same.
    assert ihl(f64(1, 0).reshape(1, 2), FIRST).item() == pytest.approx(1 + math.tanh(0.5))


def test_ihl_moves_mass_to_the_runner_up_alone() -> None:
    downhill = -gradient(lambda z: ihl(z, FIRST), f64(2, 1, 0, -1).reshape(1, 4))[0]
    assert downhill[0] < 0
    assert downhill[1] == downhill.max()
    assert downhill[1] > 0
    assert downhill[2] > downhill[3] > 0


@law
@given(positions())
def test_ce_u_is_the_entropy_of_the_rest_and_the_targets_cost(at: Positions) -> None:
    logits, targets = tensors(at)
    slow = []
    for row, y in zip(*at, strict=True):
        p = softmax(row)
        rest = [value / sum(p[:y] + p[y + 1 :]) for v, value in enumerate(p) if v != y]
        slow.append(-sum(q * math.log(q) for q in rest) - math.log(sum(p[:y] + p[y + 1 :])))
    assert ce_u(logits, targets).item() == pytest.approx(mean(slow), rel=1e-6, abs=1e-9)


def test_ce_u_lets_go_of_a_target_that_is_gone_and_is_gentle_with_a_certain_one() -> None:
    gone = gradient(lambda z: ce_u(z, FIRST), f64(-60, 1, 0).reshape(1, 3))
    assert gone.abs().max() < 1e-12
    certain = gradient(lambda z: ce_u(z, FIRST), f64(60, 1, 0).reshape(1, 3))
    torch.testing.assert_close(certain[0, 0], f64(1)[0])
    assert certain.abs().max() <= 1.0


@law
@given(positions())
def test_undial_without_strength_is_self_distillation_at_rest(at: Positions) -> None:
    logits, targets = tensors(at)
    found = gradient(lambda z: undial(z, targets, logits, beta=0.0), logits)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)
    entropy = mean([cross_entropy(row, softmax(row)) for row in at[0]])
    assert undial(logits, targets, logits, beta=0.0).item() == pytest.approx(entropy, rel=1e-9, abs=1e-12)


@law
@given(positions())
def test_undial_of_endless_strength_at_its_reference_is_ce_u(at: Positions) -> None:
    logits, targets = tensors(at)
    assert undial(logits, targets, logits, beta=1e4).item() == pytest.approx(
        ce_u(logits, targets).item(), rel=1e-12
    )


@law
@given(positions(), st.integers(1, 8))
def test_bst_without_beliefs_is_gradient_ascent(at: Positions, top_k: int) -> None:
    logits, targets = tensors(at)
    loss = bst(logits, targets, mix=0.0, top_k=top_k)
    assert loss.item() == pytest.approx(ascent(logits, targets).item(), rel=1e-9, abs=1e-12)
    found = gradient(lambda z: bst(z, targets, mix=0.0, top_k=top_k), logits)
    torch.testing.assert_close(found, gradient(lambda z: ascent(z, targets), logits), rtol=1e-9, atol=1e-12)


@law
@given(positions())
def test_bst_of_all_beliefs_is_the_negative_entropy_at_rest_and_of_one_ascends_the_likeliest(
    at: Positions,
) -> None:
    logits, targets = tensors(at)
    entropy = mean([cross_entropy(row, softmax(row)) for row in at[0]])
    assert bst(logits, targets, mix=1.0, top_k=99).item() == pytest.approx(-entropy, rel=1e-9, abs=1e-12)
    found = gradient(lambda z: bst(z, targets, mix=1.0, top_k=99), logits)
    torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-15)
    greedy = ascent(logits, logits.argmax(-1)).item()
    assert bst(logits, targets, mix=1.0, top_k=1).item() == pytest.approx(greedy, rel=1e-9, abs=1e-12)


@law
@given(positions(), st.floats(-50, 50), st.floats(0.1, 3))
def test_pdu_is_nought_for_flat_rows_blind_to_a_shift_and_quadratic(
    at: Positions, shift: float, by: float
) -> None:
    logits, _ = tensors(at)
    loss = pdu(logits).item()
    assert pdu(logits + shift).item() == pytest.approx(loss, rel=1e-9, abs=1e-9)
    assert pdu(logits * by).item() == pytest.approx(loss * by**2, rel=1e-9, abs=1e-12)
    flat = torch.full_like(logits, shift)
    assert pdu(flat).item() == pytest.approx(0, abs=1e-20)
    assert gradient(pdu, flat).abs().max() < 1e-12


@pytest.mark.parametrize("loss", [*TARGETED, lambda z, _: pdu(z)], ids=(*NAMES, "pdu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, 0, -1e4], [-1e4, 1e4, 0], [0, 0, 0]], dtype=dtype).requires_grad_()
    found = loss(logits, torch.tensor([0, 0, 2]))
    found.backward()
    assert found.dtype == torch.float32
    assert found.isfinite()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [*TARGETED, lambda z, _: pdu(z)], ids=(*NAMES, "pdu"))
def test_low_precision_logits_are_weighed_in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = MANY.bfloat16()
    assert loss(logits, MANY_TARGETS).item() == loss(logits.float(), MANY_TARGETS).item()


# --- positions and arguments


def test_bst_agrees_with_our_own_token_log_probabilities() -> None:
    loss = bst(MANY.float(), MANY_TARGETS, mix=0.0)
    torch.testing.assert_close(loss, token_logprobs(MANY.float(), MANY_TARGETS).mean())


@pytest.mark.parametrize("loss", TARGETED, ids=NAMES)
@pytest.mark.parametrize("label", [-100, -1, 6])
def test_a_label_outside_the_vocabulary_is_never_an_index(
    loss: Callable[[Tensor, Tensor], Tensor], label: int
) -> None:
    targets = MANY_TARGETS.clone()
    targets[3] = label
    with pytest.raises(ObjectiveError, match=rf"token ids in \[0, 6\), got {label};.*-100 is not a token"):
        loss(MANY, targets)


@pytest.mark.parametrize("loss", TARGETED, ids=NAMES)
def test_bad_positions_raise(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    for logits, targets in (
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)),
    ):
        with pytest.raises(ObjectiveError, match="expected logits"):
            loss(logits, targets)
    with pytest.raises(ObjectiveError, match="int64 token ids"):
        loss(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ObjectiveError, match="floating-point"):
        loss(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))


def test_bad_numbers_raise() -> None:
    with pytest.raises(ObjectiveError, match="two matrices"):
        undial(MANY, MANY_TARGETS, MANY[:, :3])
    for beta in (-1.0, math.nan, math.inf):
        with pytest.raises(ObjectiveError, match="beta"):
            undial(MANY, MANY_TARGETS, MANY, beta=beta)
    for mix in (-0.1, 1.1, math.nan):
        with pytest.raises(ObjectiveError, match="mix"):
            bst(MANY, MANY_TARGETS, mix=mix)
    with pytest.raises(ObjectiveError, match="top_k"):
        bst(MANY, MANY_TARGETS, top_k=0)
    for logits in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3, 4)):
        with pytest.raises(ObjectiveError, match="expected logits"):
            pdu(logits)


def test_skip_first_leaves_out_each_rows_first_counted_tokens() -> None:
    mask = torch.tensor([[False, True, True, False, True], [True, False, False, False, False]])
    one, none = skip_first(mask), torch.zeros(5, dtype=torch.bool)
    assert one.tolist() == [[False, False, True, False, True], none.tolist()]
    assert skip_first(mask, 2).tolist() == [[False, False, False, False, True], none.tolist()]
    assert torch.equal(skip_first(mask, 0), mask)
    for bad in ((mask.long(), 1), (mask[0], 1), (mask, -1)):
        with pytest.raises(ObjectiveError, match="bool mask"):
            skip_first(*bad)


def test_bst_takes_a_recipe_s_numbers_and_refuses_part_of_a_token() -> None:
    logits, targets = torch.randn(3, 40, generator=torch.manual_seed(0)), torch.tensor([1, 2, 3])
    assert bst(logits, targets, top_k=20.0) == bst(logits, targets, top_k=20)  # type: ignore[arg-type]
    with pytest.raises(ObjectiveError, match="whole top_k"):
        bst(logits, targets, top_k=2.5)  # type: ignore[arg-type]
