"""The quick ways around the RFC 8785 writer against that writer: same bytes, and nothing else called canonical."""

import json
import math
import string
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from efface.registry import InvalidInput, canonical, timestamp
from efface.registry.canon import JSON, parse, parse_canonical, parse_timestamp, quoted
from efface.registry.ledger import preimage
from efface.registry.types import Event

ODD_FLOATS = [
    0.0,
    -0.0,
    5e-324,
    1e-7,
    1e-6,
    1.1e-6,
    1e-5,
    1e-4,
    0.1,
    1.0,
    1e15,
    1e16,
    1.5e16,
    1e21,
    1e22,
    2.0**53,
]
ODD_TEXTS = [
    "\x00",
    "\x1f",
    "\x7f",
    "\x80",
    '"',
    "\\",
    "/",
    "\u2028",
    "\ufb33",
    "\U0001f600",
    "é",
    "e\u0301",
    "</",
]
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [s * f for f in ODD_FLOATS for s in (1, -1)]
)
integers = st.integers(-(2**53) + 1, 2**53 - 1) | st.sampled_from([10**15 - 1, 10**15, -(10**14), 0, -1])
texts = st.text() | st.text(string.printable) | st.sampled_from(ODD_TEXTS)
values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=400)
@given(values)
@example([1e16, 1e-7, 100.0, -0.0, 123456789012345.6])
@example({"b": 1, "a": [True, 1, 1.0, None, "\x7f"]})
@example({"\ufb33": 1, "\U0001f600": 2})
def test_the_bytes_are_those_of_the_writer(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@settings(max_examples=400)
@given(values)
def test_what_is_called_canonical_is_and_means_the_value(value: Any) -> None:
    text = rfc8785.dumps(value).decode()
    found = parse_canonical(text)
    assert found is None or (found == value and same_kinds(found, value))


def same_kinds(one: Any, two: Any) -> bool:
    """Equal, and true is not 1; a whole float is the integer that RFC 8785 writes."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same_kinds(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same_kinds, one, two))
    return isinstance(one, bool) == isinstance(two, bool)


@settings(max_examples=400)
@given(values, st.booleans(), st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (",", ": ")]))
def test_another_spelling_is_never_called_canonical(value: Any, escape: bool, ordered: bool, marks) -> None:
    text = json.dumps(value, ensure_ascii=escape, sort_keys=ordered, separators=marks)
    if parse_canonical(text) is not None:
        assert text.encode() == rfc8785.dumps(value)


pieces = st.sampled_from(
    [*'{}[]":,0123456789.-+eE aAbB\\/', "true", "false", "null", "NaN", "Infinity", "1e5", "1.0", "-0", "0.1",
     "\\u0041", "\\u00e9", "\\/", "\\n", "\\ud800", '"a":1', '"b":2', "\n", "\t", "1e999", "9007199254740993"]
)  # fmt: skip


@settings(max_examples=1500)
@given(st.lists(pieces, max_size=12).map("".join))
@example('{"b":1,"a":2}')
@example('{"a":1,"a":1}')
@example('"\\u0041"')
@example('"\\/"')
@example('"\\u001F"')
@example("1.0")
@example("1E5")
@example("-0")
@example("1e999")
@example("100000000000000000000")
@example(" 1")
def test_any_text_called_canonical_is_what_the_writer_gives(text: str) -> None:
    if (found := parse_canonical(text)) is not None:
        assert rfc8785.dumps(found) == text.encode()  # pyright: ignore
        assert parse(text) == found


@given(texts)
def test_quoted_text(text: str) -> None:
    assert quoted(text).encode() == rfc8785.dumps(text)


words = st.text(st.characters(exclude_categories=("Cs",)))


@given(st.integers(0, 2**53 - 1), words, words, words, words, st.dictionaries(texts, values, max_size=3))
def test_the_preimage_of_an_event(seq: int, at: str, actor: str, kind: str, about: str, body: Any) -> None:
    event = Event(seq, 1, at, kind, actor, kind, about, body, about, "not covered")
    described = {
        "seq": seq, "v": 1, "at": at, "kind": kind, "actor": actor, "subject_kind": kind, "subject_id": about,
        "body": body, "prev_hash": about,
    }  # fmt: skip
    assert preimage(event, canonical(body).decode()) == rfc8785.dumps(described)


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (MappingProxyType({"b": (1, 2), "a": MappingProxyType({})}), b'{"a":{},"b":[1,2]}'),
        ((), b"[]"),
        (Number.ONE, b"1"),
        ({"k": 1e20}, b'{"k":100000000000000000000}'),
    ],
)
def test_other_containers_mean_the_same(value: JSON, written: bytes) -> None:
    assert canonical(value) == written


def loop() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep(depth: int) -> Mapping[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "value",
    [loop(), deep(100_000), 10**5000, -(2**53), {1: 2, "1": 3}, {True: 1}, {None: 1}, {"a": {2: 1}}, math.inf,
     {"a": {1}}, b"", object(), 1j],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_no_json_no_bytes(value: Any) -> None:
    with pytest.raises(InvalidInput):
        canonical(value)


@pytest.mark.parametrize("text", ["1e999", "-1e400", "1" + "0" * 400, "[1e309]", "1" * 5000])
def test_numbers_beyond_the_doubles_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


@pytest.mark.parametrize("moment", [datetime.min, datetime.max])
def test_times_beyond_the_calendar_are_refused(moment: datetime) -> None:
    hours = 1 if moment == datetime.min else -1
    with pytest.raises(InvalidInput, match="1 to 9999"):
        timestamp(moment.replace(tzinfo=timezone(timedelta(hours=hours))))


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_reads_back_as_itself_and_sorts_as_text(moment: datetime) -> None:
    text = timestamp(moment)
    assert parse_timestamp(text) == moment
    assert len(text) == 27
    later = moment + timedelta(microseconds=1) if moment < datetime.max.replace(tzinfo=UTC) else moment
    assert text <= timestamp(later)


@pytest.mark.parametrize(
    "text",
    ["", "2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+00:00", "2026-01-01T00:00:00.000000",
     "2026-01-01 00:00:00.000000Z", "2026-W01-1T00:00:00.000000Z", "0001-01-01T00:00:00.000000+01:00", None],
)  # fmt: skip
def test_another_spelling_of_a_time_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_timestamp(text)
