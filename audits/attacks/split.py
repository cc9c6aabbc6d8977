"""What a relearning attacker learns, and on which forget rows he is measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from ...adapters.encode import Item
from ..errors import AttackError
from ..run import Probe
from ..types import Group
from .target import Target, items

T = TypeVar("T")
Choice = Literal["random", "shortest", "facts", "neighbour", "unrelated"]


class Chosen(Protocol):
    """The settings that a split is made from: see `Relearn`."""

    @property
    def rows(self) -> Choice: ...  # noqa: D102
    @property
    def fraction(self) -> float: ...  # noqa: D102
    @property
    def limit(self) -> int | None: ...  # noqa: D102
    @property
    def measured(self) -> Literal["unseen", "all"]: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Split:
    """``learnt`` rows, and the forget rows that are ``measured``; neither is empty."""

    learnt: tuple[Item, ...]
    measured: tuple[Probe, ...]


def split(target: Target, request: str | None, chosen: Chosen) -> Split:
    """The rows of one relearning attack on ``request``. Raises `AttackError` where there are none to learn from, or
    none left to measure."""
    forget = target.requests[request]
    if chosen.rows in ("neighbour", "unrelated"):
        return Split(_benign(target, chosen), forget)
    if chosen.rows == "facts":
        learnt, measured = _apart(forget, chosen)
    else:
        learnt = _part(forget, chosen)[: chosen.limit]
        unseen = tuple(probe for probe in forget if probe not in learnt)
        measured = unseen if chosen.measured == "unseen" else forget
    if not measured:
        raise AttackError(
            f"expected forget rows left to measure, got all {len(forget)} relearnt: lower fraction"
        )
    return Split(tuple(items(learnt)), measured)


def facts_of(probes: Sequence[Probe]) -> list[tuple[Probe, ...]]:
    """``probes`` sorted into facts: rows that share a keyword are of one, also by way of a third; a row without
    keywords is one of its own."""
    facts: list[tuple[set[str], list[Probe]]] = []
    for probe in probes:
        words = {word.casefold() for word in probe.item.keywords}
        same = [fact for fact in facts if fact[0] & words]
        rest = [fact for fact in facts if not fact[0] & words]
        joined = (
            words.union(*(fact[0] for fact in same)),
            [*(row for fact in same for row in fact[1]), probe],
        )
        facts = [*rest, joined]
    return [tuple(rows) for _, rows in facts]


def _part(forget: Sequence[Probe], chosen: Chosen) -> tuple[Probe, ...]:
    count = int(chosen.fraction * len(forget) + 1e-9)
    if count < 1:
        raise AttackError(
            f"expected a fraction of at least one of {len(forget)} forget rows, got {chosen.fraction:g}: give more "
            f"rows, or a fraction of {1 / len(forget):.2g}"
        )
    if chosen.rows == "shortest":
        return tuple(sorted(forget, key=lambda probe: len(probe.item.completion))[:count])
    return tuple(_drawn(forget, count, chosen.seed))


def _apart(forget: Sequence[Probe], chosen: Chosen) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    facts = facts_of(forget)
    if len(facts) < 2:
        raise AttackError(
            f"expected at least two facts in {len(forget)} forget rows, got {len(facts)}: all share keywords, so "
            "learning some tells the others"
        )
    count = min(max(1, int(chosen.fraction * len(facts) + 1e-9)), len(facts) - 1)
    learnt = _drawn(range(len(facts)), count, chosen.seed)
    return (
        tuple(row for i in learnt for row in facts[i])[: chosen.limit],
        tuple(row for i, fact in enumerate(facts) if i not in learnt for row in fact),
    )


def _benign(target: Target, chosen: Chosen) -> tuple[Item, ...]:
    groups: tuple[Group, ...] = ("neighbour",) if chosen.rows == "neighbour" else ("unrelated", "retain")
    rows = [probe for group in groups for probe in target.of(group)]
    if not rows:
        raise AttackError(f"expected {' or '.join(groups)} rows to fine-tune on, got none: give some")
    count = len(rows) if chosen.limit is None else min(chosen.limit, len(rows))
    return tuple(items(_drawn(rows, count, chosen.seed)))


def _drawn(rows: Sequence[T], count: int, seed: int) -> list[T]:
    return random.Random(seed).sample(rows, count)  # noqa: S311 - a draw of rows, not a secret
