"""Ed25519 keys and signatures (RFC 8032).

A public key is a value: the text of its SPKI PEM (RFC 8410), and its id is `sha256:<hex>` of the SPKI DER, so
reading and naming keys needs no cryptography package. A private key is an object of that package, imported
where it is used; it comes from a PKCS #8 PEM file or from the environment and is never stored or logged here.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from . import durable
from .canon import Digest, digest_bytes
from .errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VARIABLE = "EFFACE_SIGNING_KEY"
"""Environment variable with the private key as PEM text."""
FILE_VARIABLE = "EFFACE_SIGNING_KEY_FILE"
"""Environment variable with the path of the private key."""

PUBLIC_BYTES = 32
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410 §4: id-Ed25519, then 32 bytes
_PEM_LIMIT = 16 * 1024
_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
_FIX_PUBLIC = "Write it with `openssl pkey -in KEY -pubout`."
_FIX_PRIVATE = "Make one with `openssl genpkey -algorithm ed25519`."


def generate() -> Ed25519PrivateKey:
    """A new private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate()


def public_pem(private: Ed25519PrivateKey) -> str:
    """The public key of `private`: PEM text, canonical."""
    return pem_of(private.public_key().public_bytes_raw())


def pem_of(raw: bytes) -> str:
    """The PEM text of a public key of 32 bytes. Raises InvalidInput."""
    if len(raw) != PUBLIC_BYTES:
        raise InvalidInput(f"a public key of {PUBLIC_BYTES} bytes", "another length", _FIX_PUBLIC)
    return f"{_BEGIN}\n{base64.b64encode(_SPKI_PREFIX + raw).decode()}\n{_END}\n"


def raw_public(pem: str) -> bytes:
    """The 32 bytes of a public key in PEM. Raises InvalidInput for anything but one Ed25519 SPKI."""
    lines = [line.strip() for line in pem[:_PEM_LIMIT].split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    try:
        der = base64.b64decode(lines[1], validate=True) if len(lines) == 3 else b""
    except ValueError:
        der = b""
    raw = der.removeprefix(_SPKI_PREFIX)
    if len(der) != len(_SPKI_PREFIX) + PUBLIC_BYTES or pem_of(raw[:32]).split("\n")[:3] != lines:
        raise InvalidInput("one Ed25519 public key in PEM (SPKI)", "other text", _FIX_PUBLIC)
    return raw


def key_id(pem: str) -> Digest:
    """`sha256:<hex>` of the SPKI DER of a public key in PEM. Raises InvalidInput."""
    return digest_bytes(_SPKI_PREFIX + raw_public(pem))


def sign(private: Ed25519PrivateKey, data: bytes) -> bytes:
    """The 64 bytes of the signature of `data`; the same each time."""
    return private.sign(data)


def verify(public: str, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is that of `data` by the key in PEM. Raises InvalidInput when that is no key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(raw_public(public)).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def private_pem(private: Ed25519PrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS #8 PEM; with a passphrase encrypted as OpenSSL does by default (PBES2 with AES-256-CBC)."""
    from cryptography.hazmat.primitives import serialization

    locked = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return private.private_bytes(pem, pkcs8, locked)


def load_private(pem: bytes, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """The private key in PKCS #8 PEM. Raises InvalidInput, also for a missing or wrong passphrase."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem[:_PEM_LIMIT], passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # not chained: its text may quote the input
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        expected = "an Ed25519 private key in PKCS #8 PEM, with its passphrase if it has one"
        raise InvalidInput(expected, "something else", _FIX_PRIVATE) from None
    return key


def write_private(private: Ed25519PrivateKey, path: Path, passphrase: bytes | None = None) -> None:
    """Write the key to a new file that only its owner can read (0600). Conflict when there is one already."""
    data = private_pem(private, passphrase)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise Conflict("a path without a file", "an existing file", "Keys are never overwritten.") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    durable.sync_folder(path.parent)


def read_private(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """The private key in a file. Raises NotFound or InvalidInput."""
    try:
        with path.open("rb") as file:
            pem = file.read(_PEM_LIMIT)
    except FileNotFoundError as error:
        raise NotFound("the file of a signing key", "none", f"{_FIX_PRIVATE}") from error
    return load_private(pem, passphrase)


def signing_key(
    path: Path | None = None,
    passphrase: bytes | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ed25519PrivateKey:
    """The key in the file `path`, or else the one that the environment names.

    Raises NotFound when neither names one, InvalidInput when the environment names two or what it names is
    no key.
    """
    given = os.environ if environment is None else environment
    if path is not None:
        return read_private(path, passphrase)
    if VARIABLE in given and FILE_VARIABLE in given:
        raise InvalidInput(f"{VARIABLE} or {FILE_VARIABLE}", "both", "Unset one of them.")
    if VARIABLE in given:
        return load_private(given[VARIABLE].encode(), passphrase)
    if FILE_VARIABLE in given:
        return read_private(Path(given[FILE_VARIABLE]), passphrase)
    raise NotFound("a signing key", "none", f"Name its file, or set {FILE_VARIABLE} or {VARIABLE}.")
