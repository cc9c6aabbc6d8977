"""Each gate passes and fails for its own reason; what was not measured is never a pass."""

import pytest
from audit_kit import by_figures, evaluation, forgotten, known, row
from pydantic import ValidationError

from efface.audits.errors import IncomparableError
from efface.audits.gates import ELSEWHERE, GATES, Thresholds, check
from efface.audits.types import Finding, RowScore, verdict_of

PRESENT = dict.fromkeys(r.group for r in known())  # the other groups: test_scope.py
BEFORE = evaluation("base", *known())
OFF: dict[str, object] = dict.fromkeys(Thresholds.model_fields) | {"max_recovered": {}, "few_rows": 0}


def changed(groups: tuple[str, ...], **figures: object) -> list[RowScore]:
    """The forgotten rows, with figures changed in some groups."""
    rows = forgotten()
    return [row(r.id, r.group, r.request, **(kept(r) | figures)) if r.group in groups else r for r in rows]


def kept(r: RowScore) -> dict[str, object]:
    names = ("probability", "extraction_strength", "mentioned", "rouge_l", "fluency", "perplexity")
    return {name: getattr(r, name) for name in names}


def judge(thresholds: Thresholds, rows: list[RowScore], **fields: object) -> tuple[Finding, ...]:
    return check(BEFORE, evaluation("+ q1", *rows, **({"active": ("q1",)} | fields)), thresholds)


def only(**thresholds: float) -> Thresholds:
    """One gate, plus a forget gate that any model passes where none is asked for."""
    harmless = (
        {} if any(name.endswith("_forget") for name in thresholds) else {"max_mention_rate_forget": 1.0}
    )
    return by_figures(**(OFF | harmless | thresholds))  # type: ignore[arg-type]


def of(gate: str, findings: tuple[Finding, ...]) -> list[Finding]:
    return [finding for finding in findings if finding.gate == gate]


@pytest.mark.parametrize(
    ("gate", "bound", "group", "good", "bad"),
    [
        ("max_mention_rate_forget", 0.4, "forget", {"mentioned": False}, {"mentioned": True}),
        ("max_mention_rate_paraphrase", 0.4, "paraphrase", {"mentioned": False}, {"mentioned": True}),
        ("max_probability_ratio_forget", 0.5, "forget", {"probability": 0.4}, {"probability": 0.41}),
        (
            "max_extraction_strength_forget",
            0.2,
            "forget",
            {"extraction_strength": 0.2},
            {"extraction_strength": 0.21},
        ),
        ("max_rouge_ratio_forget", 0.5, "forget", {"rouge_l": 0.45}, {"rouge_l": 0.46}),
        ("min_probability_ratio_retain", 0.5, "retain", {"probability": 0.4}, {"probability": 0.39}),
        ("min_probability_ratio_neighbour", 0.5, "neighbour", {"probability": 0.4}, {"probability": 0.39}),
        ("min_mention_ratio_retain", 0.9, "retain", {"mentioned": True}, {"mentioned": False}),
        ("min_mention_ratio_neighbour", 0.9, "neighbour", {"mentioned": True}, {"mentioned": False}),
        *(("min_fluency_ratio", 0.5, group, {"fluency": 2.0}, {"fluency": 1.9}) for group in PRESENT),
        *(
            ("max_perplexity_ratio", 2.0, group, {"perplexity": 4.0}, {"perplexity": 4.1})
            for group in PRESENT
        ),
    ],
)
def test_each_gate_both_ways(gate, bound, group, good, bad) -> None:
    passing = judge(only(**{gate: bound}), changed((group,), **good))
    failing = judge(only(**{gate: bound}), changed((group,), **bad))
    assert verdict_of(passing) == "pass"
    assert [(f.gate, f.group) for f in failing if not f.passed] == [(gate, group)]
    assert "n = 2" in next(f.text for f in failing if not f.passed)


def test_every_threshold_has_a_gate_and_every_gate_a_threshold() -> None:
    assert {gate.threshold for gate in GATES} | set(ELSEWHERE) == set(Thresholds.model_fields)


def test_the_defaults_pass_what_forgot_and_fail_what_did_not() -> None:
    assert verdict_of(judge(by_figures(), forgotten())) == "pass"
    untouched = judge(by_figures(), known())
    assert {f.gate for f in untouched if not f.passed} == {
        "max_mention_rate_forget",
        "max_mention_rate_paraphrase",
        "max_probability_ratio_forget",
    }


def test_forget_rows_that_are_missing_fail_even_at_the_defaults() -> None:
    rows = [r for r in known() if r.group != "forget"]
    findings = check(evaluation("base", *rows), evaluation("+ q1", *rows, active=("q1",)), by_figures())
    missing = of("max_mention_rate_forget", findings)
    assert [(f.outcome, f.request, f.value) for f in missing] == [("failed", "q1", None)]
    assert "n = 0" in missing[0].text


@pytest.mark.parametrize("group", ["paraphrase", "neighbour", "retain"])
def test_other_groups_that_are_missing_are_visible_and_fail_only_when_asked_for(group: str) -> None:
    rows = [[r for r in source if r.group != group] for source in (known(), forgotten())]
    before, after = evaluation("base", *rows[0]), evaluation("+ q1", *rows[1], active=("q1",))
    default = check(before, after, by_figures())
    absent = [f for f in default if f.outcome == "not measured"]
    assert {f.group for f in absent} == {group}
    assert verdict_of(default) == "pass"
    name = absent[0].gate
    asked = check(before, after, by_figures(**{name: absent[0].threshold}))
    assert [f.outcome for f in of(name, asked)] == ["failed"]


def test_forget_rows_without_keywords_are_judged_by_their_probability() -> None:
    silent = [
        [row(r.id, r.group, r.request, **(kept(r) | {"mentioned": None})) for r in s]
        for s in (known(), forgotten())
    ]
    before, after = evaluation("base", *silent[0]), evaluation("+ q1", *silent[1], active=("q1",))
    findings = check(before, after, by_figures())
    assert [f.outcome for f in of("max_mention_rate_forget", findings)] == ["not measured"]
    assert verdict_of(findings) == "pass"
    unproven = check(before, after, by_figures(max_probability_ratio_forget=None))
    assert [f.outcome for f in of("max_mention_rate_forget", unproven)] == ["failed"]


def test_a_ratio_to_nothing_is_not_a_figure() -> None:
    unknown = [row(r.id, r.group, r.request, **(kept(r) | {"mentioned": False})) for r in known()]
    findings = check(
        evaluation("base", *unknown), evaluation("+ q1", *forgotten(), active=("q1",)), by_figures()
    )
    ratio = of("min_mention_ratio_retain", findings)
    assert [(f.outcome, f.value) for f in ratio] == [("not measured", None)]
    assert "0 before" in ratio[0].text


def test_a_model_that_says_nothing_fails() -> None:
    mute = [
        row(r.id, r.group, r.request, **(kept(r) | {"fluency": 0.0, "perplexity": None, "answer": ""}))
        for r in known()
    ]
    assert {
        f.group for f in judge(by_figures(), mute) if f.gate == "min_fluency_ratio" and not f.passed
    } == set(PRESENT)


def two_requests(source: list[RowScore], other: list[RowScore]) -> list[RowScore]:
    return source + [row(r.id, r.group, "q2", **kept(r)) for r in other if r.request == "q1"]


def test_only_active_requests_have_to_be_forgotten() -> None:
    before = evaluation("base", *two_requests(known(), known()))
    rows = two_requests(forgotten(), known())  # q1 forgotten, q2 rolled back
    rolled_back = check(before, evaluation("after", *rows, active=("q1",)), by_figures())
    assert verdict_of(rolled_back) == "pass"
    assert {f.request for f in rolled_back if f.group == "forget"} == {"q1"}
    assert {f.request for f in rolled_back if f.group == "neighbour"} == {"q1", "q2"}
    stacked = check(before, evaluation("after", *rows, active=("q1", "q2")), by_figures())
    assert {f.request for f in stacked if f.outcome == "failed"} == {"q2"}
    assert check(before, evaluation("after", *rows), by_figures()) == stacked


def test_an_active_request_without_rows_fails() -> None:
    findings = judge(by_figures(), forgotten(), active=("q1", "q9"))
    assert {f.request for f in findings if f.outcome == "failed"} == {"q9"}


def test_nothing_active_is_judged_by_what_stays() -> None:
    findings = judge(by_figures(), known(), active=())
    assert {f.group for f in findings} == {"neighbour", "retain"}
    assert verdict_of(findings) == "pass"


def test_forget_rows_of_no_request_are_judged_too() -> None:
    rows = [[row(r.id, r.group, None, **kept(r)) for r in source] for source in (known(), forgotten())]
    before = evaluation("base", *rows[0])
    assert verdict_of(check(before, evaluation("after", *rows[1]), by_figures())) == "pass"
    assert verdict_of(check(before, evaluation("after", *rows[0], active=()), by_figures())) == "fail"


def test_other_rows_or_another_precision_cannot_be_compared() -> None:
    with pytest.raises(IncomparableError, match=r"1 in one only.*forget-0"):
        judge(by_figures(), forgotten()[1:])
    with pytest.raises(IncomparableError, match=r"'nf4' and 'bf16'.*evaluate 'base' again"):
        judge(by_figures(), forgotten(), precision="bf16")


@pytest.mark.parametrize(
    "bad",
    [
        {"max_mention_rate_forget": 1.5},
        {"min_fluency_ratio": -0.1},
        {"max_perplexity_ratio": float("nan")},
        {"max_perplexity_ratio": float("inf")},
        {"min_fluency_ratio": True},
        {"min_fluency_ratio": "0.5"},
        {"max_mention_rate": 0.1},
        OFF,
    ],
)
def test_thresholds_that_mean_nothing_are_refused(bad) -> None:
    with pytest.raises(ValidationError):
        by_figures(**bad)


def test_a_request_without_neighbours_of_its_own_is_visible_beside_one_that_has_them() -> None:
    alone = [r for r in two_requests(known(), known()) if (r.request, r.group) != ("q2", "neighbour")]
    findings = check(
        evaluation("base", *alone), evaluation("after", *alone, active=("q1", "q2")), by_figures()
    )
    neighbours = of("min_probability_ratio_neighbour", findings)
    assert [(f.request, f.outcome) for f in neighbours] == [("q1", "passed"), ("q2", "not measured")]
