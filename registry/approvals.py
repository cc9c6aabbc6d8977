"""What an attestation must say: the statement about a release, and the check of each kind against the ledger.

    adapter   SLSA provenance, signed by an operator          docs/attestations.md has the third one's definition
    audit     in-toto test result, signed by an auditor
    release   efface's own predicate, signed by an approver: this composition, this version, on this audit

Pure: the bundle's verifier uses it as `verify` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from . import canon, checks, statements
from .canon import JSON
from .errors import GateFailed, InvalidInput

APPROVAL_TYPE = "https://github.com/efface/efface/blob/main/docs/attestations.md#release-approval-v1"
"""The predicate type of an approval; it resolves to its definition."""
ROLES: Mapping[str, str] = {"adapter": "operator", "audit": "auditor", "release": "approver"}
"""Who signs about what."""
PREDICATES: Mapping[str, str] = {
    "adapter": statements.PROVENANCE_TYPE,
    "audit": statements.TEST_RESULT_TYPE,
    "release": APPROVAL_TYPE,
}
_LEDGER = "Look at what the ledger says of it, and who signed something else."


def approval(record: Mapping[str, Any]) -> dict[str, JSON]:
    """The statement that a release is approved: of {channel, version, composition, audit}."""
    return {
        "_type": statements.STATEMENT_TYPE,
        "subject": [_described("composition", record["composition"])],
        "predicateType": APPROVAL_TYPE,
        "predicate": {
            "channel": record["channel"],
            "version": record["version"],
            "audit": _described("audit", record["audit"]),
        },
    }


def check(kind: str, record: Mapping[str, Any], payload: bytes) -> None:
    """Raise unless the signed `payload` is a statement about `record` and says of it what the record says.

    `record` is an adapter's manifest, an audit's record, or what `approval` takes. What the ledger does not know (the
    builder, the run, the names of gates) is the signer's word. Raises InvalidInput for a malformed statement,
    GateFailed for another one.
    """
    statements.parse_statement(payload)
    found = cast(Mapping[str, Any], canon.parse(payload))
    if found["predicateType"] != PREDICATES[kind]:
        raise GateFailed(f"a statement of type {PREDICATES[kind]}", "another type", _LEDGER)
    if _comparable(found) != _comparable(_stated(kind, record, found["predicate"])):
        raise GateFailed(f"what the ledger says of this {kind}", "a statement of something else", _LEDGER)


def _stated(kind: str, record: Mapping[str, Any], predicate: Mapping[str, Any]) -> dict[str, JSON]:
    """The statement as it would be made now."""
    if kind == "adapter":
        builder = predicate["runDetails"]["builder"]["id"]
        return statements.provenance(record, canon.digest_json(record), builder=builder)
    if kind == "audit":
        return statements.audit_result(record, canon.digest_json(record))
    return approval(record)


def _comparable(statement: Mapping[str, Any]) -> bytes:
    """What the ledger knows of a statement: all but the fields that only its signer does."""
    predicate: dict[str, Any] = {**statement["predicate"]}
    for name in ("runDetails", "url", "passedTests", "failedTests", "warnedTests"):
        predicate.pop(name, None)
    if "buildDefinition" in predicate:
        definition = {**predicate["buildDefinition"]}
        definition.pop("internalParameters", None)
        predicate["buildDefinition"] = definition
    subjects = sorted(statement["subject"], key=canon.canonical)
    try:
        return canon.canonical({**statement, "subject": subjects, "predicate": predicate})
    except InvalidInput as error:
        raise InvalidInput("a statement in JSON", "another value", _LEDGER) from error


def _described(name: str, digest: str) -> dict[str, JSON]:
    """A ResourceDescriptor."""
    return {"name": name, "digest": {"sha256": checks.digest(digest, name).removeprefix("sha256:")}}
