"""Attacks over rows: each is the AUC of its own scores; over-unlearning leaks as forgetting too little does."""

import numpy as np
import pytest

from efface.audits import MetricError
from efface.audits.membership import auc, auc_ci
from efface.audits.privacy import ATTACKS, Attacked, membership_attacks
from efface.audits.types import Membership


def rows(n: int, seed: int, shift: float = 0.0) -> list[Membership]:
    """Scores that differ from attack to attack."""
    draws = np.random.default_rng(seed).normal(5.0 + shift, 1.0, (n, 4)) + np.arange(4)
    return [Membership(*map(float, draw)) for draw in draws]


def test_every_attack_compares_its_own_scores() -> None:
    forget, holdout = rows(30, 0), rows(20, 1, 0.5)
    found = membership_attacks(forget, holdout, n=50, seed=3)
    assert [attack.attack for attack in found] == list(ATTACKS) == list(Membership.__slots__)
    assert len({attack.auc for attack in found}) == 4
    for attack in found:
        ours, theirs = ([getattr(row, attack.attack) for row in side] for side in (forget, holdout))
        assert attack.auc == auc(ours, theirs)
        assert (attack.low, attack.high) == auc_ci(ours, theirs, n=50, seed=3)
        assert (attack.n_forget, attack.n_holdout) == (30, 20)


@pytest.mark.parametrize(("shift", "leaks"), [(2.0, True), (0.0, False), (-2.0, True)])
def test_both_sides_leak(shift: float, leaks: bool) -> None:
    """Forget rows likelier than the holdout's (known), alike, and less likely (over-unlearned)."""
    found = membership_attacks(rows(40, 0), rows(40, 1, shift))
    assert {attack.leaks for attack in found} == {leaks}
    assert all((attack.auc > 0.5) is (shift > 0) for attack in found if leaks)


def test_an_interval_that_ends_at_a_half_does_not_leak() -> None:
    assert not Attacked("loss", 0.7, 0.5, 0.9, 5, 5).leaks
    assert Attacked("loss", 0.7, 0.51, 0.9, 5, 5).leaks


@pytest.mark.parametrize(("forget", "holdout"), [(0, 3), (3, 0), (0, 0)])
def test_sets_without_rows_are_refused(forget: int, holdout: int) -> None:
    with pytest.raises(MetricError, match=f"got {forget} and {holdout}; give rows"):
        membership_attacks(rows(forget, 0), rows(holdout, 1))
