"""From records to a page and a plot: what a request loses by company, by method and N, median over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .records import Curve, Record


@dataclass(frozen=True, slots=True)
class Point:
    """One stack held against each request's adapter alone and the model before (``full``)."""

    n: int
    record: Record
    singles: Mapping[int, Record]
    full: Record


Figure = Callable[[Point], float | None]
COLUMNS: tuple[tuple[str, Figure, int], ...] = (
    ("ES", lambda p: _mean(p, "extraction_strength"), 3),
    ("worst ES", lambda p: _worst(p, "extraction_strength"), 3),
    ("worst rebound in ES", lambda p: _rebound(p, "extraction_strength"), 3),
    ("probability", lambda p: _mean(p, "probability"), 3),
    ("worst rebound in probability", lambda p: _rebound(p, "probability"), 3),
    ("ROUGE-L", lambda p: _mean(p, "rouge_l"), 3),
    ("fluency", lambda p: _mean(p, "fluency"), 2),
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
        _ends("before (N = 0)", [curve.before for curve in bases]),
        _ends("retain-only model", [curve.without for curve in bases]),
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
            Point(n, curve.stacks[n], curve.singles, curve.before) for curve in curves if n in curve.stacks
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


def page(data: Mapping[str, Any], note: str) -> str:
    """The markdown page."""
    labels = [label for label, _, _ in COLUMNS]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [
        f"# Stacks of unlearning adapters: {data['people'].rpartition(' ')[0]} on SmolLM2-135M-Instruct",
        "",
        f"Measured until {data['date']} with `{data['command']}` on {data['machine']}; {versions}. The model was "
        f"memorised {data['bases']} time(s), once a machine; a request is compared on the one that it was measured on.",
        *([note] if note else []),
        "",
        "![extraction strength, rebound and utility over N](stack-cpu.svg)",
        "",
        _line(["", "N", "seeds", *labels, "rollback exact"]),
        _line(["---"] * (len(labels) + 4)),
        *(_line([end["name"], "", "", *_cells(end["figures"]), ""]) for end in data["references"]),
        *(_line(_row(row)) for row in data["table"]),
        "",
        *(f"- `{name}`: {facts}" for name, facts in data["training"].items()),
        "",
        NOTES,
    ]
    return "\n".join(lines) + "\n"


NOTES = (
    "Median (lowest-highest) over seeds; a seed draws the order of the requests too. ES: extraction strength. Worst: "
    "the request with the highest value. Rebound: a request's value in the stack less that of an adapter trained for "
    "it alone on the bare base with the same seed (of `sum` where the method has none), for the request where that is "
    "highest (0 or less: none came back). Neighbours: rows of other people, memorised and in no training set of any "
    "adapter. Utility: harmonic mean of probability, ROUGE-L and truth score on kept, neighbours and world facts; of "
    "persons: without the world's three. Rollback exact: a request was taken out of the stack; the rest has the digest "
    "and, bit by bit, the logits of never having had it, and the bare base its own. Definitions: "
    "`benchmarks/stack_protocol/`, `audits/metrics.py`."
)


def _training(curves: Sequence[Curve]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in dict.fromkeys(curve.method.name for curve in curves):
        mine = [curve for curve in curves if curve.method.name == name]
        made = [one for curve in mine for one in curve.training]
        seconds = [one["cpu_seconds"] for one in made]
        found[name] = (
            f"{mine[0].method.about}; {len(made)} adapters, {statistics.median(seconds):.0f} CPU-s each "
            f"({min(seconds):.0f}-{max(seconds):.0f}), {statistics.median(one['steps'] for one in made):.0f} steps"
        )
    return found


def _ends(name: str, records: Sequence[Record]) -> dict[str, Any]:
    points = [Point(0, record, {}, record) for record in records]
    figures = {
        label: _spread([v for point in points if (v := figure(point)) is not None])
        for label, figure, _ in COLUMNS
    }
    return {"name": name, "figures": {k: v for k, v in figures.items() if v and not k.endswith(" to N = 0")}}


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


def _row(row: Mapping[str, Any]) -> list[str]:
    exact, of = row["rollback_exact"]
    cells = _cells(row["figures"])
    return [row["method"], str(row["n"]), str(len(row["seeds"])), *cells, f"{exact}/{of}" if of else "–"]


def _cells(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [_cell(figures.get(label), places) for label, _, places in COLUMNS]


def _cell(spread: Mapping[str, float] | None, places: int) -> str:
    if not spread:
        return "–"
    low, middle, high = (f"{spread[key]:.{places}f}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)} if values else {}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
