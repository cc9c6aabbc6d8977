"""Audit records: that a composition was measured, at which precision, with which suite, and what came out.

The registry does not measure. It stores the report as a blob and the record as an event, and a release may
only become active on a record that passed. The report holds figures, never the text that is to be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from . import adapters, checks, ledger
from .canon import JSON, digest_bytes, digest_json, parse
from .errors import InvalidInput, NotFound
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
    actor: str,
) -> Audit:
    """Record a measurement of the composition with this digest; recording it twice is recording it once.

    `report` is JSON. The id covers everything but time and actor. On InvalidInput nothing is written.
    """
    checks.actor(actor)
    parse(report)
    record: dict[str, JSON] = {
        "v": 1,
        "composition": checks.digest(composition, "composition"),
        "precision": checks.token(precision, "precision"),
        "suite": checks.token(suite, "suite"),
        "seed": checks.count(seed, "seed", 0),
        "verdict": checks.choice(verdict, "verdict", VERDICTS),
        "report": digest_bytes(report),
        "environment": _environment(environment),
    }
    digest = digest_json(record)
    blob: JSON = {"digest": reg.blobs.put(report), "size": len(report), "media_type": "application/json"}
    with reg.write(actor) as tx:
        if tx.db.get("audit", digest) is None:
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


def _environment(environment: Mapping[str, str]) -> dict[str, JSON]:
    if len(environment) > 100:
        raise InvalidInput("at most 100 facts of the environment", "more", "Keep those that matter.")
    return {
        checks.token(name, "name in environment"): checks.text(value, "value in environment", 500)
        for name, value in environment.items()
    }


def passed(db: Tables, composition: Composition) -> bool:
    """Whether an audit of this composition passed at the precision it is served in."""
    found = db.find(
        "audit", composition=composition.digest, precision=composition.quantization, verdict="pass"
    )
    return bool(found)


def audit_of(row: Row) -> Audit:
    """The audit in a row."""
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Audit)}
    values["environment"] = parse(row["environment"])
    return Audit(**values)
