"""What the objectives' tests share: plain-float second implementations of softmax, strategies, finite differences."""

import math
from collections.abc import Callable, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

law = settings(deadline=None, max_examples=50)
JUNK = (0.0, 7.0, math.nan, math.inf, -math.inf)
SUMS = st.floats(-40, 0)
BETAS = st.floats(0.05, 8)

Rows = Sequence[Sequence[float]]
Positions = tuple[list[list[float]], list[int]]


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softmax(row: Sequence[float]) -> list[float]:
    weights = [math.exp(value - max(row)) for value in row]
    return [weight / sum(weights) for weight in weights]


def log_softmax(row: Sequence[float]) -> list[float]:
    total = max(row) + math.log(sum(math.exp(value - max(row)) for value in row))
    return [value - total for value in row]


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def cross_entropy(row: Sequence[float], target: Sequence[float]) -> float:
    return -sum(q * logp for q, logp in zip(target, log_softmax(row), strict=True) if q > 0)


@st.composite
def positions(draw: st.DrawFn, low: float = -8, high: float = 8) -> Positions:
    """1 to 5 rows of logits over 2 to 6 tokens, and a target in each."""
    width = draw(st.integers(2, 6))
    row = st.lists(st.floats(low, high), min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=1, max_size=5))
    return rows, draw(st.lists(st.integers(0, width - 1), min_size=len(rows), max_size=len(rows)))


@st.composite
def grids(draw: st.DrawFn, low: float = -20) -> tuple[list[list[float]], list[list[bool]]]:
    """Token log-probabilities [B, A] and a mask with at least one True."""
    width = draw(st.integers(1, 5))
    row = st.lists(st.tuples(st.floats(low, 0), st.booleans()), min_size=width, max_size=width)
    rows = draw(
        st.lists(row, min_size=1, max_size=4).filter(lambda rows: any(on for r in rows for _, on in r))
    )
    return [[value for value, _ in r] for r in rows], [[on for _, on in r] for r in rows]


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient that ``loss`` itself reports at ``at``."""
    point = at.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(point), point)
    return found


def slope(loss: Callable[[Tensor], float], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a plain function: what an objective with frozen parts must report."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        up, down = at.clone(), at.clone()
        up.view(-1)[i] += step
        down.view(-1)[i] -= step
        found.view(-1)[i] = (loss(up) - loss(down)) / (2 * step)
    return found


def random_logits(rows: int, width: int, seed: int = 0, *, scale: float = 2.0) -> Tensor:
    """Float64 logits without ties."""
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, width, generator=draw, dtype=torch.float64)
