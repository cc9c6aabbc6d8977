"""Probes: what counts as the same answer, and that a broken probe set is none."""

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.serving import ProbeFailed
from efface.serving.probe import TOLERANCE, ProbeSet, compare, from_json, from_report

ANSWERS = ({1: -0.5, 2: -1.5, 3: -3.0}, {7: -0.1, 8: -4.0, 9: -5.0})
WANTED = ProbeSet("sha256:c", "fp32", ((5, 6), (7,)), ANSWERS)


def test_the_same_answers_pass() -> None:
    assert compare(WANTED, ANSWERS) == 0


@given(st.floats(0, 0.0099))
def test_rounding_passes(off: float) -> None:
    moved = [{token: lp - off for token, lp in answer.items()} for answer in ANSWERS]
    assert compare(WANTED, moved) == pytest.approx(off, abs=1e-9)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("token", [0, 1, 2])
def test_one_value_that_is_off_fails(at: int, token: int) -> None:
    moved = [dict(answer) for answer in ANSWERS]
    moved[at][list(moved[at])[token]] -= 0.02
    with pytest.raises(ProbeFailed, match=r"within 0\.01"):
        compare(WANTED, moved)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.5])
def test_what_is_no_log_probability_fails(bad: float) -> None:
    moved = [dict(answer) for answer in ANSWERS]
    moved[1][9] = bad
    with pytest.raises(ProbeFailed):
        compare(WANTED, moved, 1000)


def test_another_likeliest_token_fails() -> None:
    with pytest.raises(ProbeFailed):
        compare(WANTED, ({4: -0.5, 2: -1.5, 3: -3.0}, ANSWERS[1]))


def test_tokens_that_change_places_at_the_end_of_the_list_pass() -> None:
    near = ({1: -0.5, 2: -1.5, 4: -2.999}, ANSWERS[1])  # 3 may well be at -3.0, right behind
    assert compare(WANTED, near) == pytest.approx(0.001)


@pytest.mark.parametrize("came", [(), (ANSWERS[0],), (*ANSWERS, ANSWERS[0]), ({}, {})])
def test_fewer_or_other_answers_fail(came: Any) -> None:
    with pytest.raises(ProbeFailed):
        compare(WANTED, came)


def test_a_probe_set_comes_back_from_json() -> None:
    assert from_json(json.loads(json.dumps(WANTED.to_json()))) == WANTED
    assert from_report(json.dumps({"canary": WANTED.to_json()}).encode()) == WANTED
    assert from_report(b'{"figures": 1}') is None
    assert WANTED.tolerance == TOLERANCE["fp32"]


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"rows": []},
        {"rows": None},
        {"rows": [{"prompt": [], "next": [[1, -1.0]]}]},
        {"rows": [{"prompt": [1], "next": []}]},
        {"rows": [{"prompt": [True], "next": [[1, -1.0]]}]},
        {"rows": [{"prompt": [-1], "next": [[1, -1.0]]}]},
        {"rows": [{"prompt": [1], "next": [[1, 2.0]]}]},
        {"rows": [{"prompt": [1], "next": [["1", -1.0]]}]},
        {"rows": [{"prompt": [1] * 600, "next": [[1, -1.0]]}]},
        {"rows": [{"prompt": [1], "next": [[1, -1.0]]}] * 65},
    ],
)
def test_a_broken_probe_set_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ProbeFailed, match="audit the release again"):
        from_json({**copy.deepcopy(WANTED.to_json()), **change})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_any_other_json_is_none(value: Any) -> None:
    with pytest.raises(ProbeFailed):
        from_json(value)


@pytest.mark.parametrize("report", [b"", b"{", b"\xff", b"[" * 100_000])
def test_a_broken_report_is_none(report: bytes) -> None:
    with pytest.raises(ProbeFailed):
        from_report(report)
