"""Which of the keys that signed something may: for the registry's verifier and the bundle's alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import dsse, trust
from .errors import GateFailed
from .trust import TrustedKey

REVOKED = "a revoked key"
"""Why a signature does not count that a compromised key took with it: no damage once another stands for the same."""


@dataclass(frozen=True, slots=True)
class Known:
    """The keys of a ledger, and the number of the event that added each: it signs nothing before that."""

    keys: list[TrustedKey]
    added: Mapping[str, int]


def accepted(
    envelope: dsse.Envelope, known: Known, role: str, at: str, seq: int, payload_type: str
) -> tuple[str, ...]:
    """The ids of the keys that signed and may as `role` at this time and place of the ledger, sorted.

    Raises GateFailed when there is none; it says why the first of the others may not.
    """
    every = {key.key_id: key.public for key in known.keys}
    signed = dsse.verify(envelope, every, payload_type=payload_type).key_ids
    allowed: list[str] = []
    refusals: list[str] = []
    for key_id in signed:
        try:
            trust.allowed(known.keys, key_id, role, at)
        except GateFailed as error:
            refusals.append(error.came)
            continue
        if known.added[key_id] <= seq:
            allowed.append(key_id)
        else:
            refusals.append("a key that was added later")
    if not allowed:
        then = "Sign it again with a key that may."
        raise GateFailed(f"the signature of a key that may sign as {role} at {at}", refusals[0], then)
    return tuple(allowed)
