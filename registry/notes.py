"""Signed notes (c2sp.org/signed-note): the text form in which transparency logs publish what they signed.

    TEXT, whose last character is a newline
    (an empty line)
    — NAME base64(key hash of 4 bytes || Ed25519 signature of TEXT)

A key has a name here; name and key hash together say which key signed. Signatures of other keys and other
algorithms are passed over, a wrong signature of a known key spoils the note.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from . import signing
from .errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_SIGNATURES = 100
"""The specification asks readers for 16 at least; the Go implementation reads 100."""
LARGEST_NOTE = 1024 * 1024
_ED25519 = b"\x01"
_HASH_BYTES = 4
_LINE = re.compile(r"— ([^ \n]+) ([A-Za-z0-9+/]+={0,2})")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_FIX = "Pass the whole note as it was published."


def check_name(name: str) -> str:
    """A key's name: not empty, without plus signs, spaces and control characters. Raises InvalidInput."""
    if not name or len(name) > 255 or any(c == "+" or c.isspace() or c < " " for c in name):
        expected = "a name of 1 to 255 characters without spaces and plus signs"
        raise InvalidInput(expected, "another name", "Use one such as `example.com/log`.")
    return name


def key_hash(name: str, public: str) -> bytes:
    """The 4 bytes that stand for the Ed25519 key `public` (PEM) under `name`."""
    tagged = check_name(name).encode() + b"\n" + _ED25519 + signing.raw_public(public)
    return hashlib.sha256(tagged).digest()[:_HASH_BYTES]


def verifier_key(name: str, public: str) -> str:
    """The key as a line of text (`vkey`) for the configuration of log clients and witnesses."""
    material = base64.b64encode(_ED25519 + signing.raw_public(public)).decode()
    return f"{name}+{key_hash(name, public).hex()}+{material}"


def parse_verifier_key(text: str) -> tuple[str, str]:
    """Name and PEM of an Ed25519 `vkey`. Raises InvalidInput."""
    name, _, rest = text.partition("+")
    try:
        material = base64.b64decode(rest.partition("+")[2], validate=True)
        public = signing.pem_of(material.removeprefix(_ED25519))
        if verifier_key(name, public) == text:
            return name, public
    except (ValueError, InvalidInput):
        pass
    raise InvalidInput("an Ed25519 verifier key NAME+HASH+KEY", "other text", "Copy the whole line.")


def sign(text: str, name: str, private: Ed25519PrivateKey) -> str:
    """The note of `text` signed by `private` under `name`. Raises InvalidInput."""
    _check_text(text)
    signed = key_hash(name, signing.public_pem(private)) + signing.sign(private, text.encode())
    return f"{text}\n— {name} {base64.b64encode(signed).decode()}\n"


def verify(note: str | bytes, keys: Iterable[tuple[str, str]]) -> str:
    """The text of a note that at least one of `keys` signed; they are names with public keys in PEM.

    Raises InvalidInput when it is no note, GateFailed when a signature of a known key is wrong or there is
    none. The note may come from anywhere.
    """
    text, lines = _split(_decoded(note))
    known = {(name, key_hash(name, public)): public for name, public in keys}
    held = 0
    for name, raw in (_signature(line) for line in lines):
        if (public := known.get((name, raw[:_HASH_BYTES]))) is not None:
            if not signing.verify(public, raw[_HASH_BYTES:], text.encode()):
                raise GateFailed("a note as it was signed", "another text or signature", _FIX)
            held += 1
    if not held:
        raise GateFailed("a note signed by a known key", "none", "Add the verifier key of its log.")
    return text


def _decoded(note: str | bytes) -> str:
    if len(note) > LARGEST_NOTE:
        raise InvalidInput(f"a note of at most {LARGEST_NOTE} bytes", "a larger one", _FIX)
    try:
        return note.decode() if isinstance(note, bytes) else note.encode().decode()
    except UnicodeError:
        raise InvalidInput("a note in UTF-8", "other bytes", _FIX) from None


def _split(note: str) -> tuple[str, list[str]]:
    """The text and the signature lines: the last empty line parts them."""
    text, gap, signatures = note.rpartition("\n\n")
    lines = signatures.split("\n")
    if not gap or lines.pop() or not 1 <= len(lines) <= MOST_SIGNATURES:
        raise InvalidInput("a text, an empty line and signatures", "other text", _FIX)
    return _check_text(text + "\n"), lines


def _signature(line: str) -> tuple[str, bytes]:
    """Name and bytes of a signature line. Raises InvalidInput."""
    match = _LINE.fullmatch(line)
    try:
        raw = base64.b64decode(match[2], validate=True) if match else b""
    except ValueError:
        raw = b""
    if not match or len(raw) <= _HASH_BYTES or base64.b64encode(raw).decode() != match[2]:
        raise InvalidInput("signature lines of a note", "another line", _FIX)
    return check_name(match[1]), raw


def _check_text(text: str) -> str:
    if not text.endswith("\n") or _CONTROL.search(text):
        expected = "text that ends with a newline and has no other control character"
        raise InvalidInput(expected, "other text", _FIX)
    return text
