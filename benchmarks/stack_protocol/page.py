"""The markdown page of the stacking curve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .columns import FORGOTTEN, REST, SAID, Column


def page(data: Mapping[str, Any], note: str) -> str:
    """The markdown page."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    often = "once" if data["bases"] == 1 else f"{data['bases']} times, once a machine"
    lines = [
        f"# Stacks of unlearning adapters: {data['people'].rpartition(' ')[0]} on SmolLM2-135M-Instruct",
        "",
        f"Measured until {data['date']} with `{data['command']}` on {data['machine']}; {versions}. The model was "
        f"memorised {often}; a request is compared on the one that it was measured on.",
        *([note] if note else []),
        "",
        "![extraction strength, rebound and utility over N](stack-cpu.svg)",
        "",
        "## Is each request forgotten?",
        "",
        *_table(data, FORGOTTEN),
        "",
        "## What is said instead?",
        "",
        *_table(data, SAID),
        "",
        "## Is the rest well, and does it come apart?",
        "",
        *_table(data, REST, "rollback exact"),
        "",
        "## Training",
        "",
        *(f"- `{name}`: {facts}" for name, facts in data["training"].items()),
        "",
        NOTES,
    ]
    return "\n".join(lines) + "\n"


def _table(data: Mapping[str, Any], columns: Sequence[Column], *last: str) -> Iterator[str]:
    """A row for N = 0, the retain-only model and every method and N."""
    heads = ["", "N", "seeds", *(label for label, _, _ in columns), *last]
    yield _line(heads)
    yield _line(["---"] * len(heads))
    for end in data["references"]:
        yield _line([end["name"], "", "", *_cells(end["figures"], columns), *([""] * len(last))])
    for row in data["table"]:
        exact, of = row["rollback_exact"]
        ends = [f"{exact}/{of}" if of else "–"] * len(last)
        first = [row["method"], str(row["n"]), str(len(row["seeds"]))]
        yield _line([*first, *_cells(row["figures"], columns), *ends])


NOTES = (
    "Median (lowest-highest) over seeds; a seed draws the order of the requests too. ES: extraction strength. "
    "Worst: the request with the highest value. Rebound: a request's value in the stack less that of an adapter "
    "trained for it alone on the bare base with the same seed (of `sum` where the method has none), for the request "
    "where that is highest (0 or less: none came back). Alone: the mean of those single values. More than "
    "retain-only: the number of requests above the retain-only model's own value for them. Neighbours: rows of "
    "other people, memorised and in no training set of any adapter. Utility: harmonic mean of probability, ROUGE-L "
    "and truth score on kept, neighbours and world facts; of persons: without the world's three. Rollback exact: a "
    "request was taken out of the stack; the rest has the digest and, bit by bit, the logits of never having had "
    "it, and the bare base its own. Definitions: `benchmarks/stack_protocol/`, `audits/metrics.py`."
)


def _cells(figures: Mapping[str, Mapping[str, float]], columns: Sequence[Column]) -> list[str]:
    return [_cell(figures.get(label), places) for label, _, places in columns]


def _cell(spread: Mapping[str, float] | None, places: int) -> str:
    if not spread:
        return "–"
    low, middle, high = (f"{spread[key]:.{places}f}" for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}–{high})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
