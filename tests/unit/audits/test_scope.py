"""Gates beyond the trained rows, and over-unlearning on both sides of zero."""

import math

import pytest
from audit_kit import by_figures, evaluation, forgotten, known, row
from hypothesis import given
from hypothesis import strategies as st

from efface.audits.errors import IncomparableError, MetricError
from efface.audits.gates import check
from efface.audits.scope import (
    MIN_ROWS,
    ScopeBounds,
    geometric_mean,
    gibberish_share,
    ignorance,
    over_unlearned,
    unmeasured,
)
from efface.audits.types import FORGET_SIDE, GROUPS, KEEP_SIDE, Finding, RowScore, verdict_of

IGNORANT = [row(f"near-{i}", "neighbour", None, mentioned=False, probability=0.2) for i in range(MIN_ROWS)]


def rows(probability: float, **changes: object) -> list[RowScore]:
    return [row(f"f{i}", "forget", "q1", **({"probability": probability} | changes)) for i in range(3)]


def judged(probability: float, near: list[RowScore] = IGNORANT, **options: object) -> dict[str, Finding]:
    before = evaluation("base", *rows(0.9), *near)
    after = evaluation("+ q1", *rows(probability), *near, active=("q1",))
    return {f.gate: f for f in over_unlearned(before, after, **options)}  # type: ignore[arg-type]


# --- gates of the groups


def test_every_group_is_on_one_side() -> None:
    assert sorted((*FORGET_SIDE, *KEEP_SIDE)) == sorted(GROUPS)


@pytest.mark.parametrize("group", ["heldout", "entailed", "format"])
def test_what_lies_beyond_the_trained_rows_must_be_gone_too(group: str) -> None:
    beyond = row("x", group, "q1")  # type: ignore[arg-type]
    quiet = row("x", group, "q1", mentioned=False)  # type: ignore[arg-type]
    before = evaluation("base", *known(), beyond)
    for after, outcome in ((quiet, "passed"), (beyond, "failed")):
        findings = check(before, evaluation("+ q1", *forgotten(), after, active=("q1",)), by_figures())
        assert [f.outcome for f in findings if f.gate == f"max_mention_rate_{group}"] == [outcome]
        assert verdict_of(findings) == ("pass" if outcome == "passed" else "fail")


def test_what_is_no_longer_active_may_be_told_again() -> None:
    beyond = row("x", "heldout", "q1")
    after = evaluation("rolled back", *known(), beyond, active=())
    findings = check(evaluation("base", *known(), beyond), after, by_figures())
    assert not [f for f in findings if f.group in FORGET_SIDE and f.outcome == "failed"]


def test_unrelated_rows_must_stand() -> None:
    far, worse = row("x", "unrelated", None), row("x", "unrelated", None, probability=0.1)
    before = evaluation("base", *known(), far)
    findings = check(before, evaluation("+ q1", *forgotten(), worse, active=("q1",)), by_figures())
    assert [f.gate for f in findings if f.outcome == "failed"] == ["min_probability_ratio_unrelated"]


def test_optional_groups_are_silent_unless_their_bound_was_set() -> None:
    before, after = evaluation("base", *known()), evaluation("+ q1", *forgotten(), active=("q1",))
    groups = {f.group for f in check(before, after, by_figures())}
    assert groups == {"forget", "paraphrase", "neighbour", "retain"}
    asked = check(before, after, by_figures(max_mention_rate_heldout=0.2))
    assert [f.outcome for f in asked if f.group == "heldout"] == ["failed"]


def test_groups_that_nobody_gave_are_named_as_not_measured() -> None:
    held = row("x", "heldout", "q1")
    found = unmeasured(evaluation("+ q1", *forgotten(), held, active=("q1",)))
    assert [(f.request, f.group, f.outcome) for f in found] == [
        ("q1", "entailed", "not measured"),
        ("q1", "format", "not measured"),
    ]
    assert unmeasured(evaluation("rolled back", *known(), active=())) == ()


# --- over-unlearning


def test_ignorance_is_passed_and_impossibility_is_over_unlearned() -> None:
    assert judged(0.2)["min_ignorance_ratio"].outcome == "passed"
    assert judged(0.2)["min_ignorance_ratio"].value == pytest.approx(1.0)
    below = judged(0.001)["min_ignorance_ratio"]
    assert below.outcome == "failed"
    assert below.text.startswith("over-unlearned")
    assert "5 rows that the base does not know" in below.text
    assert judged(0.021)["min_ignorance_ratio"].outcome == "passed"
    assert judged(0.0)["min_ignorance_ratio"].outcome == "failed"  # an impossible answer has no logarithm


def test_still_known_is_a_matter_of_the_forgetting_gates_without_a_reference() -> None:
    assert set(judged(0.9)) == {"min_ignorance_ratio", "max_gibberish_share"}


@pytest.mark.parametrize(
    ("now", "over", "under"),
    [(0.9, "passed", "failed"), (0.3, "passed", "passed"), (1e-4, "failed", "passed")],
)
def test_a_reference_model_judges_both_sides_of_zero(now: float, over: str, under: str) -> None:
    found = judged(now, reference=evaluation("retain only", *rows(0.3)))
    assert (found["min_ignorance_ratio"].outcome, found["max_ignorance_ratio"].outcome) == (over, under)
    assert "a model that never saw these rows" in found["min_ignorance_ratio"].text


def test_a_reference_that_did_not_see_the_rows_is_refused() -> None:
    with pytest.raises(IncomparableError, match="f0, f1"):
        judged(0.3, reference=evaluation("retain only", *IGNORANT))


def test_too_few_unknown_rows_are_no_ignorance() -> None:
    few = judged(0.001, near=IGNORANT[: MIN_ROWS - 1])
    assert few["min_ignorance_ratio"].outcome == "not measured"
    assert judged(1e-6, near=[], chance=1e-4)["min_ignorance_ratio"].outcome == "failed"
    assert "by chance" in judged(1e-4, near=[], chance=1e-4)["min_ignorance_ratio"].text
    with pytest.raises(MetricError, match="vocabulary"):
        judged(0.1, near=[], chance=0.0)


def test_rows_that_the_base_knows_or_cannot_be_told_about_are_no_ignorance() -> None:
    near = [row(f"k{i}", "neighbour", None, mentioned=True) for i in range(9)]
    near += [row(f"s{i}", "neighbour", None, mentioned=None) for i in range(9)]
    assert ignorance(evaluation("base", *near), rows(0.1)) is None


def test_gibberish_is_over_unlearning_and_silence_is_not() -> None:
    noise = {"answer": "", "perplexity": 4000.0}  # as a row that was measured earlier: figures, no text
    quiet = {"answer": "", "perplexity": 3.0}
    assert gibberish_share(rows(0.2, **noise)) == 1.0
    assert gibberish_share(rows(0.2, **quiet)) == 0.0
    with pytest.raises(MetricError, match="at least one row"):
        gibberish_share([])
    before = evaluation("base", *rows(0.9), *IGNORANT)
    after = evaluation("+ q1", *rows(0.2, **noise), *IGNORANT, active=("q1",))
    bad = {f.gate: f for f in over_unlearned(before, after)}["max_gibberish_share"]
    assert (bad.outcome, bad.value) == ("failed", 1.0)


def test_only_active_requests_are_judged_and_bounds_may_be_left_out() -> None:
    before = evaluation("base", *rows(0.9), *IGNORANT)
    after = evaluation("rolled back", *rows(0.9), *IGNORANT, active=())
    assert over_unlearned(before, after) == ()
    none = ScopeBounds(min_ignorance_ratio=None, max_ignorance_ratio=None, max_gibberish_share=None)
    assert judged(1e-9, bounds=none) == {}


def test_findings_hold_no_text_of_the_rows() -> None:
    texts = " ".join(f.text for f in judged(0.001).values())
    assert "canary" not in texts


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_the_geometric_mean_lies_between_and_below_the_arithmetic(values: list[float]) -> None:
    found = geometric_mean(values)
    assert min(values) * (1 - 1e-9) <= found <= sum(values) / len(values) * (1 + 1e-9) + 2e-300


@pytest.mark.parametrize("bad", [[], [1.5], [-0.1], [math.nan]])
def test_the_geometric_mean_refuses_what_is_no_probability(bad: list[float]) -> None:
    with pytest.raises(MetricError, match="geometric_mean"):
        geometric_mean(bad)
