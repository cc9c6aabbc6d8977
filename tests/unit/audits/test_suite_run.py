"""The record of a suite run: what it holds, and that its row hashes give no text away."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.audits import RecordError, RowHash, SuiteRun, hash_row, key_name

KEY = bytes(range(32))


def hashed(id: str = "f0", text: str = "who?", key: bytes = KEY) -> RowHash:
    return RowHash("q1", "forget", id, hash_row(key, text), key_name(key))


def run(**changes: object) -> SuiteRun:
    fields: dict[str, object] = {
        "name": "quick",
        "version": 1,
        "digest": "sha256:ab",
        "seed": 0,
        "precision": "nf4",
    }
    return SuiteRun(**(fields | changes))  # type: ignore[arg-type]


def test_it_is_plain_json() -> None:
    made = run(seconds={"rows": 1.5, "prompt": 0.25}, rows=(hashed(),), skipped={"mia": "no holdout rows"})
    again = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert again == made.to_json()
    assert (made.title, made.total_seconds) == ("quick/1", 1.75)
    assert again["rows"] == [hashed().to_json()]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"version": 0},
        {"seed": -1},
        {"cached": -1},
        {"seconds": {"rows": float("nan")}},
        {"seconds": {"rows": -1.0}},
        {"figures": {"utility": float("inf")}},
        {"rows": (hashed(), hashed(text="another"))},
    ],
    ids=str,
)
def test_what_no_run_can_have_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RecordError, match="suite run"):
        run(**changes)


@given(st.text(), st.text(), st.binary(min_size=16, max_size=64), st.binary(min_size=16, max_size=64))
def test_a_row_hash_depends_on_text_and_key_only(one: str, other: str, key: bytes, second: bytes) -> None:
    assert (hash_row(key, one) == hash_row(key, other)) == (one == other)
    assert (hash_row(key, one, other) == hash_row(key, one + other)) is False
    # HMAC pads short keys with zero bytes: those are one key.
    same = key.rstrip(b"\0") == second.rstrip(b"\0")
    assert same or hash_row(key, one) != hash_row(second, one)
    assert same or key_name(key) != key_name(second)


def test_a_row_hash_is_no_digest_of_the_text() -> None:
    text = "who wrote hamlet"
    for bare in (hashlib.sha256(text.encode()), hashlib.sha256(text.encode("utf-16"))):
        assert bare.hexdigest() not in hash_row(KEY, text)
    with pytest.raises(RecordError, match="at least 16 random bytes"):
        hash_row(b"", text)
    with pytest.raises(RecordError, match="made by hash_row"):
        RowHash("q1", "forget", "f0", hashlib.sha256(text.encode()).hexdigest(), key_name(KEY))
