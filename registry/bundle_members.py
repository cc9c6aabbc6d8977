"""The members of a bundle, as they are written and read: one place for their names and shapes.

manifest.json              what it is about, and the digest and size of every other member
summary.html               for people; derived from the rest, and checked against it
facts.json                 what the events say: requests, adapters, audits, releases, claims
ledger.json                the events, and their place in the Merkle tree of the whole ledger
checkpoints.json           signed roots of that tree
keys.json                  the public keys that signed, with roles, validity and revocation
manifests/ audits/ evidence/     records whose digest is the member's name
reports/                   what audits measured: figures
attestations/              in-toto statements in DSSE envelopes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from . import bundle_zip, trust
from .canon import JSON, canonical, digest_bytes, parse
from .errors import GateFailed, InvalidInput
from .trust import TrustedKey
from .types import Event

FORMAT = "efface-evidence-bundle"
VERSION = 2
MANIFEST = "manifest.json"
ONE_OF = ("checkpoints.json", "facts.json", "keys.json", "ledger.json", "summary.html")
RECORDS: Mapping[str, tuple[str, str]] = {
    "adapter.sealed": ("manifests", "manifest"),
    "audit.recorded": ("audits", "record"),
    "evidence.recorded": ("evidence", "record"),
}
"""Event kind → the folder of the record, and its name in the event's body."""
_FIX = "Pass a bundle as `efface bundle export` wrote it."
_FIELDS = tuple(field.name for field in dataclasses.fields(Event))


def member(folder: str, digest: str) -> str:
    """The name of the member with this digest."""
    return f"{folder}/{digest.removeprefix('sha256:')}.json"


def sealed(about: Mapping[str, JSON], members: Mapping[str, bytes]) -> bytes:
    """The bundle's bytes: the members and the manifest over them."""
    described: dict[str, JSON] = {
        name: {"digest": digest_bytes(data), "size": len(data)} for name, data in members.items()
    }
    manifest: dict[str, JSON] = {"format": FORMAT, "v": VERSION, "about": about, "members": described}
    return bundle_zip.pack({**members, MANIFEST: canonical(manifest)})


def opened(data: bytes) -> tuple[Mapping[str, Any], dict[str, bytes]]:
    """The manifest and the other members, digests checked. Raises InvalidInput, GateFailed for one that changed."""
    members = bundle_zip.unpack(data)
    if MANIFEST not in members:
        raise InvalidInput("a bundle with a manifest", "none", _FIX)
    manifest = mapping(canonical_value(members.pop(MANIFEST), MANIFEST), "manifest")
    if manifest.get("format") != FORMAT or set(manifest) != {"format", "v", "about", "members"}:
        raise InvalidInput(f"a manifest of {FORMAT}", "another file", _FIX)
    if manifest["v"] != VERSION:
        raise InvalidInput(f"a bundle of version {VERSION}", "another version", "Install a newer efface.")
    found = {name: {"digest": digest_bytes(data), "size": len(data)} for name, data in members.items()}
    if manifest["members"] != found or not found.keys() >= set(ONE_OF):
        raise GateFailed("the members that the manifest lists", "others", _FIX)
    return manifest, members


def canonical_value(data: bytes, name: str) -> Any:
    """The JSON value of a member. GateFailed when it is spelled another way than it was written."""
    value = parse(data)
    if canonical(value) != data:
        raise GateFailed(f"canonical JSON in {name}", "another spelling", _FIX)
    return value


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """`value` as a JSON object. Raises InvalidInput."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} as a JSON object", "another value", _FIX)
    return cast(Mapping[str, Any], value)


def records(value: Any, name: str) -> list[Mapping[str, Any]]:
    """`value` as a list of JSON objects. Raises InvalidInput."""
    if not isinstance(value, list):
        raise InvalidInput(f"{name} as a JSON list", "another value", _FIX)
    return [mapping(item, name) for item in cast(list[Any], value)]


def event_record(event: Event) -> dict[str, JSON]:
    """An event as JSON, all of it."""
    return {name: getattr(event, name) for name in _FIELDS}


def event_of(record: Mapping[str, Any]) -> Event:
    """The event in a JSON object. Raises InvalidInput for other fields or types."""
    if set(record) != set(_FIELDS):
        raise InvalidInput("the fields of an event", "others", _FIX)
    numbers = all(type(record[name]) is int for name in ("seq", "v"))
    texts = all(isinstance(record[name], str) for name in _FIELDS if name not in ("seq", "v", "body"))
    if not (numbers and texts and isinstance(record["body"], Mapping)):
        raise InvalidInput("an event of numbers, texts and an object", "other values", _FIX)
    return Event(**record)


def keys_of(events: Sequence[Event]) -> tuple[list[TrustedKey], dict[str, int]]:
    """The keys that these events add and revoke, by id, and the number of the event that added each."""
    found: dict[str, TrustedKey] = {}
    added: dict[str, int] = {}
    for event in events:
        body = cast(Mapping[str, Any], event.body)
        if event.kind == "key.added":
            key = trust.trusted_key(**body)
            if key.key_id != event.subject_id or key.key_id in found:
                raise GateFailed("each key added once, under its id", "another", _FIX)
            found[key.key_id], added[key.key_id] = key, event.seq
        if event.kind == "key.revoked":
            key = found[event.subject_id]
            found[key.key_id] = trust.revoked(key, body["revoked_at"], body["reason"])
    return [found[key_id] for key_id in sorted(found)], added
