"""The constrained form of arXiv 2506.05314, for any forget loss: minimise forget subject to retain NLL <= epsilon.

dual = Dual(weight=50.0, epsilon=1.1 * nll_before)
loss = dual.loss(forget, retain)      # each step
dual = dual.update(retain.item())     # each step, or each epoch with the epoch's mean, after a warm-up
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .checks import check_finite, check_positive, check_weight


@dataclass(frozen=True, slots=True)
class Dual:
    """The dual variable and what moves it: an immutable state, so that a checkpoint is three numbers.

    ``weight``: lambda >= 0, the price of the retain term now (the paper's code starts at 50 to 100 for its own
    loss, which is large). ``epsilon``: what the retain NLL may be, a little above what it is before training.
    ``step``: eta. Raises :class:`ObjectiveError` for a value that is not finite or out of range.
    """

    weight: float
    epsilon: float
    step: float = 1.0

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        check_finite("epsilon", self.epsilon)
        check_positive("step", self.step)

    def loss(self, forget: Tensor, retain: Tensor) -> Tensor:
        """The Lagrangian ``forget + weight (retain - epsilon)`` of two scalar losses."""
        return forget + self.weight * (retain - self.epsilon)

    def update(self, retain: float) -> Dual:
        """Projected ascent ``weight <- max(0, weight + step (retain - epsilon))`` for a measured retain NLL."""
        check_finite("retain loss", retain)
        return replace(self, weight=max(0.0, self.weight + self.step * (retain - self.epsilon)))
