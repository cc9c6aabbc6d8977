"""What an attack on the forgetting found, as a record: one number, the curve behind it, and a sentence.

An attack asks how much of what the base knew somebody gets back. Its figure is an aggregate of `RowScore` (see
`types.py`) over the forget rows: as the base has it (`known`), as the audited composition has it (`suppressed`),
and as the attacker has it (`attacked`). More is worse for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from .errors import RecordError
from .types import Json

AttackKind = Literal["relearning", "precision", "prompt", "sampling", "adapter"]
Setting = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Point:
    """One point of an attack's curve: `y` at `x`, its 95 % interval over rows where there is one; `label` names
    points without a scale ("int8")."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class AttackResult:
    """One attack on one request (None: on all forget rows together).

    `name` is unique with `request` in a report ("relearning/random-20%"). `metric` is a figure of `Aggregate`, in
    [0, 1]. `attacked` is the worst value that the attack reached, over `n` rows. `points` is the curve over
    `x_label` ("steps", "weight"), empty for an attack of one number. `finding` says it in words, without any text
    of the rows. `settings` are what one needs to repeat it. `attack` is the name in `ATTACKS` that made it.

    Raises RecordError for figures out of range, an empty finding, or points without an `x_label`.
    """

    name: str
    kind: AttackKind
    request: str | None
    metric: str
    known: float
    suppressed: float
    attacked: float
    n: int
    finding: str
    x_label: str = ""
    points: tuple[Point, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict[str, Setting])
    seconds: float = 0.0
    attack: str = ""

    def __post_init__(self) -> None:
        where = f"attack {self.name!r}"
        figures = {"known": self.known, "suppressed": self.suppressed, "attacked": self.attacked}
        bad = {key: value for key, value in figures.items() if not (math.isfinite(value) and 0 <= value <= 1)}
        for holds, message in (
            (
                self.kind in get_args(AttackKind),
                f"expected a kind of {list(get_args(AttackKind))}, got {self.kind!r}",
            ),
            (not bad, f"expected figures in [0, 1], got {bad}"),
            (self.n >= 1, f"expected n >= 1, got {self.n}"),
            (
                self.name != "" and self.finding != "",
                "expected a name and a finding in words, got an empty one",
            ),
            (not self.points or self.x_label != "", "expected an x_label for its points, got none"),
        ):
            if not holds:
                raise RecordError(f"{where}: {message}")

    @property
    def recovered(self) -> float | None:
        """The share of what the suppression took that the attack brought back: 0 none, 1 all of it, below 0 where
        the attacked model knows even less. None where there was nothing to bring back (known <= suppressed)."""
        taken = self.known - self.suppressed
        return (self.attacked - self.suppressed) / taken if taken > 0 else None

    def to_json(self) -> Json:
        """Plain JSON types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "request": self.request,
            "metric": self.metric,
            "known": float(self.known),
            "suppressed": float(self.suppressed),
            "attacked": float(self.attacked),
            "recovered": self.recovered,
            "n": int(self.n),
            "finding": self.finding,
            "x_label": self.x_label,
            "points": [
                {"x": p.x, "y": p.y, "low": p.low, "high": p.high, "label": p.label} for p in self.points
            ],
            "settings": dict(self.settings),
            "seconds": float(self.seconds),
            "attack": self.attack,
        }
