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
    if (quick := _quick(value)) is not None:
        return quick.encode("ascii")
    try:
        return rfc8785.dumps(_plain(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidInput("a JSON value that RFC 8785 can write", type(error).__name__, _FIX_JSON) from error


def parse(text: str | bytes) -> JSON:
    """The value of a JSON text; strict: no NaN, no repeated keys, no number beyond the doubles. Raises InvalidInput.

    Integers beyond 2^53-1 come back as floats: RFC 8785 writes 1e16 without an exponent, and reading its own
    output back must give the same canonical bytes.
    """
    try:
        return json.loads(
            text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise InvalidInput("UTF-8 JSON without repeated keys", type(error).__name__, _FIX_JSON) from error


def parse_canonical(text: str) -> JSON | None:
    """The value of `text` if it is RFC 8785 beyond doubt, quickly; None when only `canonical(parse(…))` can tell.

    Reading and writing again with the standard library proves it for ASCII text whose numbers Python and ECMAScript
    spell alike: small integers, and decimals without exponent that Python reads and writes the same.
    """
    if not text.isascii():
        return None
    try:
        value = _PLAIN.decode(text)
        written = _SORTED.encode(value)
    except (ValueError, RecursionError):
        return None
    return value if written == text else None


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
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:  # the first and the last hours of the calendar, in another zone
        raise InvalidInput("a time in the years 1 to 9999 in UTC", "another", "Check the date.") from None
    return utc.isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_timestamp(text: str) -> datetime:
    """The moment in a timestamp that `timestamp` wrote. Raises InvalidInput for another spelling."""
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None or timestamp(moment) != text:
        raise InvalidInput(
            "a time such as 2026-01-31T09:00:00.000000Z", "other text", "Write UTC, to the μs."
        )
    return moment


def months_later(moment: datetime, months: int) -> datetime:
    """The same UTC day and time `months` calendar months later; the last day where that month is shorter."""
    utc = moment.astimezone(UTC)
    years, month = divmod(utc.month - 1 + months, 12)
    year, month = utc.year + years, month + 1
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


def _quick(value: JSON) -> str | None:
    """What the standard library writes, if `parse_canonical` proves that it is canonical and means `value`."""
    try:
        text = _SORTED.encode(value)
    except (TypeError, ValueError, RecursionError):
        return None
    # Equal, so no key was a number and no list a tuple.
    return text if (found := parse_canonical(text)) is not None and found == value else None


def quoted(text: str) -> str:
    """A JSON text as RFC 8785 §3.2.2.2 writes it, which is how the standard library does without ensure_ascii."""
    return _SORTED.encode(text)


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
    if isinstance(value, int) and abs(value) > LARGEST_EXACT_INTEGER:
        raise InvalidInput("integers below 2^53", "a larger one", "Write it as text, or as a float.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise InvalidInput("a JSON value", type(value).__name__, _FIX_JSON)


def _integer(text: str) -> int | float:
    number = int(text)
    return number if abs(number) <= LARGEST_EXACT_INTEGER else _finite(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("a number beyond the doubles")
    return number


def _small(text: str) -> int:
    if len(text) > 15:
        raise ValueError("a long integer")
    return int(text)


def _plain_float(text: str) -> float:
    """Python writes 1e-05 and 1.0 where ECMAScript has 0.00001 and 1; elsewhere in this range both agree."""
    number = float(text)
    if repr(number) != text or "e" in text or text.endswith(".0"):
        raise ValueError("a number that has two spellings")
    return number


def _refuse(_constant: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("repeated key")
    return found


# Made once: `verify` reads and writes a body per event with them.
_PLAIN = json.JSONDecoder(parse_int=_small, parse_float=_plain_float, parse_constant=_refuse)
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
