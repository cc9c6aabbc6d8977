"""The figures of a stack's row: what a request loses by company, and what the rest does."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .records import Record


@dataclass(frozen=True, slots=True)
class Point:
    """One stack held against each request's adapter alone and the model before (``full``)."""

    n: int
    record: Record
    singles: Mapping[int, Record]
    full: Record


Figure = Callable[[Point], float | None]
Column = tuple[str, Figure, int]
FORGOTTEN: tuple[Column, ...] = (
    ("ES", lambda p: _mean(p, "extraction_strength"), 3),
    ("worst ES", lambda p: _worst(p, "extraction_strength"), 3),
    ("worst rebound in ES", lambda p: _rebound(p, "extraction_strength"), 3),
    ("probability", lambda p: _mean(p, "probability"), 3),
    ("worst rebound in probability", lambda p: _rebound(p, "probability"), 3),
    ("ROUGE-L", lambda p: _mean(p, "rouge_l"), 3),
    ("fluency", lambda p: _mean(p, "fluency"), 2),
)
REST: tuple[Column, ...] = (
    ("kept probability", lambda p: p.record["kept"]["probability"], 3),
    ("neighbours' probability", lambda p: p.record["neighbours"]["probability"], 3),
    ("neighbours' ROUGE-L", lambda p: p.record["neighbours"]["rouge_l"], 3),
    ("world's probability", lambda p: p.record["world"]["probability"], 3),
    ("utility", lambda p: p.record["utility"], 3),
    ("utility to N = 0", lambda p: p.record["utility"] / p.full["utility"], 3),
    ("utility of persons to N = 0", lambda p: _taught(p.record) / _taught(p.full), 3),
    ("rank", lambda p: p.record.get("rank"), 0),
    ("compose s", lambda p: p.record.get("compose_seconds"), 2),
)
COLUMNS = (*FORGOTTEN, *REST)


def _mean(point: Point, key: str) -> float:
    return statistics.fmean(one[key] for one in point.record["requests"])


def _worst(point: Point, key: str) -> float:
    return max(one[key] for one in point.record["requests"])


def _rebound(point: Point, key: str) -> float | None:
    """The largest rise of a request over its own adapter alone; None where the method has no such adapters."""
    pairs = [(one[key], point.singles.get(one["author"])) for one in point.record["requests"]]
    rises = [value - single["requests"][0][key] for value, single in pairs if single is not None]
    return max(rises) if len(rises) == len(pairs) else None


def _taught(record: Record) -> float:
    """The utility of what was memorised and is to stay, without the world."""
    return statistics.harmonic_mean(
        [
            record[side][figure]
            for side in ("kept", "neighbours")
            for figure in ("probability", "rouge_l", "truth_ratio")
        ]
    )
