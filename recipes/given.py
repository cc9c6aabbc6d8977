"""Rows that a suite, or a training, cannot take are refused before a model runs, or anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..audits import AuditError
from ..audits.suites import InvalidSuite
from .data import RequestData, Row
from .data.sets import questions
from .errors import DataError
from .plan import Plan

_HOW = (
    "each a row's `perturbed`: wrong answers in the words of the right one; TOFU's *_perturbed files have them, as "
    "`perturbed_answer`"
)


def check_given(plan: Plan | None, requests: Mapping[str, RequestData], active: Sequence[str]) -> None:
    """Raise `InvalidSuite` for rows without the answers that ``plan`` compares, `AuditError` for holdout rows that ask
    what a row of ``requests`` asks: they would make membership look like a guess.
    """
    if plan is None:
        return
    _require_unseen(plan.sources.holdout, requests)
    if "tofu" in plan.suite.parts:
        forget = [row for name in active for row in requests[name].forget]
        _require_perturbed("forget", forget)
        _require_perturbed("real-authors", plan.sources.real_authors)
        _require_perturbed("world-facts", plan.sources.world_facts)


def require_unmeasured(
    rows: Sequence[Row], requests: Iterable[RequestData], plan: Plan | None = None
) -> None:
    """Raise `DataError` for ``rows`` to train on that ask what is only measured: neighbours and unrelated rows of
    ``requests``, and what ``plan`` was given. An adapter that has seen those shows no over-forgetting on them."""
    known = [("a neighbour or unrelated row of a request", (*d.neighbours, *d.unrelated)) for d in requests]
    if plan is not None:
        given = plan.sources
        known += [("a holdout row", given.holdout), ("a row of real-authors", given.real_authors)]
        known += [("a row of world-facts", given.world_facts)]
    measured = {asked: what for what, every in known for row in every for asked in questions(row)}
    seen = [(row.id, measured[min(both)]) for row in rows if (both := questions(row) & measured.keys())]
    if seen:
        raise DataError(
            [
                f"retain row {name!r} asks what {what} asks, which is only measured: leave it out"
                for name, what in seen
            ]
        )


def _require_unseen(holdout: Sequence[Row], requests: Mapping[str, RequestData]) -> None:
    trained = {
        asked
        for data in requests.values()
        for row in (*data.forget, *data.retain)
        for asked in questions(row)
    }
    known = [row.id for row in holdout if questions(row) & trained]
    if known:
        raise AuditError(
            f"expected holdout rows that nobody trained on, got {len(known)} that a request has among its own, such as "
            f"{', '.join(map(repr, known[:3]))}: give others of the same kind"
        )


def _require_perturbed(what: str, rows: Sequence[Row]) -> None:
    if lacking := [row.id for row in rows if not row.perturbed]:
        raise InvalidSuite(
            f"the part tofu needs wrong answers of every {what} row, and {len(lacking)} of {len(rows)} have none, such "
            f"as {', '.join(map(repr, lacking[:3]))}: {_HOW}"
        )
