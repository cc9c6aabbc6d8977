"""Rows of adapters, audits, attestations and keys, and of the blobs that they use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from . import checks, gates, states, trust, vault_binding, vault_id
from .canon import canonical, parse
from .errors import BrokenRegistry
from .tables import Tables, need
from .types import Event

_RELEASE = re.compile(r"(.+)@([1-9][0-9]{0,15})")


def adapter_sealed(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """An adapter with its requests and files."""
    manifest = body["manifest"]
    use_blobs(db, body["blobs"])
    db.put("base", digest=manifest["base"], quantization=manifest["quantization"])
    described = {name: manifest[name] for name in ("kind", "base", "quantization", "trained_on")}
    db.insert(
        "adapter",
        digest=event.subject_id,
        seq=event.seq,
        error_bound=manifest.get("error_bound"),
        manifest=canonical(manifest).decode(),
        state="SEALED",
        sealed_at=event.at,
        **described,
    )
    for request in manifest["requests"]:
        need(db, "forget_request", request)
        db.insert("adapter_request", adapter=event.subject_id, request=request)


def adapter_moved(db: Tables, event: Event, _body: Mapping[str, Any]) -> None:
    """The next state. A purged adapter's row stays; its files are no longer used by it."""
    row = need(db, "adapter", event.subject_id)
    state = states.step("adapter", row["state"], states.named_by(event.kind))
    db.update("adapter", (event.subject_id,), state=state)
    if state == "PURGED":
        for digest in blobs_of(event.subject_id, row["manifest"]):
            db.update("blob", (digest,), uses=need(db, "blob", digest)["uses"] - 1)


def blobs_of(digest: str, manifest: str) -> set[str]:
    """What an adapter holds: its manifest, whose digest it is named by, and its files."""
    described: Any = parse(manifest)
    return {digest, *described["files"].values()}


def audit_recorded(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A measurement and its report."""
    record = body["record"]
    use_blobs(db, body["blobs"])
    names = ("composition", "precision", "suite", "seed", "verdict", "report")
    measured = {name: record[name] for name in names}
    if (requests := record.get("requests")) is not None:
        for request in requests:
            if need(db, "forget_request", request)["shredding_at"] is not None:
                came = "a measurement of rows that were shredded before"
                raise BrokenRegistry("an audit of rows that were there", came, "Look at who recorded it.")
        measured["requests"] = canonical(requests).decode()
    if (judged := record.get("gates")) is not None:
        measured["gates"] = gates.text_of(judged)
    environment = canonical(record["environment"]).decode()
    db.insert(
        "audit", digest=event.subject_id, seq=event.seq, environment=environment, at=event.at, **measured
    )


def attested(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A signed statement about an adapter, an audit or a release."""
    use_blobs(db, body["blobs"])
    about = body["about"]
    key = _RELEASE.fullmatch(about["id"]) if about["kind"] == "release" else None
    need(db, about["kind"], *((key[1], int(key[2])) if key else (about["id"],)))
    db.insert(
        "attestation",
        digest=event.subject_id,
        seq=event.seq,
        about_kind=about["kind"],
        about_id=about["id"],
        predicate=body["predicate"],
        keys=canonical(body["keys"]).decode(),
        at=event.at,
    )


def key_added(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A public key that may sign, and for what."""
    db.insert(
        "signing_key",
        key_id=event.subject_id,
        name=body["name"],
        public=body["public"],
        roles=canonical(body["roles"]).decode(),
        valid_from=body["valid_from"],
        valid_until=body["valid_until"],
    )


def key_revoked(db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """The end of a key: once, and once more when it turns out to be compromised."""
    row = need(db, "signing_key", event.subject_id)
    key = trust.of_record({**row, "roles": parse(row["roles"])})
    after = trust.revoked(key, body["revoked_at"], body["reason"])
    db.update("signing_key", (key.key_id,), revoked_at=after.revoked_at, revoked_reason=after.revoked_reason)


def checkpoint_signed(_db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """A checkpoint of all events before this one. It makes no row: what was signed cannot be made again."""
    if event.subject_id != str(event.seq - 1) or set(body) != {"root", "envelope", "note"}:
        raise BrokenRegistry("the checkpoint of the events before", "another one", "Run `efface verify`.")
    for name, digest in body.items():
        checks.digest(digest, name)


def vault_bound(_db: Tables, event: Event, body: Mapping[str, Any]) -> None:
    """Which vault holds the rows from here on. It makes no row."""
    if event.subject_id != vault_binding.SUBJECT or not vault_id.well_formed(body["vault"]):
        raise BrokenRegistry("the id of a vault", "something else", "Run `efface verify`.")


def use_blobs(db: Tables, blobs: Iterable[Mapping[str, Any]]) -> None:
    """Count one more user of each blob."""
    for blob in {found["digest"]: found for found in blobs}.values():
        row = db.get("blob", blob["digest"])
        if row is None:
            db.insert("blob", digest=blob["digest"], size=blob["size"], media_type=blob["media_type"], uses=1)
        else:
            db.update("blob", (blob["digest"],), uses=row["uses"] + 1)
