"""Attestations: signed in-toto statements about adapters, audits and releases, beside the ledger's own word.

A statement is the payload of a DSSE envelope, the envelope a blob, and its digest the id of the event that records
it. Only a key that the registry trusts for the role at that moment may sign (see `approvals.ROLES`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from . import (
    adapters,
    approvals,
    audits,
    checks,
    dsse,
    keys,
    ledger,
    release_rows,
    signing,
    statements,
    trust,
)
from .canon import JSON, Digest, canonical, parse
from .errors import GateFailed, NotFound
from .registry import Registry, Writer
from .tables import Row, Tables

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MEDIA_TYPE = "application/vnd.in-toto+dsse"
"""The media type of an envelope, as in-toto registers it."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """A recorded statement. `digest` is that of its envelope: read it with `reg.blobs.read(digest)`."""

    digest: Digest
    about_kind: str
    """`adapter`, `audit` or `release`."""
    about_id: str
    """A digest, or `CHANNEL@VERSION`."""
    predicate: str
    """URI of the predicate's type."""
    keys: tuple[str, ...]
    """Ids of the keys that signed."""
    at: str


def signer(environment: Mapping[str, str] | None = None) -> Ed25519PrivateKey | None:
    """The signing key that the environment names (see `signing`); None when it names none, the normal case."""
    given = os.environ if environment is None else environment
    if signing.VARIABLE not in given and signing.FILE_VARIABLE not in given:
        return None
    return signing.signing_key(environment=given)


def attest_adapter(
    reg: Registry,
    ref: str,
    *,
    private: Ed25519PrivateKey,
    builder: str,
    builder_version: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    invocation: str | None = None,
    started_on: str | None = None,
    finished_on: str | None = None,
    actor: str,
) -> Attestation:
    """Sign how an adapter came about, as an operator: SLSA provenance (see `statements.provenance`).

    Signing the same statement twice is signing it once. Raises InvalidInput, NotFound, and KeyRefused for a key that
    the registry does not trust for this; nothing is written then.
    """
    with reg.write(actor) as tx:
        digest = adapters.resolve(tx.db, "adapter", ref)
        statement = statements.provenance(
            described(tx.db, "adapter", digest),
            digest,
            builder=builder,
            builder_version=builder_version,
            environment=environment,
            invocation=invocation,
            started_on=started_on,
            finished_on=finished_on,
        )
        return _record(reg, tx, "adapter", digest, statement, private)


def attest_audit(
    reg: Registry,
    ref: str,
    *,
    private: Ed25519PrivateKey,
    tests: Mapping[str, bool] | None = None,
    url: str | None = None,
    actor: str,
) -> Attestation:
    """Sign what an audit found, as an auditor: an in-toto test result (see `statements.audit_result`).

    `tests` says which gates held. Raises as `attest_adapter` does.
    """
    with reg.write(actor) as tx:
        digest = adapters.resolve(tx.db, "audit", ref)
        statement = statements.audit_result(described(tx.db, "audit", digest), digest, tests=tests, url=url)
        return _record(reg, tx, "audit", digest, statement, private)


def attest_release(
    reg: Registry, channel: str, version: int, *, private: Ed25519PrivateKey, actor: str
) -> Attestation:
    """Sign that a release is approved on the audit it has, as an approver (see `approvals.approval`).

    Raises as `attest_adapter` does, and GateFailed for a release that was not approved.
    """
    with reg.write(actor) as tx:
        release = release_rows.load(tx.db, channel, version)
        about = f"{release.channel}@{release.version}"
        statement = approvals.approval(described(tx.db, "release", about))
        return _record(reg, tx, "release", about, statement, private)


def attestations_of(reg: Registry, kind: str, id: str) -> list[Attestation]:
    """What was attested of an adapter, audit (digest or prefix) or release (`CHANNEL@VERSION`), oldest first.

    Raises NotFound, InvalidInput.
    """
    checks.choice(kind, "kind", tuple(approvals.ROLES))
    with reg.read() as db:
        about = id if kind == "release" else adapters.resolve(db, kind, id)
        if kind == "release":
            _release_row(db, id)
        rows = db.find("attestation", order="seq", about_kind=kind, about_id=about)
    return [attestation_of(row) for row in rows]


def attestation_of(row: Row) -> Attestation:
    """The attestation in a row."""
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Attestation)}
    values["keys"] = tuple(cast(list[str], parse(row["keys"])))
    return Attestation(**values)


def described(db: Tables, kind: str, about: str) -> Mapping[str, Any]:
    """What the ledger says of a subject: the record that `approvals.check` compares a statement with.

    Raises NotFound, GateFailed for a release without an audit.
    """
    if kind == "adapter":
        return cast(Mapping[str, Any], parse(adapters.load_row(db, about)["manifest"]))
    if kind == "audit":
        audit = audits.load(db, about)
        names = ("composition", "precision", "suite", "seed", "verdict", "report", "environment")
        named: dict[str, Any] = {} if audit.requests is None else {"requests": list(audit.requests)}
        named |= {} if audit.gates is None else {"gates": dict(audit.gates)}
        return {"v": 1, **{name: getattr(audit, name) for name in names}, **named}
    row = _release_row(db, about)
    if row["audit"] is None:
        raise GateFailed("a release that was approved", row["state"], "Approve it first.")
    return {name: row[name] for name in ("channel", "version", "composition", "audit")}


def _record(
    reg: Registry,
    tx: Writer,
    kind: str,
    about: str,
    statement: Mapping[str, JSON],
    private: Ed25519PrivateKey,
) -> Attestation:
    """Nothing is collected while we write, so the blob may come before its event."""
    key_id = signing.key_id(signing.public_pem(private))
    trust.allowed(keys.trusted_keys(tx.db), key_id, approvals.ROLES[kind], tx.at)
    data = dsse.sign(statements.PAYLOAD_TYPE, canonical(statement), [private]).to_json()
    digest = reg.blobs.put(data)
    if (row := tx.db.get("attestation", digest)) is None:
        body: dict[str, JSON] = {
            "about": {"kind": kind, "id": about},
            "predicate": approvals.PREDICATES[kind],
            "keys": [key_id],
            "blobs": [{"digest": digest, "size": len(data), "media_type": MEDIA_TYPE}],
        }
        ledger.append(tx, "attestation.recorded", digest, body)
        row = tx.db.get("attestation", digest)
    return attestation_of(cast(Row, row))


def _release_row(db: Tables, about: str) -> Row:
    channel, _, version = about.rpartition("@")
    row = db.get("release", channel, int(version)) if version.isdecimal() and len(version) < 16 else None
    if row is None:
        raise NotFound("a release as CHANNEL@VERSION", "an unknown one", "List them: efface release history")
    return row
