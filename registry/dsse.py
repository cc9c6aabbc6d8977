"""DSSE v1 envelopes: a payload, its type, and signatures over both (github.com/secure-systems-lab/dsse).

    signature = Ed25519( "DSSEv1" SP len(type) SP type SP len(payload) SP payload )

Key ids in an envelope are hints that nobody signed: they only say which key to try first. What counts is how
many different trusted keys signed.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from . import canon, signing
from .errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_SIGNATURES = 16
LARGEST_ENVELOPE = 4 * 1024 * 1024
_LONGEST_TYPE = 256
_LONGEST_KEY_ID = 512
_FIX = "Pass a DSSE v1 JSON envelope as it was written."


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `key_id` is "" when the envelope names none."""

    key_id: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with signatures, none of them checked. `verify` checks them and returns the payload."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def to_json(self) -> bytes:
        """The JSON envelope, as RFC 8785 writes it."""
        signatures: list[canon.JSON] = [
            {"keyid": signature.key_id, "sig": _base64(signature.sig)} for signature in self.signatures
        ]
        return canon.canonical(
            {"payload": _base64(self.payload), "payloadType": self.payload_type, "signatures": signatures}
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """A payload and the ids of the trusted keys that signed it, sorted."""

    payload: bytes
    key_ids: tuple[str, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload_type: str, payload: bytes, keys: Sequence[Ed25519PrivateKey]) -> Envelope:
    """An envelope signed by each of `keys`. Raises InvalidInput unless there are 1 to 16."""
    _check_type(payload_type)
    if not 1 <= len(keys) <= MOST_SIGNATURES:
        raise InvalidInput(f"1 to {MOST_SIGNATURES} signing keys", f"{len(keys)}", "Pass a list of keys.")
    signed = pae(payload_type, payload)
    signatures = (Signature(signing.key_id(signing.public_pem(k)), signing.sign(k, signed)) for k in keys)
    return Envelope(payload_type, payload, tuple(signatures))


def parse(data: bytes, limit: int = LARGEST_ENVELOPE) -> Envelope:
    """The envelope in JSON text from anywhere, not verified. Raises InvalidInput.

    Standard and URL-safe base64 are read, as DSSE demands; fields that it does not know are ignored.
    """
    if len(data) > limit:
        raise InvalidInput(f"an envelope of at most {limit} bytes", "a larger one", _FIX)
    value = canon.parse(data)
    if not isinstance(value, Mapping):
        raise InvalidInput("a JSON object", "another JSON value", _FIX)
    fields = cast(Mapping[str, Any], value)
    signatures = fields.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(cast(list[Any], signatures)) <= MOST_SIGNATURES:
        raise InvalidInput(f"a list of 1 to {MOST_SIGNATURES} signatures", "something else", _FIX)
    return Envelope(
        payload_type=_check_type(_text(fields, "payloadType")),
        payload=_bytes(_text(fields, "payload")),
        signatures=tuple(_signature(item) for item in cast(list[Any], signatures)),
    )


def verify(envelope: Envelope, keys: Mapping[str, str], *, payload_type: str, threshold: int = 1) -> Verified:
    """The payload, when at least `threshold` different keys signed it and it is of type `payload_type`.

    `keys` are the public keys that count: PEM by key id. Signatures by others are ignored. GateFailed when
    too few are left or the type is another; InvalidInput for a threshold below 1.
    """
    if threshold < 1:
        raise InvalidInput("a threshold of at least 1", "less", "Ask for at least one signature.")
    if envelope.payload_type != payload_type:
        raise GateFailed(f"a payload of type {payload_type}", "another type", "Pass the right envelope.")
    signed = pae(envelope.payload_type, envelope.payload)
    names = {signing.raw_public(pem): name for name, pem in keys.items()}  # one key under two names is one
    accepted = {key for signature in envelope.signatures if (key := _signer(signature, signed, keys))}
    if len(accepted) < threshold:
        expected = f"signatures of at least {threshold} of {len(names)} trusted keys"
        raise GateFailed(expected, f"{len(accepted)}", "Have it signed, or add the keys that signed it.")
    return Verified(envelope.payload, tuple(sorted(names[key] for key in accepted)))


def _signer(signature: Signature, signed: bytes, keys: Mapping[str, str]) -> bytes | None:
    """The public key that made this signature; the key that it names is the only one tried, if trusted."""
    hinted = keys.get(signature.key_id)
    for pem in keys.values() if hinted is None else (hinted,):
        if signing.verify(pem, signature.sig, signed):
            return signing.raw_public(pem)
    return None


def _signature(item: Any) -> Signature:
    if not isinstance(item, Mapping):
        raise InvalidInput("a signature as an object", "another JSON value", _FIX)
    fields = cast(Mapping[str, Any], item)
    if len(key_id := _text(fields, "keyid")) > _LONGEST_KEY_ID:
        raise InvalidInput(f"a keyid of at most {_LONGEST_KEY_ID} characters", "a longer one", _FIX)
    return Signature(key_id, _bytes(_text(fields, "sig")))


def _check_type(payload_type: str) -> str:
    try:
        short = 1 <= len(payload_type) <= _LONGEST_TYPE and bool(payload_type.encode())
    except UnicodeEncodeError:  # a lone surrogate
        short = False
    if not short:
        raise InvalidInput(f"a payloadType of 1 to {_LONGEST_TYPE} characters", "another text", _FIX)
    return payload_type


def _text(fields: Mapping[str, Any], name: str) -> str:
    """A text field; "" when it is left out, as DSSE allows for empty ones."""
    if not isinstance(value := fields.get(name, ""), str):
        raise InvalidInput(f"{name} as text", "another JSON value", _FIX)
    return value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """The bytes of padded base64 in one of the two alphabets, in its only spelling. Raises InvalidInput."""
    for encode, decode in (
        (base64.b64encode, base64.standard_b64decode),
        (base64.urlsafe_b64encode, base64.urlsafe_b64decode),
    ):
        try:
            if encode(data := decode(text)).decode() == text:
                return data
        except ValueError:
            continue
    raise InvalidInput("padded base64", "other text", _FIX)
