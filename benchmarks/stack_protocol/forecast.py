"""What overlap of adapters, from their files, says of a stack beforehand, against what the stack then did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from efface.adapters import Part
from efface.adapters.overlap import Overlap, overlaps

from .records import Curve, Record

RISES = ("extraction_strength", "rouge_l", "probability")


def compared(curve: Curve, folders: Mapping[int, Path], n: int) -> dict[str, Any]:
    """The pairs of the stack of ``n`` by forecast, and Spearman's correlation over its requests.

    Between what all others add along a request's change (the sum of their projections on it, below 0 where they undo
    it) and how far the request rose in the stack over its adapter alone. ``folders``: the adapters by author.
    """
    record = curve.stacks[n]
    authors = [one["author"] for one in record["requests"]]
    pairs = overlaps([Part(folders[author]) for author in authors])
    along = _along(pairs, {folders[author]: author for author in authors})
    rises = {key: [_rise(curve, one, key) for one in record["requests"]] for key in RISES}
    return {
        "method": curve.method.name,
        "seed": curve.seed,
        "n": n,
        "pairs": dict(sorted(Counter(pair.forecast for pair in pairs).items())),
        "cosine": [min(pair.cosine for pair in pairs), max(pair.cosine for pair in pairs)],
        "least_projection": min(min(pair.projection, pair.projection_back) for pair in pairs),
        "inputs": max(pair.inputs for pair in pairs),
        "outputs": max(pair.outputs for pair in pairs),
        "rises": {
            key: {"worst": max(found), **_correlated([along[author] for author in authors], found)}
            for key, found in rises.items()
        },
    }


def page(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    """The markdown page."""
    heads = (
        *(
            "method",
            "seed",
            "N",
            "pairs by forecast",
            "cosine",
            "least projection",
            "inputs, outputs at most",
        ),
        *("worst rise in ES", "rho (p)", "worst rise in ROUGE-L", "rho (p)", "rho (p) of probability"),
    )
    lines = [
        "# Overlap of adapters, and what their stack did",
        "",
        f"`{command}`, from the adapters and records of the stacking curve ([page](stack-cpu.md)).",
        "A pair's forecast, cosine, projection and shared directions are those of `efface adapter overlap`.",
        "rho: Spearman's, over the requests of the stack, between the sum of the others' projections on a request's",
        "change and how far it rose over its adapter alone (p two-sided; of so many, one in twenty is small).",
        "A forecast that is worth something has a rho near -1: what is undone comes back.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        *map(_row, rows),
    ]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    low, high = row["cosine"]
    es, rouge, probability = (row["rises"][key] for key in RISES)
    cells = [
        row["method"],
        row["seed"],
        row["n"],
        ", ".join(f"{count} {name}" for name, count in row["pairs"].items()),
        f"{low:.3f} to {high:.3f}",
        f"{row['least_projection']:.3f}",
        f"{row['inputs']:.2f}, {row['outputs']:.2f}",
        f"{es['worst']:.3f}",
        _rho(es),
        f"{rouge['worst']:.3f}",
        _rho(rouge),
        _rho(probability),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _rho(found: Mapping[str, float | None]) -> str:
    return "–" if found["rho"] is None else f"{found['rho']:.2f} ({found['p']:.2f})"


def _along(pairs: Sequence[Overlap], named: Mapping[Path, int]) -> dict[int, float]:
    """What all others add along each author's change."""
    total = dict.fromkeys(named.values(), 0.0)
    for pair in pairs:
        first, second = (named[folder] for folder in pair.folders)
        total[first] += pair.projection
        total[second] += pair.projection_back
    return total


def _rise(curve: Curve, one: Record, key: str) -> float:
    return one[key] - curve.singles[one["author"]]["requests"][0][key]


def _correlated(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """None where one of them does not vary."""
    if min(len(set(first)), len(set(second))) < 2:
        return {"rho": None, "p": None}
    found: Any = spearmanr(first, second)
    return {"rho": float(found.statistic), "p": float(found.pvalue)}
