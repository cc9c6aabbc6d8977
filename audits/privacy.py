"""Membership inference over a model's rows: five attacks compared on forget and holdout rows, each with interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import MetricError
from .membership import auc, auc_ci
from .types import Membership

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
"""The attacks that need no reference model: the fields of `Membership`."""


@dataclass(frozen=True, slots=True)
class Attacked:
    """``auc`` of one attack (0.5: an attacker guesses; both ends leak), its 95 % interval, and the rows compared."""

    attack: str
    auc: float
    low: float
    high: float
    n_forget: int
    n_holdout: int

    @property
    def leaks(self) -> bool:
        """Whether the interval leaves 0.5 out, on either side: the two sets are told apart."""
        return not self.low <= 0.5 <= self.high


def membership_attacks(
    forget: Sequence[Membership], holdout: Sequence[Membership], *, n: int = 1000, seed: int = 0
) -> tuple[Attacked, ...]:
    """Every attack of `ATTACKS`, in that order, from the scores that `evaluate` writes into its rows.

    ``holdout``: rows of the same kind that no training saw; with others the AUC says how the texts differ.
    Raises `MetricError` where either side has no rows.
    """
    if not forget or not holdout:
        raise MetricError(
            f"membership_attacks: expected forget and holdout rows, got {len(forget)} and {len(holdout)}; give rows "
            "of the same kind that no training saw"
        )
    return tuple(_attacked(name, forget, holdout, n, seed) for name in ATTACKS)


def _attacked(
    name: str, forget: Sequence[Membership], holdout: Sequence[Membership], n: int, seed: int
) -> Attacked:
    ours, theirs = ([getattr(row, name) for row in rows] for rows in (forget, holdout))
    low, high = auc_ci(ours, theirs, n=n, seed=seed)
    return Attacked(name, auc(ours, theirs), low, high, len(ours), len(theirs))
