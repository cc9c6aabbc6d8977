"""From records to a page and a plot: what a request loses by company, by method and N, median over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .columns import COLUMNS, Point
from .page import page
from .records import Curve, Record


def write(out: Path, curves: Sequence[Curve], *, command: str, note: str) -> dict[str, Any]:
    """The page, the data and the plot in ``out``; the data is given back. Raises SystemExit for different people."""
    if len(people := {curve.people for curve in curves}) > 1:
        raise SystemExit(f"expected one set of people, got {sorted(people)}: run the older records again")
    rows = [
        row
        for name in dict.fromkeys(curve.method.name for curve in curves)
        for row in summaries([curve for curve in curves if curve.method.name == name])
    ]
    bases = list({curve.base: curve for curve in curves}.values())
    ends = [
        _ends("before (N = 0)", [(curve.before, curve.without) for curve in bases]),
        _ends("retain-only model", [(curve.without, curve.without) for curve in bases]),
    ]
    records = [record for curve in curves for record in curve.stacks.values()]
    data = {
        "command": command,
        "date": max(record["date"] for record in records),
        "bases": len(bases),
        "people": people.pop(),
        "machine": "; ".join(sorted({record["machine"] for record in records})),
        "versions": max(records, key=lambda record: record["date"])["versions"],
        "references": ends,
        "table": rows,
        "training": _training(curves),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "stack-cpu.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (out / "stack-cpu.md").write_text(page(data, note), encoding="utf-8")
    from .plot import plot

    plot(data, out / "stack-cpu.svg")
    return data


def summaries(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One method: a row for each N with the median, lowest and highest of every figure over seeds."""
    found: list[dict[str, Any]] = []
    for n in sorted({n for curve in curves for n in curve.stacks}):
        points = [
            Point(n, curve.stacks[n], curve.singles, curve.before, curve.without)
            for curve in curves
            if n in curve.stacks
        ]
        figures = {
            label: _spread([value for p in points if (value := figure(p)) is not None])
            for label, figure, _ in COLUMNS
        }
        apart = [p.record["rollback"] for p in points if p.record.get("rollback")]
        found.append(
            {
                "method": curves[0].method.name,
                "n": n,
                "seeds": [curve.seed for curve in curves if n in curve.stacks],
                "figures": {label: spread for label, spread in figures.items() if spread},
                "rollback_exact": [sum(all(one.values()) for one in apart), len(apart)],
            }
        )
    return found


def _training(curves: Sequence[Curve]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in dict.fromkeys(curve.method.name for curve in curves):
        mine = [curve for curve in curves if curve.method.name == name]
        made = [one for curve in mine for one in curve.training]
        seconds = [one["cpu_seconds"] for one in made]
        if not made:
            found[name] = f"{mine[0].method.about}; trains nothing"
            continue
        found[name] = (
            f"{mine[0].method.about}; {len(made)} adapters, {statistics.median(seconds):.0f} CPU-s each "
            f"({min(seconds):.0f}-{max(seconds):.0f}), {statistics.median(one['steps'] for one in made):.0f} steps"
        )
    return found


def _ends(name: str, records: Sequence[tuple[Record, Record]]) -> dict[str, Any]:
    points = [Point(0, record, {}, record, without) for record, without in records]
    figures = {
        label: _spread([v for point in points if (v := figure(point)) is not None])
        for label, figure, _ in COLUMNS
    }
    return {"name": name, "figures": {k: v for k, v in figures.items() if v and not k.endswith(" to N = 0")}}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else {}
