"""Canonical forms: the written contract under every digest in the registry.

* JSON bytes follow RFC 8785 (numbers are IEEE 754 doubles, so `1` and `1.0` are one value).
* A digest is `sha256:<64 hex>` over those bytes or over a file's bytes.
* A time is UTC RFC 3339 with microseconds and `Z`: fixed width, so it sorts as text.
* A weight is a plain decimal without exponent or trailing zeros, so 1, 1.0 and "1.00" are one weight.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NewType, NoReturn, TypeAlias

import rfc8785

from .errors import InvalidInput

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Digest = NewType("Digest", str)

LARGEST_EXACT_INTEGER = 2**53 - 1
_WEIGHT_DIGITS = 18
_FIX_JSON = "Pass only null, booleans, numbers, text, lists and objects with text keys."


def canonical(value: JSON) -> bytes:
    """RFC 8785 bytes of `value`. Raises InvalidInput for NaN, infinities, large integers, other types."""
    try:
        return rfc8785.dumps(_plain(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidInput("a JSON value that RFC 8785 can write", type(error).__name__, _FIX_JSON) from error


def parse(text: str | bytes) -> JSON:
    """The value of a JSON text; strict: no NaN, no repeated keys. Raises InvalidInput.

    Integers beyond 2^53-1 come back as floats: RFC 8785 writes 1e16 without an exponent, and reading its own
    output back must give the same canonical bytes.
    """
    try:
        return json.loads(text, parse_int=_integer, parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("UTF-8 JSON without repeated keys", type(error).__name__, _FIX_JSON) from error


def digest_bytes(data: bytes) -> Digest:
    """`sha256:<hex>` of bytes."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_json(value: JSON) -> Digest:
    """`sha256:<hex>` of the canonical JSON of `value`."""
    return digest_bytes(canonical(value))


def timestamp(moment: datetime) -> str:
    """`2026-01-31T09:00:00.000000Z`. Raises InvalidInput for a datetime without a time zone."""
    if moment.tzinfo is None:
        raise InvalidInput("a datetime with a time zone", "one without", "Pass datetime(…, tzinfo=UTC).")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def next_month(moment: datetime) -> datetime:
    """The same UTC day and time one calendar month later; the last day where that month is shorter."""
    utc = moment.astimezone(UTC)
    year, month = (utc.year + 1, 1) if utc.month == 12 else (utc.year, utc.month + 1)
    return utc.replace(year=year, month=month, day=min(utc.day, calendar.monthrange(year, month)[1]))


def weight(value: str | int | float | Decimal) -> str:
    """The canonical decimal of a finite weight of at most 18 digits either side of the point."""
    number = _decimal(value)
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or len(digits) > _WEIGHT_DIGITS or abs(exponent) > _WEIGHT_DIGITS:
        raise InvalidInput("a finite decimal weight of at most 18 digits", "another number", "Round it.")
    text = format(number, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if number == 0 else text


def _decimal(value: str | int | float | Decimal) -> Decimal:
    """Exact for text and integers; a float counts as its shortest decimal, which is what people wrote."""
    try:
        return Decimal(repr(value) if isinstance(value, float) else value)
    except (InvalidOperation, TypeError, ValueError) as error:
        raise InvalidInput(
            "a decimal weight such as 1 or 0.5", "something else", "Write a number."
        ) from error


def _plain(value: JSON) -> JSON:
    """Dicts and lists all the way down (rfc8785 takes no other containers); refuses non-finite floats."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput("finite numbers", "NaN or an infinity", "Leave the key out or write null.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise InvalidInput("a JSON value", type(value).__name__, _FIX_JSON)


def _integer(text: str) -> int | float:
    number = int(text)
    return number if abs(number) <= LARGEST_EXACT_INTEGER else float(text)


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("repeated key")
    return found
