"""Alternate answers to forget prompts: a refusal, or a plausible other answer, from a row's ``chosen``.

Objectives that compare two answers (DPO/IDK, AltPO, IPO) or train on the other one (IdkNLL) need at least one
for every forget row, those that the base itself answered included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..adapters import Encoded, Item
from ..adapters.steps import Alternates
from .data import Row
from .errors import DataError


def require_alternates(rows: Sequence[Row], objective: str) -> None:
    """Raise one `DataError` that names every forget row without ``chosen``."""
    without = [row.id for row in rows if not row.chosen]
    if without:
        raise DataError(
            [
                f"objective {objective} compares the answer to forget with another, and {len(without)} forget rows "
                f"have none: give `chosen` (a refusal, or a plausible other answer) to {', '.join(map(repr, without))}"
            ]
        )


def alternate_items(row: Row) -> list[Item]:
    """One item ``<id>/chosen-<n>`` per alternate answer of ``row``, to the same prompt."""
    answers = [row.item(text) for text in row.chosen]
    return [Item(f"{row.id}/chosen-{n}", item.prompt, item.completion) for n, item in enumerate(answers, 1)]


def inherit(known: Mapping[str, tuple[Encoded, ...]], rows: Iterable[Encoded]) -> Alternates:
    """The alternates of each of ``rows``. What a model answered itself (``<id>/own``, ``<id>/round-1``) has
    those of its row; ``known`` has them by the row's id (`by_id`).

    Raises `DataError` naming rows that lost the prompt they share with their alternates by truncation.
    """
    found = {row: known[row.id] if row.id in known else known[row.id.rpartition("/")[0]] for row in rows}
    problems = [
        f"row {row.id!r} and its alternates do not fit behind one prompt: raise max_length or set truncation=answer"
        for row, others in found.items()
        if any(other.prompt != row.prompt for other in others)
    ]
    if problems:
        raise DataError(problems)
    return found


def by_id(alternates: Alternates) -> dict[str, tuple[Encoded, ...]]:
    """``alternates`` by the id of their forget row, to `inherit` from in later rounds."""
    return {row.id: others for row, others in alternates.items()}
