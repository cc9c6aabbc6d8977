"""Releases of which nothing is left to measure: every request in question is shredded, and an audit needs rows.

A request whose rows are gone has to stay removable. What can honestly carry a release then:

    an audit of before    the same base, adapters and weights at the same precision passed one: it is the same model
    the bare base         it suppresses nothing, so there is no forgetting to show; and it is the base itself, so there
                          is nothing else that could have changed. An audit of suite `none/1` says that nothing was
                          measured, and names no request
    nothing else          another stack may suppress or break anything, and nobody can look
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..registry import (
    JSON,
    Audit,
    Composition,
    Registry,
    get_adapter,
    get_request,
    history,
    list_audits,
    record_audit,
)
from .errors import RequestError

UNMEASURED = "none/1"
"""The suite of an audit that measured nothing."""
SAID_BARE = (
    "Nothing was measured: the bare base suppresses nothing, and every request that was on it is shredded."
)
SAID_BEFORE = "Nothing is left to measure with: carried by the audit that this composition passed before."
_IN_USE = ("SEALED", "QUALIFIED")


def rows_left(registry: Registry, requests: Sequence[str]) -> bool:
    """Whether one of these requests has its rows yet."""
    return any(get_request(registry, name).shredding_at is None for name in requests)


def audit_of_before(registry: Registry, channel: str, composition: Composition) -> Audit | None:
    """The audit of before that carries ``composition``; None for the bare base, which needs none.

    Its newest one decides. Raises `RequestError`, with what can be done instead.
    """
    if (found := _passed(registry, composition)) is not None or not composition.parts:
        return found
    ways = [f"return to version {_listed(found)}"] if (found := _returnable(registry, channel)) else []
    ways += [
        "remove every request, down to the bare base",
        "release it together with a request that has rows",
    ]
    raise RequestError(
        f"nothing is left to measure {composition.digest} with, because the rows of its requests are shredded, and no "
        f"audit of it at {composition.quantization} passed before: {', or '.join(ways)}"
    )


def record_bare(
    registry: Registry,
    composition: Composition,
    environment: Mapping[str, str],
    actor: str,
    canary: Mapping[str, JSON],
) -> Audit:
    """An audit that says that nothing was measured of the bare base, because nothing is left to measure with.

    ``canary``: what it answers to neutral prompts, for whoever serves it.
    """
    said = {"schema": "efface.unmeasured/1", "composition": composition.digest, "said": SAID_BARE}
    report = {**said, "canary": canary}
    return record_audit(
        registry,
        composition=composition.digest,
        precision=composition.quantization,
        suite=UNMEASURED,
        seed=0,
        verdict="pass",
        report=json.dumps(report).encode(),
        environment=environment,
        requests=(),
        actor=actor,
    )


def _passed(registry: Registry, composition: Composition) -> Audit | None:
    """Its newest audit at its precision, by whichever suite that measures rows, if it passed."""
    found = [
        audit
        for audit in list_audits(registry, composition.digest)
        if audit.precision == composition.quantization and audit.suite != UNMEASURED
    ]
    return found[-1] if found and found[-1].verdict == "pass" else None


def _returnable(registry: Registry, channel: str) -> list[int]:
    """Versions of other compositions that passed before and whose adapters are there."""
    versions = history(registry, channel)
    served = {release.composition.digest for release in versions if release.state == "ACTIVE"}
    return [
        release.version
        for release in versions
        if release.composition.digest not in served
        and _passed(registry, release.composition) is not None
        and all(get_adapter(registry, one).state in _IN_USE for one in release.composition.adapters)
    ]


def _listed(versions: Sequence[int]) -> str:
    return " or ".join(map(str, versions))
