"""What a balance is trained on: the rows of all requests of its stack together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .bench import Bench
from .data import RequestData, Row
from .prepare import TrainingRows, training_rows
from .progress import Progress
from .recipe import Recipe


def balance_rows(
    live: Mapping[str, RequestData],
    requests: Sequence[str],
    retain: Sequence[Row],
    bench: Bench,
    recipe: Recipe,
    progress: Progress,
) -> TrainingRows:
    """The rows of all requests together, and ``retain``; no row to keep lies in the scope of any live request."""
    each = [
        _named(
            request,
            training_rows(
                bench,
                live[request],
                recipe,
                others=[data for name, data in live.items() if name != request],
                progress=progress,
                alternates=recipe.train_settings().needs_alternates,
                truncation=recipe.truncation,
            ),
        )
        for request in requests
    ]
    if retain:
        besides = RequestData((), tuple(retain))
        each.append(
            training_rows(
                bench,
                besides,
                recipe,
                others=tuple(live.values()),
                progress=progress,
                truncation=recipe.truncation,
            )
        )
    return TrainingRows(
        tuple(row for rows in each for row in rows.forget),
        tuple({(row.prompt, row.answer): row for rows in each for row in rows.retain}.values()),
        sum(rows.own for rows in each),
        tuple(dict.fromkeys(name for rows in each for name in rows.excluded)),
        tuple(dict.fromkeys(name for rows in each for name in rows.unanswered)),
        {row: others for rows in each for row, others in rows.alternates.items()},
    )


def _named(request: str, rows: TrainingRows) -> TrainingRows:
    """``rows`` with forget rows called by their request too: ids are a request's own."""
    named = {row: replace(row, id=f"{request}/{row.id}") for row in rows.forget}
    alternates = {named[row]: others for row, others in rows.alternates.items()}
    return replace(rows, forget=tuple(map(named.__getitem__, rows.forget)), alternates=alternates)
