"""Arguments that name keys and moments, read the same way by every command."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import InvalidInput, NotFound, attest, signing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", help="Private key; by default the one that EFFACE_SIGNING_KEY_FILE names."
    ),
]
_LARGEST_KEY = 16 * 1024


def public_key(path: Path) -> str:
    """The text of a public key's file. Raises NotFound, InvalidInput."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_KEY).decode()
    except FileNotFoundError as error:
        raise NotFound("the file of a public key", "none", "Make one: efface key generate") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("a file with a public key in PEM", "another", "Pass its SPKI PEM.") from error
    signing.raw_public(text)
    return text


def private_key(path: Path | None) -> Ed25519PrivateKey:
    """The signing key in a file or of the environment. Raises NotFound, InvalidInput."""
    return signing.signing_key(path)


def private_key_at_hand(path: Path | None) -> Ed25519PrivateKey | None:
    """As `private_key`; None when neither names one: then nothing is signed."""
    return attest.signer() if path is None else signing.signing_key(path)


def moment(text: str | None) -> datetime | None:
    """An RFC 3339 time, UTC where it has no zone."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"expected RFC 3339 such as 2026-11-22T09:00:00Z, got {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
