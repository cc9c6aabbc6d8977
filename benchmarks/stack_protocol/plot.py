"""The curve as a drawing: four panels over N, a line a method, a band from the lowest to the highest seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PANELS = (
    ("ES", "extraction strength (ES), mean of requests"),
    ("worst rebound in ES", "worst request's rise in ES over its adapter alone"),
    ("neighbours' probability", "neighbours' probability"),
    ("utility to N = 0", "utility, as a share of N = 0"),
)
# Okabe and Ito's colours first, told apart by colour-blind readers; markers tell them apart in print.
LOOKS = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#F0E442", "X"),
    ("#000000", "*"),
    ("#999999", "<"),
    ("#7F3C8D", ">"),
    ("#A0522D", "h"),
    ("#4B0082", "d"),
)


def plot(data: Mapping[str, Any], file: Path) -> None:
    """Draw ``data`` (what `table.write` makes) to ``file``, an SVG whose bytes depend on the data alone."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "efface"
    figure, grid = plt.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
    axes = grid.flat
    for axis, (label, title) in zip(axes, PANELS, strict=True):
        _panel(axis, data, label)
        axis.set_title(title, fontsize=10)
        axis.set_xscale("log", base=2)
        counts = sorted({row["n"] for row in data["table"]})
        axis.set_xticks(counts, [str(n) for n in counts])
        axis.set_xlabel("requests in the stack")
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _panel(axis: Any, data: Mapping[str, Any], label: str) -> None:
    methods = list(dict.fromkeys(row["method"] for row in data["table"]))
    for name, (colour, marker) in zip(methods, LOOKS[: len(methods)], strict=True):
        rows = [row for row in data["table"] if row["method"] == name and label in row["figures"]]
        if not rows:
            continue
        counts = [row["n"] for row in rows]
        low, middle, high = ([row["figures"][label][key] for row in rows] for key in ("min", "median", "max"))
        axis.plot(counts, middle, color=colour, marker=marker, label=name)
        axis.fill_between(counts, low, high, color=colour, alpha=0.15, linewidth=0)
    for end in data["references"]:
        if label in end["figures"] and label in ("ES", "neighbours' probability"):
            dashes = ":" if end["name"].startswith("before") else "--"
            axis.axhline(end["figures"][label]["median"], color="0.4", linestyle=dashes, label=end["name"])
    if label == "worst rebound in ES":
        axis.axhline(0.05, color="0.4", linestyle="--", label="aim")
    if label == "utility to N = 0":
        axis.axhline(0.97, color="0.4", linestyle="--", label="aim")
