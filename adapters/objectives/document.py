"""`docs/objectives.md`, written from the table: ``python -m efface.adapters.objectives > docs/objectives.md``."""

from __future__ import annotations

from .table import OBJECTIVES, Objective

_COLUMNS = (
    "objective",
    "kind",
    "level",
    "of",
    "reference?",
    "alternates?",
    "paired?",
    "defaults",
    "gamma",
    "alpha",
    "arXiv",
    "proven?",
    "note",
)

_HEAD = """# Objectives

A training step minimises `gamma * forget + alpha * retain`. Each objective is a pure function in
`adapters/objectives/`, whose docstring has the equation and where it departs from the paper or from other code.
This page is generated: `python -m efface.adapters.objectives > docs/objectives.md`.

- **level**: what is weighed, one token or a whole answer. **of**: summed or token log-probabilities, logits at
  answer positions, or one layer's hidden states.
- **reference?** asks the base plus the adapters that the new one is stacked on: the same model with the adapter
  disabled, never a copy. **alternates?** needs a second answer to each forget prompt (a refusal, or a plausible
  one); **paired?** compares the two.
- **defaults** are the function's, **gamma** and **alpha** where to start; a recipe may say otherwise.
- **proven?**: unlearning results with it are published. That is not a claim that it does well here.

"""

_TAIL = """
PDU's constrained form works with any forget loss: `Dual(weight, epsilon).loss(forget, retain)` is the Lagrangian
`forget + weight (retain - epsilon)`, and `.update(retain)` gives the state whose weight is
`max(0, weight + step (retain - epsilon))`.
"""


def document() -> str:
    """The whole page, as it is committed."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *map(_line, map(_cells, OBJECTIVES.values()))]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _cells(row: Objective) -> tuple[str, ...]:
    weights = ("", "") if row.kind == "retain" else (f"{row.gamma:g}", f"{row.alpha:g}")
    return (
        f"`{row.name}`",
        row.kind,
        row.level,
        row.takes,
        *map(_yes, (row.needs_reference, row.needs_alternates, row.paired)),
        ", ".join(f"{name} {value:g}" for name, value in row.defaults.items()),
        *weights,
        f"[{row.paper}](https://arxiv.org/abs/{row.paper})",
        _yes(row.proven),
        row.note,
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
