"""Two audits side by side: means, their difference with a confidence interval, and which of them is better.

Where both measured the same rows (their keyed hashes match) rows are compared in pairs, which is far sharper than two
separate samples; the report says which it was. Better is less on what is to be forgotten, more on what is to be kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .document import SCHEMA
from .errors import AuditError, IncomparableError
from .types import FORGET_SIDE, GROUPS, Json

Better = Literal["A", "B", "neither"]
FIGURES = ("probability", "extraction_strength", "exact_memorization", "rouge_l", "mentioned")
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of one group: means over ``n_a`` and ``n_b`` rows, and B less A with its 95 % interval.

    ``paired``: over the rows that both measured, ``n_a`` of them. ``better`` is "neither" where the interval holds 0.
    """

    group: str
    figure: str
    a: float
    b: float
    n_a: int
    n_b: int
    difference: float
    low: float
    high: float
    paired: bool
    better: Better

    def to_json(self) -> Json:
        """Plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Side:
    """What an audit's "after" measured: rows by group, each with its hash under the key that it names."""

    name: str
    precision: str
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Group → hash (or "request/id" where the report has none) → the row's figures."""
    keyed: bool


def read_side(document: bytes | str, name: str) -> Side:
    """The audited side of a report, as `AuditReport.to_json` writes it. Raises `AuditError` for anything else."""
    try:
        report: Any = json.loads(document)
        if report["schema"] != SCHEMA:
            raise AuditError(
                f"{name}: expected a report of schema {SCHEMA}, got {str(report['schema'])[:40]!r}"
            )
        after = next(one for one in report["evaluations"] if one["label"] == report["after"])
        hashes = _hashes(report.get("suite"))
        rows: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in after["rows"]:
            key = (row["request"], row["group"], row["id"])
            rows.setdefault(str(row["group"]), {})[hashes.get(key) or json.dumps(key)] = row
        return Side(name, str(after["precision"]), rows, bool(hashes))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        raise AuditError(
            f"{name}: expected an audit report as `efface audit run --json FILE` writes it, got something else "
            f"({type(error).__name__})"
        ) from None


def compare(a: Side, b: Side, *, seed: int = 0) -> tuple[Compared, ...]:
    """Every figure of every group that both measured.

    Raises `IncomparableError` for audits at different precisions, and for audits that share no group.
    """
    if a.precision != b.precision:
        raise IncomparableError(
            f"expected two audits at one precision, got {a.precision!r} and {b.precision!r}: quantizing alone changes "
            "the figures (arXiv 2410.16454); audit one of them again"
        )
    shared = [group for group in GROUPS if a.rows.get(group) and b.rows.get(group)]
    if not shared:
        raise IncomparableError(
            f"expected a group that both measured, got {sorted(a.rows)} and {sorted(b.rows)}"
        )
    found = (_compared(a, b, group, figure, seed) for group in shared for figure in FIGURES)
    return tuple(one for one in found if one is not None)


def _compared(a: Side, b: Side, group: str, figure: str, seed: int) -> Compared | None:
    ours, theirs = a.rows[group], b.rows[group]
    common = [key for key in ours if key in theirs and _has(ours[key], figure) and _has(theirs[key], figure)]
    paired = a.keyed and b.keyed and bool(common)
    left = _values([ours[key] for key in common] if paired else list(ours.values()), figure)
    right = _values([theirs[key] for key in common] if paired else list(theirs.values()), figure)
    if not left.size or not right.size:
        return None
    low, high = _interval(left, right, paired, seed)
    difference = float(right.mean() - left.mean())
    better: Better = "neither"
    if low > 0 or high < 0:
        better = "A" if (difference > 0) == (group in FORGET_SIDE) else "B"
    means = float(left.mean()), float(right.mean())
    return Compared(group, figure, *means, left.size, right.size, difference, low, high, paired, better)


def _interval(left: np.ndarray, right: np.ndarray, paired: bool, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of the difference of means, of pairs or of both sides on their own."""
    draw = np.random.default_rng(seed)
    picks = draw.integers(0, left.size, (_RESAMPLES, left.size))
    other = picks if paired else draw.integers(0, right.size, (_RESAMPLES, right.size))
    differences = right[other].mean(axis=1) - left[picks].mean(axis=1)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _hashes(suite: Any) -> dict[tuple[Any, Any, Any], str]:
    rows: Sequence[Any] = [] if suite is None else suite["rows"]
    return {(r["request"], r["group"], r["id"]): f"{r['key']}:{r['hash']}" for r in rows}


def _has(row: Mapping[str, Any], figure: str) -> bool:
    return row.get(figure) is not None


def _values(rows: Sequence[Mapping[str, Any]], figure: str) -> np.ndarray:
    values = np.asarray([float(row[figure]) for row in rows if _has(row, figure)])
    if not np.isfinite(values).all():
        raise AuditError(
            f"expected finite figures of {figure}, got others: this report was not written by efface"
        )
    return values
