"""The figures of a stack's row: what a request loses by company, and what the rest does."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .records import Record


@dataclass(frozen=True, slots=True)
class Point:
    """One stack held against each request's adapter alone, the model before (``full``) and the retain-only one."""

    n: int
    record: Record
    singles: Mapping[int, Record]
    full: Record
    without: Record


Figure = Callable[[Point], float | None]
Column = tuple[str, Figure, int]
FORGOTTEN: tuple[Column, ...] = (
    ("ES", lambda p: _mean(p, "extraction_strength"), 3),
    ("ES alone", lambda p: _alone(p, "extraction_strength"), 3),
    ("worst ES", lambda p: _worst(p, "extraction_strength"), 3),
    ("worst rebound in ES", lambda p: _rebound(p, "extraction_strength"), 3),
    ("more ES than retain-only", lambda p: _above(p, "extraction_strength"), 0),
    ("probability", lambda p: _mean(p, "probability"), 3),
    ("worst rebound in probability", lambda p: _rebound(p, "probability"), 3),
)
SAID: tuple[Column, ...] = (
    ("ROUGE-L", lambda p: _mean(p, "rouge_l"), 3),
    ("ROUGE-L alone", lambda p: _alone(p, "rouge_l"), 3),
    ("worst ROUGE-L", lambda p: _worst(p, "rouge_l"), 3),
    ("worst rebound in ROUGE-L", lambda p: _rebound(p, "rouge_l"), 3),
    ("more ROUGE-L than retain-only", lambda p: _above(p, "rouge_l"), 0),
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
COLUMNS = (*FORGOTTEN, *SAID, *REST)


def _mean(point: Point, key: str) -> float:
    return statistics.fmean(_values(point, key))


def _worst(point: Point, key: str) -> float:
    return max(_values(point, key))


def _rebound(point: Point, key: str) -> float | None:
    """The largest rise of a request over its own adapter alone; None where the method has no such adapters."""
    alone = _singles(point, key)
    return None if alone is None else max(map(operator.sub, _values(point, key), alone))


def _alone(point: Point, key: str) -> float | None:
    """The mean over the requests of the stack, each with its own adapter alone; None as `_rebound`."""
    alone = _singles(point, key)
    return None if alone is None else statistics.fmean(alone)


def _singles(point: Point, key: str) -> list[float] | None:
    found = [point.singles.get(one["author"]) for one in point.record["requests"]]
    values = [single["requests"][0][key] for single in found if single is not None]
    return values if len(values) == len(found) else None


def _above(point: Point, key: str) -> int:
    """Requests of which more is told than by the model that never heard of them."""
    told = {one["author"]: one[key] for one in point.without["requests"]}
    return sum(one[key] > told[one["author"]] for one in point.record["requests"])


def _values(point: Point, key: str) -> list[float]:
    return [one[key] for one in point.record["requests"]]


def _taught(record: Record) -> float:
    """The utility of what was memorised and is to stay, without the world."""
    return statistics.harmonic_mean(
        [
            record[side][figure]
            for side in ("kept", "neighbours")
            for figure in ("probability", "rouge_l", "truth_ratio")
        ]
    )
