"""Checks of single arguments. Each returns what it accepts or raises InvalidInput without repeating it."""

from __future__ import annotations

import re
import unicodedata

from .canon import Digest
from .errors import InvalidInput

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+-]*")
_CHANNEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})


def text(value: str, name: str, limit: int) -> str:
    """Free text of 1 to `limit` characters without control characters or lone surrogates."""
    if not isinstance(value, str) or not value.strip() or len(value) > limit:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{name} of 1 to {limit} characters", "another length", f"Give a short {name}.")
    if any(unicodedata.category(char) in _CONTROL for char in value):
        raise InvalidInput(f"{name} on one line", "control characters", "Remove them.")
    return value


def actor(value: str) -> str:
    """Who acts: free text of at most 200 characters."""
    return text(value, "actor", 200)


def reason(value: str) -> str:
    """Why: free text of at most 500 characters. It goes into the ledger for good: no personal data."""
    return text(value, "reason", 500)


def token(value: str, name: str, limit: int = 64) -> str:
    """A name that is safe in ids, files and URLs."""
    if not isinstance(value, str) or len(value) > limit or not _TOKEN.fullmatch(value):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(
            f"{name} of at most {limit} letters, digits or ._:@/+-", "other text", "Rename it."
        )
    return value


def channel(value: str) -> str:
    """A release channel: 1 to 64 of A-Z a-z 0-9 . _ - and no leading dot."""
    if not isinstance(value, str) or not _CHANNEL.fullmatch(value):  # pyright: ignore[reportUnnecessaryIsInstance]
        expected = "a channel of 1 to 64 letters, digits, '.', '_' or '-' that does not start with a dot"
        raise InvalidInput(expected, "another name", "Use a name such as `prod`.")
    return value


def digest(value: str, name: str) -> Digest:
    """A full `sha256:<64 hex>`."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{name} as sha256:<64 hex>", "other text", "Pass the whole digest.")
    return Digest(value)


def count(value: int, name: str, least: int) -> int:
    """A whole number of at least `least` that JSON can hold exactly."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**53:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidInput(f"{name} as a whole number from {least}", "another value", f"Give a {name}.")
    return value


def choice(value: str, name: str, options: tuple[str, ...]) -> str:
    """One of `options`."""
    if value not in options:
        raise InvalidInput(f"{name} to be one of {', '.join(options)}", "another word", "Choose one of them.")
    return value
