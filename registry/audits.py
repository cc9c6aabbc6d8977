"""Audit records: that a composition was measured, at which precision, with which suite, and what came out.

The registry does not measure. It stores the report as a blob and the record as an event, and a release may
only become active on a record that passed. The report holds figures, never the text that is to be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from . import adapters, checks, ledger, requests, support
from .canon import JSON, digest_bytes, digest_json, parse
from .errors import Conflict, InvalidInput, NotFound
from .gates import Number, checked, stored
from .registry import Registry
from .tables import Row, Tables
from .types import Audit, Composition

VERDICTS = ("pass", "fail")


def record_audit(
    reg: Registry,
    *,
    composition: str,
    precision: str,
    suite: str,
    seed: int,
    verdict: str,
    report: bytes,
    environment: Mapping[str, str],
    requests: Sequence[str] | None = None,
    gates: Mapping[str, Number] | None = None,
    actor: str,
) -> Audit:
    """Record a measurement of the composition with this digest; recording it twice is recording it once.

    `report` is JSON. `requests`: those whose rows were measured and held to being forgotten (none of those that were
    only watched); an audit that does not say is no evidence that a request is forgotten. `gates`: the bounds that
    decided the verdict (`efface.registry.gates`). The id covers everything but
    time and actor. Raises InvalidInput, NotFound for an unknown request, Conflict for one whose rows are shredded;
    nothing is written then.
    """
    checks.actor(actor)
    parse(report)
    measured = None if requests is None else _named(reg, requests)
    record: dict[str, JSON] = {
        "v": 1,
        "composition": checks.digest(composition, "composition"),
        "precision": checks.token(precision, "precision"),
        "suite": checks.token(suite, "suite"),
        "seed": checks.count(seed, "seed", 0),
        "verdict": checks.choice(verdict, "verdict", VERDICTS),
        "report": digest_bytes(report),
        "environment": _environment(environment),
        **({} if measured is None else {"requests": measured}),
        **({} if gates is None else {"gates": checked(gates)}),
    }
    digest = digest_json(record)
    with reg.read() as db:
        _check_measurable(db, digest, requests or ())
    blob: JSON = {"digest": reg.blobs.put(report), "size": len(report), "media_type": "application/json"}
    with reg.write(actor) as tx:
        if tx.db.get("audit", digest) is None:
            _check_measurable(tx.db, digest, requests or ())
            if reg.blobs.size(digest_bytes(report)) is None:  # gc took it between our put and now
                reg.blobs.put(report)
            ledger.append(tx, "audit.recorded", digest, {"record": record, "blobs": [blob]})
        return load(tx.db, digest)


def get_audit(reg: Registry, ref: str) -> Audit:
    """The audit with this digest or unique prefix. Raises NotFound, InvalidInput."""
    with reg.read() as db:
        return load(db, adapters.resolve(db, "audit", ref))


def list_audits(reg: Registry, composition: str | None = None) -> list[Audit]:
    """All audits in the order they were recorded, or those of one composition."""
    where: dict[str, Any] = {} if composition is None else {"composition": composition}
    with reg.read() as db:
        return [audit_of(row) for row in db.find("audit", order="seq", **where)]


def find_audit(reg: Registry, *, composition: str, precision: str, suite: str) -> Audit:
    """The newest audit of a composition at a precision with a suite, passed or not. Raises NotFound, InvalidInput."""
    checks.digest(composition, "composition")
    checks.token(precision, "precision")
    checks.token(suite, "suite")
    for audit in reversed(list_audits(reg, composition)):
        if (audit.precision, audit.suite) == (precision, suite):
            return audit
    then = "Run `efface audit run` on the release first."
    raise NotFound(f"an audit of {composition} at {precision} with {suite}", "none", then)


def load(db: Tables, digest: str) -> Audit:
    """The audit with this full digest, inside a transaction. Raises NotFound."""
    row = db.get("audit", digest)
    if row is None:
        raise NotFound(f"audit {digest}", "an unknown digest", "Run `efface audit run` first.")
    return audit_of(row)


def _named(reg: Registry, named: Sequence[str]) -> list[JSON]:
    """Each one once, sorted. Raises NotFound for one that is not in the registry: requests are never deleted."""
    with reg.read() as db:
        return [requests.load(db, name).id for name in sorted(set(named))]


def _check_measurable(db: Tables, digest: str, named: Sequence[str]) -> None:
    """Nobody has measured rows that were destroyed before the audit is recorded for the first time."""
    for name in named if db.get("audit", digest) is None else ():
        if requests.load(db, name).shredding_at is not None:
            then = "Audit again without it: what it was measured at before stands in earlier audits."
            raise Conflict(f"{name} with its rows", "a request that is shredded", then)


def _environment(environment: Mapping[str, str]) -> dict[str, JSON]:
    if len(environment) > 100:
        raise InvalidInput("at most 100 facts of the environment", "more", "Keep those that matter.")
    return {
        checks.token(name, "name in environment"): checks.text(value, "value in environment", 500)
        for name, value in environment.items()
    }


def passed(db: Tables, composition: Composition) -> bool:
    """Whether an audit of this composition passed at the precision it is served in, and of its requests."""
    found = db.find(
        "audit", composition=composition.digest, precision=composition.quantization, verdict="pass"
    )
    return any(not support.passed_over(db, composition.adapters, audit_of(row).requests) for row in found)


def audit_of(row: Row) -> Audit:
    """The audit in a row."""
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Audit)}
    values["environment"] = parse(row["environment"])
    values["gates"] = None if row["gates"] is None else stored(row["gates"])
    values["requests"] = None if row["requests"] is None else tuple(cast(list[str], parse(row["requests"])))
    return Audit(**values)
