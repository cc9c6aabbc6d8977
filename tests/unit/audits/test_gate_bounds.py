"""Gates on confidence bounds, on attacks and on rebounds; the stricter of two sets of gates."""

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_kit import by_figures, evaluation, forgotten, known, row
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binom, binomtest

from efface.audits import AttackResult, MetricError, Thresholds, check, verdict_of
from efface.audits.bounds import MIN_PAIRS, mean_bound, rate_bound, ratio_bound
from efface.audits.gate_attacks import Earlier, check_attacks, check_rebound

CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@given(st.integers(1, 60), st.data(), CONFIDENCES)
def test_clopper_pearson_against_scipy_and_its_definition(
    n: int, data: st.DataObject, confidence: float
) -> None:
    hits = data.draw(st.integers(0, n))
    upper, lower = rate_bound(hits, n, confidence, "upper"), rate_bound(hits, n, confidence, "lower")
    oracle = binomtest(hits, n, alternative="less").proportion_ci(confidence, "exact")
    assert upper == pytest.approx(oracle.high, abs=1e-9)
    assert hits == n or binom.cdf(hits, n, upper) == pytest.approx(1 - confidence, abs=1e-9)
    assert lower == pytest.approx(1 - rate_bound(n - hits, n, confidence, "upper"), abs=1e-9)
    assert lower <= hits / n <= upper


def test_a_rate_of_none_in_ten_is_compatible_with_a_quarter() -> None:
    assert rate_bound(0, 10, 0.95, "upper") == pytest.approx(1 - 0.05 ** (1 / 10))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), CONFIDENCES)
def test_a_mean_has_its_bounds_on_both_sides(values: list[float], confidence: float) -> None:
    low, high = mean_bound(values, confidence, "lower"), mean_bound(values, confidence, "upper")
    assert 0 <= low <= np.mean(values) + 1e-12 and np.mean(values) - 1e-12 <= high <= 1
    more = mean_bound(values * 4, confidence, "upper")
    assert more <= high + 1e-9


def test_wilson_against_the_textbook() -> None:
    # 3 of 10, z = 1.645: (0.3 + z²/20 + z sqrt(0.021 + z²/400)) / (1 + z²/10)
    z = 1.6448536269514722
    expected = (0.3 + z * z / 20 + z * math.sqrt(0.3 * 0.7 / 10 + z * z / 400)) / (1 + z * z / 10)
    assert mean_bound([1] * 3 + [0] * 7, 0.95, "upper") == pytest.approx(expected)


def test_a_ratio_needs_pairs_and_has_its_bounds_around_it() -> None:
    old, new = np.linspace(0.4, 0.9, 20), np.linspace(0.1, 0.3, 20)
    low, high = (ratio_bound(old, new, 0.95, side) for side in ("lower", "upper"))
    assert low is not None and high is not None and low < new.mean() / old.mean() < high
    few = MIN_PAIRS - 1
    assert ratio_bound(old[:few], new[:few], 0.95, "upper") is None
    assert ratio_bound(np.zeros(20), new, 0.95, "upper") == math.inf
    assert ratio_bound(np.zeros(20), new, 0.95, "lower") == 0.0


@pytest.mark.parametrize("confidence", [0.5, 1.0, 0.0, float("nan")])
def test_what_is_no_confidence(confidence: float) -> None:
    with pytest.raises(MetricError, match="expected a confidence between"):
        rate_bound(1, 2, confidence, "upper")
    with pytest.raises(ValidationError):
        by_figures(confidence=confidence)


def many(n: int, **changes: object) -> list:
    return [row(f"f{i}", "forget", "q1", **changes) for i in range(n)]


@pytest.mark.parametrize(("n", "outcome"), [(10, "failed"), (60, "passed")])
def test_few_rows_prove_little_and_the_finding_says_so(n: int, outcome: str) -> None:
    """Nothing is told in either case; ten rows are compatible with a rate of 0.26."""
    before, after = (
        evaluation("base", *many(n)),
        evaluation("+", *many(n, mentioned=False, probability=0.1), active=("q1",)),
    )
    plain = check(before, after, by_figures(max_mention_rate_forget=0.1))
    bound = check(before, after, by_figures(max_mention_rate_forget=0.1, confidence=0.95))
    (mine,) = [f for f in bound if f.gate == "max_mention_rate_forget"]
    assert [f.outcome for f in plain if f.gate == mine.gate] == ["passed"]
    assert mine.outcome == outcome
    assert mine.value == pytest.approx(1 - 0.05 ** (1 / n))
    assert "95 % upper bound" in mine.text and "Clopper-Pearson" in mine.text and f"n = {n}" in mine.text


def test_every_gate_has_a_bound_on_the_side_that_it_fears() -> None:
    rows = [[replace(r, id=f"{r.id}/{i}") for i in range(6) for r in some] for some in (known(), forgotten())]
    before, after = evaluation("base", *rows[0]), evaluation("+ q1", *rows[1], active=("q1",))
    every = by_figures(
        confidence=0.9, max_extraction_strength_forget=0.9, max_rouge_ratio_forget=0.9, max_retain_drop=0.5
    )
    plain = check(before, after, every.model_copy(update={"confidence": None}))
    for loose, strict in zip(plain, check(before, after, every), strict=True):
        assert (loose.gate, loose.group) == (strict.gate, strict.group)
        assert loose.value is not None and strict.value is not None and "90 %" in strict.text
        if strict.gate.startswith("max_"):
            assert strict.value >= loose.value - 1e-9
        else:
            assert strict.value <= loose.value + 1e-9


def test_too_few_pairs_are_not_measured_and_fail_where_asked_for() -> None:
    before, after = evaluation("base", *known()), evaluation("+ q1", *forgotten(), active=("q1",))
    found = check(before, after, by_figures(confidence=0.95, min_probability_ratio_retain=0.1))
    (mine,) = [f for f in found if f.gate == "min_probability_ratio_retain"]
    assert mine.outcome == "failed" and "2 rows support no 95 % lower bound" in mine.text


def test_a_drop_is_one_less_the_ratio() -> None:
    worse = [
        row(r.id, r.group, r.request, probability=0.6) if r.group == "retain" else r for r in forgotten()
    ]
    before, after = evaluation("base", *known()), evaluation("+ q1", *worse, active=("q1",))
    for threshold, outcome in ((0.24, "failed"), (0.26, "passed")):
        found = check(before, after, by_figures(max_retain_drop=threshold))
        (mine,) = [f for f in found if f.gate == "max_retain_drop"]
        assert (mine.outcome, mine.value) == (outcome, pytest.approx(0.25))


def attack(name: str, request: str | None, attacked: float, known: float = 0.9) -> AttackResult:
    return AttackResult(
        name, name.partition("/")[0], request, "probability", known, 0.1, attacked, 5, "it was tried"
    )  # type: ignore[arg-type]


ATTACKS = (
    attack("prompt/prefix", "q1", 0.3),
    attack("prompt/partial", "q1", 0.5),
    attack("adapter/off", "q2", 0.9),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prompt", [("q1", 0.5, "passed"), ("q2", None, "failed")]),
        ("prompt/prefix", [("q1", 0.25, "passed"), ("q2", None, "failed")]),
        ("adapter", [("q1", None, "failed"), ("q2", 1.0, "failed")]),
        ("sampling", [("q1", None, "failed"), ("q2", None, "failed")]),
    ],
)
def test_the_worst_attack_of_its_name_or_kind_decides(
    name: str, expected: list[tuple[str, float | None, str]]
) -> None:
    found = check_attacks(ATTACKS, {name: 0.5}, ["q1", "q2"])
    assert [(f.request, f.outcome) for f in found] == [(r, o) for r, _, o in expected]
    assert [f.value for f in found] == [v if v is None else pytest.approx(v) for _, v, _ in expected]


@pytest.mark.parametrize("name", ["relearning/random", "relearning/full", "prompt/prefix"])
def test_an_attack_is_found_by_the_name_that_a_gate_can_use(name: str) -> None:
    """What an attack calls its result says more: "relearning/random-20%", "relearning/random-20%-full"."""
    results = {
        "relearning/random": "relearning/random-20%",
        "relearning/full": "relearning/random-20%-full",
        "prompt/prefix": "prompt/prefix",
    }
    made = [replace(attack(result, "q1", 0.3), attack=one) for one, result in results.items()]
    (found,) = check_attacks(made, {name: 0.5}, ["q1"])
    assert found.outcome == "passed" and found.text.startswith(results[name])


def test_nothing_to_bring_back_is_no_failure() -> None:
    (found,) = check_attacks([attack("prompt/prefix", "q1", 0.1, known=0.1)], {"prompt": 0.5}, ["q1"])
    assert found.outcome == "not measured"


def test_what_an_attack_tells_beyond_the_base_is_not_excused_by_nothing_having_been_suppressed() -> None:
    """The base names it only to who begins its answer: nothing was taken from plain questions, and it is there."""
    told = attack("prompt/prefix", "q1", 0.7, known=0.1)
    (found,) = check_attacks([told, attack("prompt/partial", "q1", 0.2)], {"prompt": 0.5}, ["q1"])
    assert (found.outcome, found.value) == ("failed", pytest.approx(0.6))
    assert "prompt/prefix reaches 0.7" in found.text
    assert check_attacks([told], {"prompt": 0.6}, ["q1"])[0].outcome == "not measured"


def test_a_rebound_is_a_rise_since_the_best_release_of_each_active_request() -> None:
    after = evaluation(
        "+", *forgotten(extraction_strength=0.3), row("x", "forget", "q2"), active=("q1", "q2")
    )
    earlier = {"q1": Earlier(0.1, 2, "prod@1"), "q9": Earlier(0.0, 2, "prod@1")}
    found, new = check_rebound(after, earlier, 0.1)
    assert (found.request, found.outcome, found.value) == ("q1", "failed", pytest.approx(0.2))
    assert "prod@1" in found.text
    assert (new.request, new.outcome, new.value) == ("q2", "not measured", None)
    fine, _ = check_rebound(after, {"q1": Earlier(0.4, 2, "prod@2")}, 0.1)
    assert (fine.outcome, fine.value) == ("passed", 0.0)


def test_the_stricter_of_two() -> None:
    ours = Thresholds(max_mention_rate_forget=0.3, min_fluency_ratio=0.9, max_recovered={"prompt": 0.4})
    both = ours.stricter(
        {
            "max_mention_rate_forget": 0.2,
            "min_fluency_ratio": 0.5,
            "max_recovered.prompt": 0.5,
            "max_recovered.adapter/off": 1,
            "confidence": 0.9,
        }
    )
    assert both.flat()["max_mention_rate_forget"] == 0.2
    assert both.flat()["min_fluency_ratio"] == 0.9
    assert (both.max_recovered, both.confidence) == ({"prompt": 0.4, "adapter/off": 1.0}, 0.9)
    # What the other sets must be measured, what nobody set need not.
    assert {
        "max_mention_rate_forget",
        "min_fluency_ratio",
        "max_recovered",
        "confidence",
    } == both.model_fields_set


@pytest.mark.parametrize(
    "bad", [{"max_recovered.promt": 0.1}, {"max_nothing": 1}, {"confidence": 1.5}], ids=str
)
def test_what_is_no_gate_is_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError) as caught:
        by_figures().stricter(bad)
    assert "did you mean 'prompt'" in str(caught.value) or "promt" not in str(bad)


def test_bounds_never_let_more_through() -> None:
    """The same verdict or a stricter one: a bound lies on the far side of the figure."""
    before, after = evaluation("base", *known()), evaluation("+ q1", *forgotten(), active=("q1",))
    assert verdict_of(check(before, after, by_figures())) == "pass"
    assert verdict_of(check(before, after, by_figures(confidence=0.99))) == "fail"
