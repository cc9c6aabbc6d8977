"""The losses against algebra written out, a slow second implementation, and the limits their papers state."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import kl_div

from efface.adapters.errors import ObjectiveError
from efface.adapters.objectives import npo, retain_kl, retain_nll, simnpo

SUMS = st.floats(-40, 0)
BETAS = st.floats(0.05, 8)
LOGITS = st.floats(-8, 8)
law = settings(deadline=None)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softplus(x: float) -> float:
    """-log sigmoid(-x), the second implementation's only building block."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def slow_npo(s: Sequence[float], ref: Sequence[float], beta: float) -> float:
    return sum(2 / beta * softplus(beta * (a - b)) for a, b in zip(s, ref, strict=True)) / len(s)


def slow_simnpo(s: Sequence[float], lengths: Sequence[int], beta: float, delta: float) -> float:
    terms = (2 / beta * softplus(beta * a / n + delta) for a, n in zip(s, lengths, strict=True))
    return sum(terms) / len(s)


def slow_softmax(row: Sequence[float]) -> list[float]:
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


# --- by hand


def test_npo_by_hand() -> None:
    # s - s_ref is 1 and -1, beta 0.5: sigmoid(-0.5) and sigmoid(0.5); 2 / 0.5 = 4 times their mean -log.
    loss = npo(f64(-1, -3), f64(-2, -2), beta=0.5)
    assert loss.item() == pytest.approx(4 * (math.log(1 + math.e**0.5) + math.log(1 + math.e**-0.5)) / 2)


def test_simnpo_by_hand() -> None:
    # s/|y| is -1 and -2, beta 2, delta 0.5: the sigmoid's arguments are 2 - 0.5 and 4 - 0.5; 2 / 2 = 1.
    loss = simnpo(f64(-2, -6), torch.tensor([2, 3]), beta=2.0, delta=0.5)
    assert loss.item() == pytest.approx((math.log(1 + math.e**-1.5) + math.log(1 + math.e**-3.5)) / 2)


def test_retain_nll_by_hand_is_a_mean_over_tokens_not_over_rows() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert retain_nll(f64(-1, -2, 0, -6, 0, 0).reshape(2, 3), mask).item() == pytest.approx((1 + 2 + 6) / 3)


def test_retain_kl_by_hand_is_of_the_reference_from_the_model() -> None:
    ours = torch.tensor([[0.5, 0.5], [0.2, 0.8]]).log()
    reference = torch.tensor([[0.25, 0.75], [0.2, 0.8]]).log()
    expected = (0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5) + 0.0) / 2
    assert retain_kl(ours, reference).item() == pytest.approx(expected, rel=1e-5)
    assert retain_kl(reference, ours).item() != pytest.approx(expected, rel=1e-2)


# --- a slow second implementation

npo_rows = st.lists(st.tuples(SUMS, SUMS), min_size=1, max_size=5)
simnpo_rows = st.lists(st.tuples(SUMS, st.integers(1, 30)), min_size=1, max_size=5)


@law
@given(npo_rows, BETAS)
def test_npo_is_the_slow_one(rows: list[tuple[float, float]], beta: float) -> None:
    s, ref = zip(*rows, strict=True)
    assert npo(f64(*s), f64(*ref), beta=beta).item() == pytest.approx(slow_npo(s, ref, beta), rel=1e-12)


@law
@given(simnpo_rows, BETAS, st.floats(-2, 2))
def test_simnpo_is_the_slow_one(rows: list[tuple[float, int]], beta: float, delta: float) -> None:
    s, lengths = zip(*rows, strict=True)
    loss = simnpo(f64(*s), torch.tensor(lengths), beta=beta, delta=delta)
    assert loss.item() == pytest.approx(slow_simnpo(s, lengths, beta, delta), rel=1e-12)


@law
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(LOGITS, min_size=2 * n, max_size=2 * n), min_size=1)
    )
)
def test_retain_kl_is_the_slow_one_and_torchs(rows: list[list[float]]) -> None:
    half = len(rows[0]) // 2
    ours, reference = [row[:half] for row in rows], [row[half:] for row in rows]
    slow = 0.0
    for model, base in zip(map(slow_softmax, ours), map(slow_softmax, reference), strict=True):
        slow += sum(q * math.log(q / p) for p, q in zip(model, base, strict=True)) / len(rows)
    both = [torch.tensor(values, dtype=torch.float64) for values in (ours, reference)]
    loss = retain_kl(*both)
    theirs = kl_div(*(logits.log_softmax(-1) for logits in both), reduction="batchmean", log_target=True)
    assert loss.item() == pytest.approx(slow, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(loss, theirs, rtol=1e-9, atol=1e-12)
    assert loss.item() >= -1e-12
    assert retain_kl(*(logits.float() for logits in both)).item() == pytest.approx(slow, rel=1e-4, abs=1e-6)


# --- gradients


def test_gradients_agree_with_finite_differences() -> None:
    s, ref = f64(-3, -0.5, -12).requires_grad_(), f64(-2, -1, -11)
    lengths = torch.tensor([3, 1, 7])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    grid = f64(-1, -2, -3, -4, -5, -6).reshape(2, 3).requires_grad_()
    many = torch.randn(70, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: npo(x, ref, beta=0.3), s),
        (lambda x: simnpo(x, lengths, beta=2.5, delta=0.2), s),
        (lambda x: retain_nll(x, mask), grid),
        # More rows than one slice of the fused loss holds.
        (lambda x: retain_kl(x, many.flip(0)), many.clone().requires_grad_()),
    ]
    for loss, at in losses:
        assert torch.autograd.gradcheck(loss, (at,), eps=1e-6, atol=1e-8)


@law
@given(npo_rows, BETAS)
def test_npo_gradient_is_gradient_ascent_weighted_by_two_sigmoids(
    rows: list[tuple[float, float]], beta: float
) -> None:
    # arXiv 2404.05868 §3.2: W = 2 p^beta / (p^beta + p_ref^beta)
    s, ref = (f64(*values) for values in zip(*rows, strict=True))
    s.requires_grad_()
    npo(s, ref, beta=beta).backward()
    ours, theirs = (beta * s.detach()).exp(), (beta * ref).exp()
    torch.testing.assert_close(s.grad, 2 * ours / (ours + theirs) / len(rows))


def test_retain_kl_gradient_is_the_difference_of_the_two_distributions() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, reference = (torch.randn(4, 6, generator=draw) for _ in range(2))
    ours.requires_grad_()
    retain_kl(ours, reference).backward()
    expected = (ours.detach().softmax(-1) - reference.softmax(-1)) / 4
    torch.testing.assert_close(ours.grad, expected, rtol=1e-4, atol=1e-6)


# --- limits


@law
@given(npo_rows)
def test_npo_gradient_becomes_gradient_ascents_as_beta_vanishes(rows: list[tuple[float, float]]) -> None:
    s, ref = (f64(*values) for values in zip(*rows, strict=True))
    s.requires_grad_()
    npo(s, ref, beta=1e-7).backward()
    ascent = s.detach().clone().requires_grad_()
    ascent.mean().backward()  # gradient ascent on the answers minimises their mean log-probability
    torch.testing.assert_close(s.grad, ascent.grad, rtol=1e-5, atol=0)


@law
@given(st.lists(SUMS, min_size=1, max_size=5), BETAS)
def test_npo_at_its_reference_is_two_over_beta_log_two(sums: list[float], beta: float) -> None:
    assert npo(f64(*sums), f64(*sums), beta=beta).item() == pytest.approx(2 / beta * math.log(2))


def test_npo_fades_once_the_answer_is_gone_and_survives_extremes() -> None:
    s = f64(-1e4, -60, 1e4).requires_grad_()
    loss = npo(s, f64(0, 0, 0), beta=0.5)
    loss.backward()
    assert loss.isfinite()
    assert s.grad is not None
    torch.testing.assert_close(s.grad, f64(0, 0, 2 / 3), rtol=0, atol=1e-12)


@law
@given(SUMS, st.integers(1, 20), st.integers(2, 6), BETAS)
def test_simnpo_without_margin_ignores_length(mean: float, length: int, times: int, beta: float) -> None:
    once = simnpo(f64(mean * length), torch.tensor([length]), beta=beta)
    longer = simnpo(f64(mean * length * times), torch.tensor([length * times]), beta=beta)
    assert longer.item() == pytest.approx(once.item(), rel=1e-9, abs=1e-12)


def test_npo_does_not_ignore_length() -> None:
    short, long = npo(f64(-2), f64(-1), beta=0.5), npo(f64(-20), f64(-10), beta=0.5)
    assert short.item() > 1.2 * long.item()


@law
@given(SUMS, st.integers(1, 20), BETAS, st.floats(0.1, 2))
def test_a_margin_asks_for_more_forgetting(s: float, length: int, beta: float, delta: float) -> None:
    lengths = torch.tensor([length])
    assert simnpo(f64(s), lengths, beta=beta, delta=delta) > simnpo(f64(s), lengths, beta=beta)


@law
@given(st.lists(LOGITS, min_size=1, max_size=8), st.floats(-50, 50))
def test_retain_kl_of_equal_policies_is_zero(row: list[float], shift: float) -> None:
    logits = torch.tensor([row, row[::-1]])
    assert retain_kl(logits, logits).item() == 0.0
    assert retain_kl(logits + shift, logits).item() == pytest.approx(0.0, abs=1e-5)


@law
@given(
    st.lists(st.tuples(SUMS, st.booleans()), min_size=1, max_size=8).filter(
        lambda row: any(on for _, on in row)
    ),
    st.sampled_from([0.0, 7.0, math.nan, -math.inf]),
)
def test_retain_nll_never_counts_masked_positions(row: list[tuple[float, bool]], junk: float) -> None:
    mask = torch.tensor([[on for _, on in row]])
    logps = f64(*(value if on else junk for value, on in row)).reshape(1, -1).requires_grad_()
    loss = retain_nll(logps, mask)
    loss.backward()
    kept = [value for value, on in row if on]
    assert loss.item() == pytest.approx(-sum(kept) / len(kept))
    assert logps.grad is not None
    torch.testing.assert_close(logps.grad, -mask.double() / len(kept))


def test_low_precision_logits_are_compared_in_float32() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, reference = (torch.randn(3, 50, generator=draw).bfloat16() for _ in range(2))
    loss = retain_kl(ours, reference)
    assert loss.dtype == torch.float32
    assert loss.item() == retain_kl(ours.float(), reference.float()).item()


# --- arguments that make no sense

BAD_VECTORS = [
    (f64(-1, -2), f64(-1, -2, -3)),
    (f64(-1).reshape(1, 1), f64(-1)),
    (f64(), f64()),
    (f64(-1)[0], f64(-1)[0]),
]


@pytest.mark.parametrize(("logps", "other"), BAD_VECTORS, ids=["sizes", "matrix", "empty", "scalar"])
def test_bad_vectors_raise(logps: Tensor, other: Tensor) -> None:
    for loss in (npo, simnpo):
        with pytest.raises(ObjectiveError, match="two vectors"):
            loss(logps, other)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_bad_beta_raises(beta: float) -> None:
    with pytest.raises(ObjectiveError, match="beta"):
        npo(f64(-1), f64(-1), beta=beta)
    with pytest.raises(ObjectiveError, match="beta"):
        simnpo(f64(-1), torch.tensor([1]), beta=beta)


def test_bad_retain_arguments_raise() -> None:
    with pytest.raises(ObjectiveError, match=r"\(1, 2\) and mask \(2,\)"):
        retain_nll(torch.zeros(1, 2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ObjectiveError, match="at least one counted token"):
        retain_nll(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    for ours, theirs in (((2, 3), (2, 4)), ((3,), (3,)), ((0, 3), (0, 3))):
        with pytest.raises(ObjectiveError, match="two matrices"):
            retain_kl(torch.zeros(ours), torch.zeros(theirs))
