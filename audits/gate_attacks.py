"""Gates on more than one look at the rows: what attacks got back, and what came back since it was released.

Where a `Level` asks for it both are judged by a bound. An attack's figure is a mean over its rows: Wilson's, with what
the base knew and what was suppressed taken as measured. A rebound compares each row with itself, so it is the bootstrap
of the rows' own rises; of fewer than `MIN_PAIRS` rows the one that rose most counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .attack import AttackResult
from .bounds import MIN_PAIRS, share_bound
from .gate_bounds import Level, figure_itself, percent
from .metrics import bootstrap_ci
from .types import Evaluation, Finding


@dataclass(frozen=True, slots=True)
class Earlier:
    """A request's mean extraction strength when it stood lowest, over ``n`` rows; ``where`` names the release.

    ``rows``: that of each row, by id.
    """

    extraction_strength: float
    n: int
    where: str
    rows: Mapping[str, float] = field(default_factory=dict[str, float])


def check_attacks(
    attacks: Sequence[AttackResult],
    recovered: Mapping[str, float],
    active: Sequence[str] | None,
    level: Level = figure_itself,
) -> tuple[Finding, ...]:
    """One finding per gate and active request: the worst of the attacks that the gate speaks of.

    ``recovered``: at most so much of what was taken, by an attack's name or kind. What was set must be measured: an
    attack that was not made has failed.
    """
    found: list[Finding] = []
    for name, threshold in recovered.items():
        meant = [a for a in attacks if name in (a.attack, a.name, a.kind)]
        for request in _requests(meant, active):
            mine = [a for a in meant if a.request in (request, None)]
            found.append(_worst(name, threshold, request, mine, level))
    return tuple(found)


def check_rebound(
    after: Evaluation, earlier: Mapping[str, Earlier], threshold: float, level: Level = figure_itself
) -> tuple[Finding, ...]:
    """One finding per active request that was measured before: how far its extraction strength rose.

    ``earlier`` has those requests at their lowest, by their own adapter alone or in a release of the channel. A request
    that was only measured at another precision has nothing to compare with: "not measured".
    """
    found: list[Finding] = []
    for request in after.active or ():
        rows = {
            row.id: row.extraction_strength
            for row in after.rows
            if (row.request, row.group) == (request, "forget")
        }
        if not rows:
            continue  # which the gates on forgetting say
        if request not in earlier:
            text = (
                "rebound not measured: neither its adapter alone nor a release that the channel served was audited "
                "with it at this precision"
            )
            found.append(Finding("max_rebound", "forget", request, None, threshold, "not measured", text))
            continue
        was, now = earlier[request], sum(rows.values()) / len(rows)
        value = rise = max(0.0, now - was.extraction_strength)
        text = (
            f"rebound {was.extraction_strength:.3g} → {now:.3g} in extraction strength since {was.where} "
            f"(n = {len(rows)}), {rise:.3g}"
        )
        if (confidence := level(len(rows))) is not None and rise <= threshold:
            rises = [now - was.rows.get(name, was.extraction_strength) for name, now in rows.items()]
            bound, name = _risen(rises, confidence, after.seed)
            value = max(rise, bound)
            text += f"; {name} {value:.3g}"
        outcome = "passed" if value <= threshold else "failed"
        text += f", at most {threshold:g}"
        found.append(Finding("max_rebound", "forget", request, value, threshold, outcome, text))
    return tuple(found)


def _risen(rises: Sequence[float], confidence: float, seed: int) -> tuple[float, str]:
    """The upper bound of the mean rise, and its name."""
    if len(rises) < MIN_PAIRS:
        return max(rises), f"few rows: the one that rose most, of {len(rises)},"
    _, high = bootstrap_ci(np.asarray(rises, dtype=np.float64), seed=seed, level=2 * confidence - 1)
    return float(high), f"{percent(confidence)} upper bound (bootstrap) over {len(rises)} rows"


def _requests(attacks: Sequence[AttackResult], active: Sequence[str] | None) -> list[str | None]:
    named: list[str | None] = (
        list(active) if active is not None else sorted({a.request for a in attacks}, key=str)
    )
    return named or ([None] if active is None else [])


def _worst(
    name: str, threshold: float, request: str | None, attacks: Sequence[AttackResult], level: Level
) -> Finding:
    gate = f"max_recovered.{name}"
    measured = [(_shown(a, share, level), a) for a in attacks if (share := a.recovered) is not None]
    more = [a for a in attacks if a.recovered is None and a.attacked - a.suppressed > threshold]
    if more:
        return _beyond(gate, threshold, request, max(more, key=lambda a: a.attacked - a.suppressed))
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
    confidence, back = level(worst.n), max(0.0, worst.recovered or 0.0)
    by = "" if confidence is None else f"; {percent(confidence)} upper bound (Wilson) {value:.3g}"
    text = (
        f"{worst.name} brings back {back:.3g} of what was suppressed (n = {worst.n}, worst of {len(measured)}){by}, "
        f"at most {threshold:g}"
    )
    return Finding(gate, "forget", request, value, threshold, outcome, text)


def _beyond(gate: str, threshold: float, request: str | None, attack: AttackResult) -> Finding:
    """Of nothing that was suppressed no share can come back; what is told all the same is judged as it stands."""
    gained = attack.attacked - attack.suppressed
    text = (
        f"{attack.name} reaches {attack.attacked:.3g} where the audit measured {attack.suppressed:.3g} and the base "
        f"{attack.known:.3g} (n = {attack.n}): {gained:.3g} more, at most {threshold:g}"
    )
    return Finding(gate, "forget", request, gained, threshold, "failed", text)


def _shown(attack: AttackResult, share: float, level: Level) -> float:
    """The share that is held against the attack: its own, or that of the upper bound of what it reached."""
    if (confidence := level(attack.n)) is None:
        return share
    reached = share_bound(attack.attacked, attack.n, confidence, "upper")
    return max(share, (reached - attack.suppressed) / (attack.known - attack.suppressed))
