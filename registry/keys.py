"""The registry's public keys: who may sign what, and when. Adding and revoking one is an event.

Private keys are never here (see `signing`). What a key's signature counts for is `trust`'s to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from . import ledger, trust
from .canon import JSON, parse, timestamp
from .errors import Conflict, InvalidInput, NotFound
from .registry import Registry
from .tables import Row, Tables
from .trust import TrustedKey

_REFERENCE = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")
_LIST = "List them with `efface key list`."


def add_key(
    reg: Registry,
    public_pem: str,
    *,
    name: str,
    roles: Iterable[str],
    valid_from: datetime | None = None,
    valid_until: datetime | None = None,
    actor: str,
) -> TrustedKey:
    """Trust the Ed25519 key in `public_pem` (SPKI) for `roles` (`trust.ROLES`), from now on by default.

    `name` says whose it is, for people. Adding it twice is adding it once. Raises InvalidInput, and Conflict for a
    key that is there with another record, also a revoked one; nothing is written then.
    """
    held = tuple(roles) if not isinstance(roles, str) else roles
    until = None if valid_until is None else timestamp(valid_until)
    with reg.write(actor) as tx:
        start = tx.at if valid_from is None else timestamp(valid_from)
        key = trust.trusted_key(public_pem, roles=held, valid_from=start, valid_until=until, name=name)
        if (row := tx.db.get("signing_key", key.key_id)) is not None:
            return _same(key_of(row), key, any_start=valid_from is None)
        ledger.append(tx, "key.added", key.key_id, added(key))
        return load(tx.db, key.key_id)


def revoke_key(
    reg: Registry, key_id: str, *, reason: str, revoked_at: datetime | None = None, actor: str
) -> TrustedKey:
    """End a key, now or from an earlier moment on; `reason` is one of `trust.REASONS`.

    What it signed before still counts, unless it was `compromised`; a key revoked for another reason can still turn
    out to be that. `key_id` may be a unique prefix. Raises InvalidInput, NotFound, Conflict for one that is revoked.
    """
    with reg.write(actor) as tx:
        key = load(tx.db, resolve(tx.db, key_id))
        at = tx.at if revoked_at is None else timestamp(revoked_at)
        if at > tx.at:
            raise InvalidInput("revoked_at in the past", "a time in the future", "Revoke it when it is due.")
        trust.revoked(key, at, reason)
        ledger.append(tx, "key.revoked", key.key_id, {"revoked_at": at, "reason": reason})
        return load(tx.db, key.key_id)


def list_keys(reg: Registry) -> list[TrustedKey]:
    """Every key, revoked ones too, by name."""
    with reg.read() as db:
        return sorted(trusted_keys(db), key=lambda key: (key.name, key.key_id))


def trusted_keys(db: Tables) -> list[TrustedKey]:
    """Every key, inside a transaction: what `trust.allowed` and `trust.usable` take."""
    return [key_of(row) for row in db.find("signing_key")]


def load(db: Tables, key_id: str) -> TrustedKey:
    """The key with this full id, inside a transaction. Raises NotFound."""
    if (row := db.get("signing_key", key_id)) is None:
        raise NotFound("the id of a key of this registry", "an unknown one", _LIST)
    return key_of(row)


def resolve(db: Tables, ref: str) -> str:
    """The id of the one key that `ref` abbreviates. Raises InvalidInput, NotFound."""
    if (match := _REFERENCE.fullmatch(ref)) is None:
        raise InvalidInput("the id of a key", "other text", "Pass at least 6 of its hex digits.")
    found = [row["key_id"] for row in db.starting("signing_key", f"sha256:{match[1]}", 2)]
    if not found:
        raise NotFound("the id of a key of this registry", "an unknown one", _LIST)
    if len(found) > 1:
        raise InvalidInput("the id of one key", "the beginning of several", "Add digits.")
    return found[0]


def key_of(row: Row) -> TrustedKey:
    """The key in a row of the table, checked as a new one is. Raises InvalidInput."""
    return trust.of_record({**row, "roles": parse(row["roles"])})


def added(key: TrustedKey) -> dict[str, JSON]:
    """The body of the event that adds a key."""
    return {
        "name": key.name,
        "public": key.public,
        "roles": list(key.roles),
        "valid_from": key.valid_from,
        "valid_until": key.valid_until,
    }


def _same(here: TrustedKey, new: TrustedKey, *, any_start: bool) -> TrustedKey:
    """The key that is there, if the new record says the same; a start that nobody asked for may differ."""
    if here.revoked_at is not None:
        raise Conflict("a key that is not revoked", "one that is", "Make a new one: efface key generate")
    wanted = added(new) | ({"valid_from": here.valid_from} if any_start else {})
    if added(here) != wanted:
        then = "Revoke it and add another key: a record of a key does not change."
        raise Conflict("the same name, roles and validity as before", "others", then)
    return here
