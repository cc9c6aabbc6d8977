"""Gates on more than one look at the rows: what attacks got back, and what came back since it was released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .attack import AttackResult
from .types import Evaluation, Finding


@dataclass(frozen=True, slots=True)
class Earlier:
    """A request's mean extraction strength when it stood lowest, over ``n`` rows; ``where`` names the release."""

    extraction_strength: float
    n: int
    where: str


def check_attacks(
    attacks: Sequence[AttackResult], recovered: Mapping[str, float], active: Sequence[str] | None
) -> tuple[Finding, ...]:
    """One finding per gate and active request: the worst of the attacks that the gate speaks of.

    ``recovered``: at most so much of what was taken, by an attack's name or kind. What was set must be measured: an
    attack that was not made has failed.
    """
    found: list[Finding] = []
    for name, threshold in recovered.items():
        meant = [a for a in attacks if name in (a.name, a.kind) or a.name.startswith(f"{name}/")]
        for request in _requests(meant, active):
            mine = [a for a in meant if a.request in (request, None)]
            found.append(_worst(name, threshold, request, mine))
    return tuple(found)


def check_rebound(after: Evaluation, earlier: Mapping[str, Earlier], threshold: float) -> tuple[Finding, ...]:
    """One finding per active request that a release of the channel held before: how far extraction strength rose.

    ``earlier`` has those that were measured before, at their lowest. A request that is new has nothing to return to.
    """
    found: list[Finding] = []
    for request in after.active or ():
        rows = [
            row.extraction_strength for row in after.rows if (row.request, row.group) == (request, "forget")
        ]
        if request not in earlier or not rows:
            continue
        was, now = earlier[request], sum(rows) / len(rows)
        rise = max(0.0, now - was.extraction_strength)
        text = (
            f"rebound {was.extraction_strength:.3g} → {now:.3g} in extraction strength since {was.where} "
            f"(n = {len(rows)}), {rise:.3g}, at most {threshold:g}"
        )
        outcome = "passed" if rise <= threshold else "failed"
        found.append(Finding("max_rebound", "forget", request, rise, threshold, outcome, text))
    return tuple(found)


def _requests(attacks: Sequence[AttackResult], active: Sequence[str] | None) -> list[str | None]:
    named: list[str | None] = (
        list(active) if active is not None else sorted({a.request for a in attacks}, key=str)
    )
    return named or ([None] if active is None else [])


def _worst(name: str, threshold: float, request: str | None, attacks: Sequence[AttackResult]) -> Finding:
    gate = f"max_recovered.{name}"
    measured = [(a.recovered, a) for a in attacks if a.recovered is not None]
    if not measured:
        why = "no such attack was made" if not attacks else "nothing was suppressed that could come back"
        outcome = "failed" if not attacks else "not measured"
        then = ", and this gate requires it: audit with a suite that makes it" if not attacks else ""
        said = f"recovered by {name} not measured: {why}{then}"
        return Finding(
            gate,
            "forget",
            request,
            None,
            threshold,
            outcome,
            said,
        )
    share, worst = max(measured, key=lambda pair: pair[0])
    value = max(0.0, share)
    outcome = "passed" if value <= threshold else "failed"
    text = (
        f"{worst.name} brings back {value:.3g} of what was suppressed (n = {worst.n}, worst of {len(measured)}), "
        f"at most {threshold:g}"
    )
    return Finding(gate, "forget", request, value, threshold, outcome, text)
