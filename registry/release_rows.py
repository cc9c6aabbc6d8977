"""Reading releases and what they hold, inside a transaction."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from typing import Any

from . import adapters, checks, compositions
from .errors import NotFound
from .types import Composition, Release


def members(db: sqlite3.Connection, composition: Composition) -> dict[str, set[str]]:
    """Adapter → the requests that it forgets."""
    return {digest: set(adapters.load(db, digest).requests) for digest in composition.adapters}


def requests_of(db: sqlite3.Connection, composition: Composition) -> set[str]:
    """The requests that the composition's adapters forget."""
    return {request for found in members(db, composition).values() for request in found}


def released(db: sqlite3.Connection) -> set[str]:
    """The requests in the active release of any channel."""
    query = (
        "SELECT DISTINCT request FROM release JOIN composition_part USING (composition)"
        " JOIN adapter_request USING (adapter) WHERE state = 'ACTIVE'"
    )
    return {row["request"] for row in db.execute(query)}


def need_active(db: sqlite3.Connection, channel: str) -> Release:
    """The channel's active release. Raises NotFound."""
    found = active(db, checks.channel(channel))
    if found is None:
        then = f"Create and activate one: efface release create {channel}"
        raise NotFound(f"an active release on {channel}", "none", then)
    return found


def active(db: sqlite3.Connection, channel: str) -> Release | None:
    """The channel's active release, or None when it has none yet (the caller's normal case)."""
    query = "SELECT * FROM release WHERE channel = ? AND state = 'ACTIVE'"
    row = db.execute(query, (channel,)).fetchone()
    return None if row is None else release(db, row)


def load(db: sqlite3.Connection, channel: str, version: int) -> Release:
    """One version of a channel. Raises NotFound, or InvalidInput for what cannot be a channel or version."""
    key = (checks.channel(channel), checks.count(version, "version", 1))
    row = db.execute("SELECT * FROM release WHERE channel = ? AND version = ?", key).fetchone()
    if row is None:
        then = f"List them with `efface release history {channel}`."
        raise NotFound(f"version {version} of {channel}", "no such release", then)
    return release(db, row)


def release(db: sqlite3.Connection, row: sqlite3.Row) -> Release:
    """The release in a row, with its composition."""
    digest = row["composition"]
    header = db.execute("SELECT * FROM composition WHERE digest = ?", (digest,)).fetchone()
    parts = db.execute("SELECT adapter, weight FROM composition_part WHERE composition = ?", (digest,))
    pairs = [(part["adapter"], part["weight"]) for part in parts]
    composition = compositions.compose(header["base"], header["quantization"], pairs, header["render"])
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Release)}
    values["composition"] = composition
    return Release(**values)
