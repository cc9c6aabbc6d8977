"""What every objective asks of its arguments; each check raises :class:`ObjectiveError` and changes nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ObjectiveError

_NUMBERS = {2: "two", 4: "four"}


def check_vectors(*vectors: Tensor) -> None:
    """Summed log-probabilities (and what goes with them): vectors [B] of one size, B > 0, the first of floats."""
    shapes = [tuple(vector.shape) for vector in vectors]
    if len(set(shapes)) > 1 or vectors[0].ndim != 1 or not len(vectors[0]):
        raise ObjectiveError(
            f"expected {_NUMBERS[len(vectors)]} vectors [B] with B > 0, got {' and '.join(map(str, shapes))}"
        )
    check_floats(vectors[0])


def check_floats(values: Tensor) -> None:
    """Log-probabilities, logits or hidden states: floats, never token ids."""
    if not values.is_floating_point():
        raise ObjectiveError(f"expected floating-point values, got {values.dtype}: are these token ids?")


def check_positive(name: str, value: float) -> None:
    """A temperature or scale: positive and finite."""
    if not 0 < value < math.inf:
        raise ObjectiveError(f"expected a positive, finite {name}, got {value}")


def check_weight(name: str, value: float) -> None:
    """An exponent, weight or strength: zero or more, and finite."""
    if not 0 <= value < math.inf:
        raise ObjectiveError(f"expected a finite {name} of zero or more, got {value}")


def check_finite(name: str, value: float) -> None:
    """A margin: any finite number."""
    if not math.isfinite(value):
        raise ObjectiveError(f"expected a finite {name}, got {value}")


def check_mask(logps: Tensor, mask: Tensor) -> None:
    """Token log-probabilities and the bool mask of those that count: one shape, at least one counted."""
    if logps.shape != mask.shape:
        raise ObjectiveError(f"logps {tuple(logps.shape)} and mask {tuple(mask.shape)} differ in shape")
    if mask.dtype != torch.bool:
        raise ObjectiveError(f"expected a bool mask, got {mask.dtype}; give `mask.bool()`")
    check_floats(logps)
    if not mask.any():
        raise ObjectiveError("expected at least one counted token, got a mask without any")


def counted(logps: Tensor, mask: Tensor) -> Tensor:
    """The counted tokens' log-probabilities [M] in float32 or wider, after :func:`check_mask`.

    Selecting, not multiplying by zero: what stands outside the mask may be NaN and still reaches neither the
    loss nor a gradient.
    """
    check_mask(logps, mask)
    return logps[mask].to(torch.promote_types(logps.dtype, torch.float32))


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Logits [N, V] at N > 0 answer positions, V > 1, and the answers' token ids [N], all inside the vocabulary.

    A label of -100 is refused: indexing with it would silently mean token V - 100.
    """
    if logits.ndim != 2 or not len(logits) or logits.shape[1] < 2 or targets.shape != logits.shape[:1]:
        raise ObjectiveError(
            "expected logits [N, V] with N > 0 and V > 1 and targets [N], "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    check_floats(logits)
    if targets.dtype != torch.int64:
        raise ObjectiveError(f"expected int64 token ids as targets, got {targets.dtype}")
    low, high = torch.stack(targets.aminmax()).tolist()  # one wait for a GPU, not two
    if low < 0 or high >= logits.shape[1]:
        raise ObjectiveError(
            f"expected token ids in [0, {logits.shape[1]}), got {low if low < 0 else high}; "
            "select the answer positions first, -100 is not a token"
        )


def check_matrices(ours: Tensor, theirs: Tensor) -> None:
    """The model's and the reference's logits or hidden states: matrices of one shape with at least one row."""
    if ours.ndim != 2 or ours.shape != theirs.shape or not len(ours):
        raise ObjectiveError(
            f"expected two matrices [N, V] with N > 0, got {tuple(ours.shape)} and {tuple(theirs.shape)}"
        )
    check_floats(ours)
