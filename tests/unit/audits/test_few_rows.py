"""Few rows are judged by the bound of their figure without being asked, and the finding says so in words."""

import math

import pytest
from audit_kit import by_figures, evaluation, row
from hypothesis import given
from hypothesis import strategies as st

from efface.audits import AttackResult, Evaluation, Finding, RowScore, Thresholds, check, verdict_of
from efface.audits.bounds import MIN_PAIRS, mean_bound, rate_bound, rows_to_show, share_bound
from efface.audits.gate_attacks import Earlier, check_attacks, check_rebound
from efface.audits.gate_scope import check_scope
from efface.audits.types import Group

LEVEL = Thresholds().level
OUTCOMES = ("failed", "not measured", "passed")
SHARES = st.floats(0.0, 1.0)


def rows(n: int, group: Group = "forget", told: int = 0, **changes: object) -> list[RowScore]:
    return [row(f"{group}-{i}", group, "q1", **({"mentioned": i < told} | changes)) for i in range(n)]


def two(n: int, group: Group = "forget", told: int = 0, **changes: object) -> tuple[Evaluation, Evaluation]:
    """``n`` rows that the base tells, and of which ``told`` are told afterwards."""
    known = evaluation("base", *rows(n, group, n))
    return known, evaluation(
        "+ q1", *rows(n, group, told, **({"probability": 0.1} | changes)), active=("q1",)
    )


def one(gate: str, findings: tuple[Finding, ...]) -> Finding:
    (found,) = [finding for finding in findings if finding.gate == gate]
    return found


def judged(n: int, group: Group = "forget", told: int = 0, **bounds: object) -> Finding:
    return one(f"max_mention_rate_{group}", check(*two(n, group, told), Thresholds.model_validate(bounds)))


def test_none_of_eight_is_said_in_words_with_what_would_be_enough() -> None:
    found = judged(8, "paraphrase", max_mention_rate_paraphrase=0.2)
    assert found.outcome == "failed"
    assert found.value == pytest.approx(1 - 0.05 ** (1 / 8))
    assert found.text == (
        "mention rate 1 → 0 (n = 8); 95 % upper bound (Clopper-Pearson) 0.312, at most 0.2 "
        "(few rows: 0 of 8 told, up to 31% at 95 % confidence; at least 14 rows would show 20%)"
    )
    assert judged(14, "paraphrase", max_mention_rate_paraphrase=0.2).outcome == "passed"


def test_from_twenty_rows_on_the_figure_decides_and_nought_turns_it_off() -> None:
    assert judged(19).outcome == "failed"
    assert (judged(20).outcome, judged(20).value) == ("passed", 0.0)
    assert judged(2, few_rows=0).outcome == "passed"
    assert judged(29, few_rows=100).outcome == "passed"
    assert judged(28, few_rows=100).outcome == "failed"
    assert "few rows" not in judged(20).text + judged(2, few_rows=0).text


def test_a_confidence_holds_for_any_number_of_rows_and_sets_the_level() -> None:
    found = judged(25, confidence=0.95)
    assert (found.outcome, found.value) == ("failed", pytest.approx(rate_bound(0, 25, 0.95, "upper")))
    assert judged(8, confidence=0.9).value == pytest.approx(rate_bound(0, 8, 0.9, "upper"))


def test_what_few_rows_do_not_show_fails_where_it_was_asked_for_or_is_to_be_forgotten() -> None:
    """Somebody who brings five reworded questions is not worse off than who brings none."""
    default = judged(5, "paraphrase")
    assert (default.outcome, default.value) == ("not measured", None)
    assert "0 of 5 told" in default.text and "at most 0.2" in default.text
    assert judged(5, "paraphrase", max_mention_rate_paraphrase=0.2).outcome == "failed"
    assert judged(5).outcome == "failed"
    assert judged(5, "paraphrase", told=5).outcome == "failed"  # what is shown needs no bound


def test_a_ratio_of_too_few_pairs_is_not_measured_but_a_bad_one_has_failed() -> None:
    few = MIN_PAIRS - 1
    known = evaluation("base", *rows(few, "retain", few), *rows(30))
    for probability, asked, outcome in ((0.8, {}, "not measured"), (0.1, {}, "failed")):
        kept = rows(few, "retain", few, probability=probability)
        after = evaluation("+ q1", *kept, *rows(30, probability=0.1), active=("q1",))
        found = one("min_probability_ratio_retain", check(known, after, Thresholds.model_validate(asked)))
        assert found.outcome == outcome
        strict = Thresholds(min_probability_ratio_retain=0.8)
        assert one(found.gate, check(known, after, strict)).outcome == "failed"
        sure = Thresholds(confidence=0.95)
        assert one(found.gate, check(known, after, sure)).outcome == outcome


def test_rows_without_keywords_are_not_forgotten_by_too_few_pairs() -> None:
    n = MIN_PAIRS - 1
    before, after = two(n, mentioned=None)
    before = evaluation("base", *rows(n, mentioned=None))
    found = one("max_probability_ratio_forget", check(before, after, Thresholds()))
    assert found.outcome == "failed" and "support no 95 % upper bound" in found.text


FIGURES = st.tuples(st.booleans(), SHARES, SHARES, st.floats(0.1, 5), st.floats(1, 900))


@given(
    st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=24),
    st.sampled_from(["forget", "paraphrase", "retain", "neighbour"]),
    st.sampled_from([{}, {"max_mention_rate_paraphrase": 0.2, "min_probability_ratio_retain": 0.8}]),
)
def test_a_bound_never_lets_more_through_than_the_figure(
    pairs: list[tuple[tuple[object, ...], tuple[object, ...]]], group: Group, asked: dict[str, float]
) -> None:
    names = ("mentioned", "probability", "extraction_strength", "fluency", "perplexity")

    def side(which: int) -> list[RowScore]:
        return [
            row(f"{i}", group, "q1", **dict(zip(names, pair[which], strict=True)))
            for i, pair in enumerate(pairs)
        ]

    before, after = evaluation("base", *side(0)), evaluation("+ q1", *side(1), active=("q1",))
    plain = check(before, after, by_figures(**asked))
    for more in ({}, {"confidence": 0.9}):
        strict = check(before, after, Thresholds.model_validate(asked | more))
        for loose, tight in zip(plain, strict, strict=True):
            assert (loose.gate, loose.request) == (tight.gate, tight.request)
            assert OUTCOMES.index(tight.outcome) <= OUTCOMES.index(loose.outcome)
        assert (verdict_of(strict), verdict_of(plain)) != ("pass", "fail")


@given(st.integers(0, 30), st.integers(1, 30), SHARES, st.sampled_from([0.8, 0.95, 0.99]))
def test_more_rows_of_the_same_kind_never_widen_a_bound(
    hits: int, misses: int, mean: float, confidence: float
) -> None:
    n = hits + misses
    assert rate_bound(hits, n, confidence, "upper") >= hits / n
    assert rate_bound(hits, n + 1, confidence, "upper") < rate_bound(hits, n, confidence, "upper")
    assert rate_bound(2 * hits, 2 * n, confidence, "upper") <= rate_bound(hits, n, confidence, "upper")
    wide, wider = (share_bound(mean, k, confidence, "upper") for k in (2 * n, n))
    assert mean <= wide <= wider + 1e-12
    assert share_bound(mean, n, confidence, "upper") == pytest.approx(
        1 - share_bound(1 - mean, n, confidence, "lower"), abs=1e-12
    )


@given(st.lists(SHARES, min_size=1, max_size=30))
def test_a_bound_of_a_mean_depends_on_the_mean_and_the_number(values: list[float]) -> None:
    mean = float(sum(values) / len(values))
    assert share_bound(min(1.0, mean), len(values), 0.95, "upper") == pytest.approx(
        mean_bound(values, 0.95, "upper")
    )


@given(st.floats(0, 0.4), st.floats(0.02, 0.6), st.booleans())
def test_rows_to_show_is_the_fewest(share: float, threshold: float, exact: bool) -> None:
    n = rows_to_show(share, threshold, 0.95, exact=exact, most=400)

    def bound(k: int) -> float:
        if not exact:
            return share_bound(share, k, 0.95, "upper")
        return rate_bound(min(k, math.ceil(share * k - 1e-9)), k, 0.95, "upper")

    assert n is None or bound(n) <= threshold + 1e-12
    assert all(bound(k) > threshold - 1e-12 for k in range(1, n or 400))


def test_no_number_of_rows_shows_none_at_all() -> None:
    assert rows_to_show(0.0, 0.0, 0.95, exact=True) is None
    assert "would show" not in judged(8, max_mention_rate_forget=0.0).text


def recovered(attacked: float, n: int) -> Finding:
    attack = AttackResult("prompt/prefix", "prompt", "q1", "mention_rate", 0.9, 0.1, attacked, n, "tried")
    (found,) = check_attacks([attack], {"prompt": 0.3}, ["q1"], LEVEL)
    return found


def test_an_attack_on_few_rows_is_judged_by_what_it_could_reach() -> None:
    few, many = recovered(0.1, 8), recovered(0.1, 20)
    assert (few.outcome, many.outcome, many.value) == ("failed", "passed", 0.0)
    assert few.value == pytest.approx((share_bound(0.1, 8, 0.95, "upper") - 0.1) / 0.8)
    assert "95 % upper bound (Wilson)" in few.text and "brings back 0 of" in few.text
    assert "bound" not in many.text
    assert recovered(0.9, 8).outcome == "failed"


@given(st.integers(1, 40), SHARES)
def test_the_bound_of_an_attack_is_never_below_what_it_reached(n: int, attacked: float) -> None:
    found = recovered(attacked, n)
    assert found.value is not None and found.value >= max(0.0, (attacked - 0.1) / 0.8) - 1e-12


def rebound(was: list[float], now: list[float], ids: str = "forget") -> Finding:
    after = evaluation(
        "+", *(row(f"forget-{i}", "forget", "q1", extraction_strength=v) for i, v in enumerate(now)),
        active=("q1",),
    )  # fmt: skip
    earlier = Earlier(sum(was) / len(was), len(was), "prod@1", {f"{ids}-{i}": v for i, v in enumerate(was)})
    (found,) = check_rebound(after, {"q1": earlier}, 0.1, LEVEL)
    return found


def test_a_rebound_compares_each_row_with_itself() -> None:
    same = [0.0, 1.0] * 5
    assert (rebound(same, same).outcome, rebound(same, same).value) == ("passed", 0.0)
    # One of ten rows is back: 0.09 on the mean, but rows like these could have risen more.
    one_back = rebound([0.0] * 10, [0.9] + [0.0] * 9)
    assert one_back.outcome == "failed" and "95 % upper bound (bootstrap) over 10 rows" in one_back.text
    few = rebound([0.0] * 4, [0.3, 0.0, 0.0, 0.0])
    assert (few.outcome, few.value) == ("failed", pytest.approx(0.3))
    assert "the one that rose most, of 4" in few.text
    assert rebound([0.0] * 30, [0.9] + [0.0] * 29).outcome == "passed"
    # Rows that were not recorded are held against the mean.
    assert rebound([0.2] * 4, [0.25] * 4, "other").value == pytest.approx(0.05)


def test_gates_of_scope_look_at_bounds_only_where_they_decide() -> None:
    before, after = two(10, perplexity=2.0)
    found = check_scope(before, after, Thresholds(), report=True, chance=1e-3)
    noted = one("max_gibberish_share", found)
    assert (noted.outcome, noted.value) == ("noted", 0.0)
    asked = Thresholds(max_gibberish_share=0.2, min_ignorance_ratio=0.1, max_ignorance_ratio=2.0)
    reference = evaluation("retain only", *rows(10, probability=0.1))
    found = check_scope(before, after, asked, report=False, reference=reference)
    gibberish = one("max_gibberish_share", found)
    assert (gibberish.outcome, gibberish.value) == ("failed", pytest.approx(rate_bound(0, 10, 0.95, "upper")))
    assert "0 of 10 are no language, up to 26%" in gibberish.text
    for gate in ("min_ignorance_ratio", "max_ignorance_ratio"):
        mine = one(gate, found)
        assert (mine.outcome, mine.value) == ("passed", pytest.approx(1.0)), mine
        assert "bound (bootstrap)" in mine.text
    four = evaluation("+ q1", *rows(4, probability=0.1), active=("q1",))
    found = check_scope(evaluation("base", *rows(4, told=4)), four, asked, report=False, chance=1e-3)
    few = one("min_ignorance_ratio", found)
    assert few.outcome == "failed" and "4 rows support no 95 % lower bound" in few.text


def test_an_ignorance_that_varies_is_not_shown_by_few_rows() -> None:
    spread = [row(f"forget-{i}", "forget", "q1", probability=p) for i, p in enumerate([0.9, 1e-4] * 5)]
    before, after = evaluation("base", *rows(10, told=10)), evaluation("+", *spread, active=("q1",))
    reference = evaluation("retain only", *rows(10, probability=0.02))
    asked = Thresholds(min_ignorance_ratio=0.1, max_ignorance_ratio=2.0)
    found = {f.gate: f for f in check_scope(before, after, asked, report=False, reference=reference)}
    high = found["max_ignorance_ratio"]
    assert high.outcome == "failed" and high.text.startswith("not shown to be forgotten")
    assert high.value is not None and high.value > 2.0


@pytest.mark.parametrize("bad", [-1, 1.5, float("nan"), float("inf"), None, "20"])
def test_what_is_no_number_of_rows(bad: object) -> None:
    with pytest.raises(ValueError, match="few_rows"):
        Thresholds.model_validate({"few_rows": bad})


def test_a_channel_that_asks_for_more_rows_is_stricter() -> None:
    assert Thresholds().stricter({"max_rebound": 0.1}).few_rows == 20
    assert by_figures().stricter({"few_rows": 30.0}).few_rows == 30
    assert Thresholds(few_rows=40).stricter({"few_rows": 30.0}).few_rows == 40
