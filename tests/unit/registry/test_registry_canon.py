"""Canonical JSON against RFC 8785's own examples, and the other canonical forms."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from efface.registry import InvalidInput, canonical, digest_bytes, timestamp
from efface.registry.canon import months_later, parse, weight


def test_the_example_of_rfc_8785_section_3_2_2() -> None:
    text = r"""{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }"""
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(parse(text)).decode() == expected


def test_keys_sort_by_utf16_code_units() -> None:
    """RFC 8785 §3.2.3: U+1F600 (a surrogate pair from D83D) comes before U+FB33, against code point order."""
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(dict.fromkeys(keys, 0)))) == ordered


def test_a_whole_float_beyond_exact_integers_reads_back_as_itself() -> None:
    once = canonical({"n": 1e16})
    assert once == b'{"n":10000000000000000}'
    assert canonical(parse(once)) == once


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 2**53, {1: 2}, {"k": Decimal(1)}, "\ud800", {"\ud800": 1}, b"x"]
)
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        canonical({"deep": [value]})  # pyright: ignore


@pytest.mark.parametrize("text", ["", "{", '{"a":1,"a":2}', "NaN", "-Infinity", b"\xff", "[" * 100_000])
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


def test_digest_of_nothing_is_the_published_one() -> None:
    expected = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_bytes(b"") == expected


@pytest.mark.parametrize("same", ["1", "1.0", "1.00", "01", "1e0", "10e-1", 1, 1.0, Decimal("1.000")])
def test_one_weight_has_one_spelling(same: str | float | Decimal) -> None:
    assert weight(same) == "1"


@pytest.mark.parametrize(
    ("value", "text"), [("-0", "0"), (0.1, "0.1"), ("100", "100"), ("1E3", "1000"), ("-0.50", "-0.5")]
)
def test_weights_are_plain_decimals(value: str | float, text: str) -> None:
    assert weight(value) == text


@pytest.mark.parametrize(
    "value", ["nan", "inf", "", "one", "1e999999", "1e-999999", "1" * 19, math.nan, None]
)
def test_what_is_no_weight_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        weight(value)  # pyright: ignore


def test_times_are_utc_with_microseconds() -> None:
    east = datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    assert timestamp(east) == "2025-12-31T23:30:00.000000Z"
    with pytest.raises(InvalidInput):
        timestamp(datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("received", "due"),
    [
        ((2026, 1, 31), (2026, 2, 28)),
        ((2028, 1, 31), (2028, 2, 29)),
        ((2026, 12, 31), (2027, 1, 31)),
        ((2026, 3, 31), (2026, 4, 30)),
        ((2026, 2, 28), (2026, 3, 28)),
    ],
)
def test_a_calendar_month_later(received: tuple[int, int, int], due: tuple[int, int, int]) -> None:
    assert months_later(datetime(*received, 9, tzinfo=UTC), 1) == datetime(*due, 9, tzinfo=UTC)
