"""Gates on how far the forgetting reaches: what `scope` finds decides only where a bound was set."""

from __future__ import annotations

from dataclasses import replace

from .gates import SCOPE, Thresholds
from .scope import ScopeBounds, active_requests, over_unlearned, unmeasured
from .types import Evaluation, Finding

_UNDER = "max_ignorance_ratio"
_LACKING = (
    "not measured: no model that never saw the rows, and this gate requires it: audit with a suite that takes one, "
    "--suite standard --give reference=FOLDER"
)


def check_scope(
    before: Evaluation,
    after: Evaluation,
    thresholds: Thresholds,
    *,
    report: bool,
    reference: Evaluation | None = None,
    chance: float | None = None,
) -> tuple[Finding, ...]:
    """Over-unlearning of each active request.

    A bound that ``thresholds`` sets decides, by the confidence bound of the figure where that is asked for or the rows
    are few, and fails where it could not be measured. With ``report`` the others of
    `ScopeBounds` are judged at their defaults too, as *noted*, and kinds of rows that nobody gave are named.
    ``reference`` and ``chance``: see `over_unlearned`, which says what is raised.
    """
    asked = {name: bound for name in SCOPE if (bound := getattr(thresholds, name)) is not None}
    unasked: dict[str, None] = {} if report else dict.fromkeys(SCOPE)
    bounds = ScopeBounds.model_validate(unasked | asked)

    def levels(gate: str, rows: int) -> float | None:
        return thresholds.level(rows) if gate in asked else None

    found = over_unlearned(before, after, bounds, reference=reference, chance=chance, levels=levels)
    there = {one.request for one in found if one.gate == _UNDER}
    absent = [
        Finding(_UNDER, "forget", request, None, asked[_UNDER], "failed", _LACKING)
        for request in active_requests(after)
        if _UNDER in asked and request not in there
    ]
    named = unmeasured(after) if report else ()
    return (*(_decided(one, one.gate in asked) for one in found), *absent, *named)


def _decided(finding: Finding, asked: bool) -> Finding:
    if asked:
        required = finding.value is None
        text = f"{finding.text}, and this gate requires it" if required else finding.text
        return replace(finding, outcome="failed" if required else finding.outcome, text=text)
    return finding if finding.value is None else replace(finding, outcome="noted")
