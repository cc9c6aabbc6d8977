"""An adapter folder signed in the format of OpenSSF Model Signing, for people who have no registry.

The signature is a Sigstore bundle in one file beside the weights, over an in-toto statement with the digest
of every file; `model_signing verify key` checks it. The package is the extra `model-signing`: it brings
Sigstore's client along, but signing and verifying with a key, as here, never use the network.

The package takes elliptic-curve keys only (P-256, P-384, P-521), so this key is not one of the registry's
Ed25519 keys: it vouches for the files, and the registry's own provenance for how they came about.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

from . import durable, release_file
from .errors import GateFailed, InvalidInput, NotFound

SIGNATURE = release_file.SIGNATURE
"""The name of the signature in the folder; it is left out of what is signed."""
PASSPHRASE = "EFFACE_MODEL_SIGNING_PASSPHRASE"  # noqa: S105 - its name
"""The variable with the passphrase of the private key, where it has one."""
_FIX_KEY = "Make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`."


def sign_folder(folder: Path, private_key: Path, passphrase: bytes | None = None) -> Path:
    """Sign every file in `folder` and write the signature into it; returns its path.

    `private_key` is a PEM file with an elliptic-curve key. Raises NotFound without the package, InvalidInput
    for another key or a folder that holds links.
    """
    config = _package("signing").Config()
    try:
        config.use_elliptic_key_signer(private_key=private_key, password=passphrase)
    except (ValueError, TypeError, AttributeError):  # not chained: its text may quote the key
        expected = "a private key on P-256, P-384 or P-521 in a PEM file, with its passphrase"
        raise InvalidInput(expected, "something else", _FIX_KEY) from None
    path = folder / SIGNATURE
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / SIGNATURE
        try:
            config.set_hashing_config(_hashing(path)).sign(folder, written)
        except ValueError as error:
            expected = "a folder of plain files"
            raise InvalidInput(expected, "links or nothing to sign", "Export the adapter anew.") from error
        durable.write_file(path, written.read_bytes(), 0o644)
    return path


def verify_folder(folder: Path, public_key: Path) -> None:
    """Check that every file in `folder` is as the key in the PEM file signed it, and that there is no other.

    Raises NotFound without the package or the signature, InvalidInput for another key, GateFailed when
    a file or the signature differs.
    """
    config = _package("verifying").Config()
    path = folder / SIGNATURE
    if not path.is_file():
        raise NotFound(f"{SIGNATURE} in the folder", "none", "Sign the folder first.")
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, AttributeError):
        expected = "a public key on P-256, P-384 or P-521 in a PEM file"
        raise InvalidInput(expected, "something else", _FIX_KEY) from None
    try:
        config.set_hashing_config(_hashing(path)).verify(folder, path)
    except Exception as error:  # noqa: BLE001 - a bundle from anywhere: the package lets its parsers' errors out
        raise GateFailed("a folder as it was signed", type(error).__name__, "Fetch it again.") from None


def _hashing(signature: Path) -> Any:
    return _package("hashing").Config().set_ignored_paths(paths=[signature], ignore_git_paths=False)


def _package(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ModuleNotFoundError as error:
        then = "Install it: pip install 'efface[model-signing]'."
        raise NotFound("the package model-signing", "none", then) from error
