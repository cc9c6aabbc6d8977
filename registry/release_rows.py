"""Reading releases and what they hold, inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from . import adapters, checks, compositions, support
from .canon import parse
from .errors import NotFound
from .tables import Row, Tables, chunks
from .types import Composition, Release


def members(db: Tables, composition: Composition) -> dict[str, set[str]]:
    """Adapter → the requests that it forgets."""
    return {adapter.digest: set(adapter.requests) for adapter in adapters.load_many(db, composition.adapters)}


def requests_of(db: Tables, composition: Composition) -> set[str]:
    """The requests that the composition forgets: by its adapters, or by its base, as evidence shows."""
    held = {request for found in members(db, composition).values() for request in found}
    return held | made_for(db).get(composition.base, set())


def released(db: Tables) -> set[str]:
    """The requests that the active release of any channel forgets."""
    active_now = {row["composition"] for row in db.find("release", state="ACTIVE")}
    held = {
        row["adapter"] for digest in active_now for row in db.find("composition_part", composition=digest)
    }
    made, bases = made_for(db), support.served(db).bases
    return _requests(db, sorted(held)).union(*(made.get(base, ()) for base in bases))


def made_for(db: Tables) -> dict[str, set[str]]:
    """Base → the requests that it was merged or retrained for, as evidence shows."""
    found: dict[str, set[str]] = {}
    for row in db.find("evidence"):
        record: Any = parse(row["record"])
        found.setdefault(record["artefact"], set()).add(row["request"])
    return found


def need_active(db: Tables, channel: str) -> Release:
    """The channel's active release. Raises NotFound."""
    found = active(db, checks.channel(channel))
    if found is None:
        then = f"Create and activate one: efface release create {channel}"
        raise NotFound(f"an active release on {channel}", "none", then)
    return found


def active(db: Tables, channel: str) -> Release | None:
    """The channel's active release, or None when it has none yet (the caller's normal case)."""
    found = db.find("release", channel=channel, state="ACTIVE")
    return release(db, found[0]) if found else None


def load(db: Tables, channel: str, version: int) -> Release:
    """One version of a channel. Raises NotFound, or InvalidInput for what cannot be a channel or version."""
    row = db.get("release", checks.channel(channel), checks.count(version, "version", 1))
    if row is None:
        then = f"List them with `efface release history {channel}`."
        raise NotFound(f"version {version} of {channel}", "no such release", then)
    return release(db, row)


def composition(db: Tables, digest: str) -> Composition:
    """The composition with this digest, which a release holds. Raises NotFound."""
    header = db.get("composition", digest)
    if header is None:
        raise NotFound(
            f"composition {digest} in a release", "an unknown digest", "Create a release of it first."
        )
    parts = [(part["adapter"], part["weight"]) for part in db.find("composition_part", composition=digest)]
    return compositions.compose(header["base"], header["quantization"], parts, header["render"])


def release(db: Tables, row: Row) -> Release:
    """The release in a row, with its composition."""
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Release)}
    values["composition"] = composition(db, row["composition"])
    return Release(**values)


def _requests(db: Tables, held: Sequence[str]) -> set[str]:
    return {row["request"] for some in chunks(list(held)) for row in db.find("adapter_request", adapter=some)}
