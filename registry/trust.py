"""Whose signature counts for what, and when: public keys with roles, validity and revocation.

    auditor    signs what an audit measured                   approver   approves releases
    operator   signs how an adapter came about                log        signs checkpoints of the ledger

A key counts from `valid_from` on and before `valid_until`. From `revoked_at` on it signs nothing; what it
signed before still counts, unless it was revoked as `compromised`: then its thief can have written any date.
The time to ask about is the one that the ledger gave the signature, never one that the signer wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from . import checks, signing
from .canon import JSON
from .errors import Conflict, GateFailed, InvalidInput

Role = Literal["auditor", "operator", "approver", "log"]
Reason = Literal["compromised", "superseded", "retired", "unspecified"]
Refusal = Literal["unknown", "role", "not-yet-valid", "expired", "revoked"]

ROLES: tuple[str, ...] = ("auditor", "operator", "approver", "log")
REASONS: tuple[str, ...] = ("compromised", "superseded", "retired", "unspecified")
"""Why a key is revoked: a closed list, so that no other spelling of `compromised` weakens it."""

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


class KeyRefused(GateFailed):
    """The key may not make this signature; `why` tells the five cases apart."""

    def __init__(self, expected: str, came: str, then: str, why: Refusal = "unknown") -> None:
        super().__init__(expected, came, then)
        self.why: Refusal = why


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it may sign. Make it with `trusted_key`, which checks every field."""

    key_id: str
    public: str
    """SPKI PEM text."""
    roles: tuple[str, ...]
    valid_from: str
    valid_until: str | None
    revoked_at: str | None
    revoked_reason: str | None
    name: str

    def record(self) -> dict[str, JSON]:
        """The JSON object to store; `of_record` reads it back."""
        return {**dataclasses.asdict(self), "roles": list(self.roles)}


def trusted_key(
    public: str,
    *,
    roles: Iterable[str],
    valid_from: str,
    valid_until: str | None = None,
    revoked_at: str | None = None,
    revoked_reason: str | None = None,
    name: str,
) -> TrustedKey:
    """The record of a public key in PEM. Raises InvalidInput; times are the registry's (`timestamp`)."""
    if isinstance(roles, str) or not (held := {checks.choice(role, "role", ROLES) for role in roles}):
        raise InvalidInput("a list of at least one role", "none", f"Choose from {', '.join(ROLES)}.")
    if (revoked_at is None) != (revoked_reason is None):
        raise InvalidInput("a time and a reason of revocation", "one of them", "Give both or neither.")
    if valid_until is not None and time(valid_until, "valid_until") <= time(valid_from, "valid_from"):
        raise InvalidInput("valid_until after valid_from", "an earlier time", "Swap or correct them.")
    return TrustedKey(
        key_id=signing.key_id(public),
        public=signing.pem_of(signing.raw_public(public)),
        roles=tuple(sorted(held)),
        valid_from=time(valid_from, "valid_from"),
        valid_until=valid_until,
        revoked_at=None if revoked_at is None else time(revoked_at, "revoked_at"),
        revoked_reason=None if revoked_reason is None else checks.choice(revoked_reason, "reason", REASONS),
        name=checks.text(name, "name of the key", 200),
    )


def of_record(record: Mapping[str, Any]) -> TrustedKey:
    """The key in a stored record, checked as a new one is. Raises InvalidInput."""
    names = {field.name for field in dataclasses.fields(TrustedKey)}
    if set(record) != names or not isinstance(record["public"], str):
        raise InvalidInput("a record of a key", "an object with other fields", "Read it from the ledger.")
    key = trusted_key(**{name: record[name] for name in names - {"key_id"}})
    if key.key_id != record["key_id"]:
        raise InvalidInput("the key id of the public key", "another one", "Read it from the ledger.")
    return key


def revoked(key: TrustedKey, at: str, reason: str) -> TrustedKey:
    """`key`, revoked. Conflict when it is already, unless it now turns out to be compromised."""
    if key.revoked_at is not None and (reason != "compromised" or key.revoked_reason == reason):
        raise Conflict("a key that is not revoked", f"one revoked as {key.revoked_reason}", "Nothing to do.")
    first = min(time(at, "revoked_at"), key.revoked_at or at)
    why = checks.choice(reason, "reason", REASONS)
    return dataclasses.replace(key, revoked_at=first, revoked_reason=why)


def allowed(keys: Iterable[TrustedKey], key_id: str, role: str, at: str) -> TrustedKey:
    """The key with this id, when it may sign as `role` at the time `at`.

    Raises KeyRefused, whose `why` is `unknown`, `role`, `revoked`, `not-yet-valid` or `expired`: the first of
    these that is so. InvalidInput when role or time are no such thing, or two keys have the id.
    """
    checks.choice(role, "role", ROLES)
    time(at, "time")
    found = [key for key in keys if key.key_id == key_id]
    if len(found) > 1:
        raise InvalidInput("each key once", "one that is listed twice", "Merge its roles into one record.")
    if not found:
        raise KeyRefused("the signature of a trusted key", "one of an unknown key", _ADD, "unknown")
    if why := refusal(found[0], role, at):
        raise KeyRefused(f"a key that may sign as {role} at {at}", _CAME[why], _ADD, why)
    return found[0]


def usable(keys: Iterable[TrustedKey], role: str, at: str) -> dict[str, str]:
    """The PEM of each key that may sign as `role` at the time `at`, by key id: what `dsse.verify` takes."""
    checks.choice(role, "role", ROLES)
    time(at, "time")
    return {key.key_id: key.public for key in keys if refusal(key, role, at) is None}


def refusal(key: TrustedKey, role: str, at: str) -> Refusal | None:
    """Why `key` may not sign as `role` at the time `at`; None when it may."""
    if role not in key.roles:
        return "role"
    if key.revoked_at is not None and (key.revoked_reason == "compromised" or at >= key.revoked_at):
        return "revoked"
    if at < key.valid_from:
        return "not-yet-valid"
    return "expired" if key.valid_until is not None and at >= key.valid_until else None


def time(value: str, name: str) -> str:
    """A time as `canon.timestamp` writes it, which sorts as text. Raises InvalidInput."""
    try:
        real = isinstance(value, str) and _TIME.fullmatch(value) and datetime.fromisoformat(value)  # pyright: ignore[reportUnnecessaryIsInstance]
    except ValueError:
        real = False
    if not real:
        expected = f"{name} as UTC RFC 3339 with microseconds"
        raise InvalidInput(expected, "other text", "Write it as 2026-01-31T09:00:00.000000Z.")
    return value


_ADD = "Look at the registry's keys, or have one added, extended or given the role."
_CAME: Mapping[Refusal, str] = {
    "unknown": "an unknown key",
    "role": "a key without that role",
    "not-yet-valid": "a key that is not valid yet",
    "expired": "an expired key",
    "revoked": "a revoked key",
}
