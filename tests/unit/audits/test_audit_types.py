"""Records check themselves, hide their texts, and write finite JSON."""

import json
import math

import numpy as np
import pytest
from audit_kit import ANSWER, PROMPT, REFERENCE, evaluation, known, report, row

from efface.audits.aggregate import aggregate
from efface.audits.document import SCHEMA
from efface.audits.errors import RecordError
from efface.audits.types import Finding, Interval, Membership, verdict_of


def finding(outcome: str = "passed", value: float | None = 0.1) -> Finding:
    return Finding("max_mention_rate_forget", "forget", "q1", value, 0.2, outcome, "text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"id": ""},
        {"group": "holdout"},
        {"n_tokens": 0},
        {"probability": 1.01},
        {"probability": math.nan},
        {"extraction_strength": -0.1},
        {"rouge_l": math.inf},
        {"fluency": -1.0},
        {"perplexity": 0.5},
        {"perplexity": math.inf},
        {"perplexity": None},
    ],
)
def test_a_row_that_cannot_be_is_refused_without_quoting_it(bad) -> None:
    with pytest.raises(RecordError, match="expected") as caught:
        row(**bad)
    assert not any(text in str(caught.value) for text in (PROMPT, REFERENCE, ANSWER))


def test_texts_are_not_in_repr_nor_in_masked_json() -> None:
    score = row()
    assert not any(text in repr(score) for text in (PROMPT, REFERENCE, ANSWER))
    assert not {"prompt", "reference", "answer"} & set(score.to_json())
    assert score.to_json(reveal=True)["answer"] == ANSWER


def test_numpy_figures_become_plain_json() -> None:
    score = row(probability=np.float32(0.5), n_tokens=np.int64(3), mentioned=np.bool_(True))
    assert json.loads(json.dumps(score.to_json()))["probability"] == 0.5


@pytest.mark.parametrize("bad", [{"label": ""}, {"seed": -1}, {"seconds": math.nan}])
def test_an_evaluation_that_cannot_be_is_refused(bad) -> None:
    with pytest.raises(RecordError, match="expected"):
        evaluation(*([bad.pop("label", "base")]), row(), **bad)


def test_an_evaluation_needs_rows_that_differ() -> None:
    with pytest.raises(RecordError, match="at least one row"):
        evaluation("base")
    with pytest.raises(RecordError, match="more than once"):
        evaluation("base", row("a"), row("a"))
    evaluation("base", row("a", request="q1"), row("a", request="q2"), row("a", group="retain"))


def test_aggregate_by_hand() -> None:
    rows = (
        row("a", probability=0.2, perplexity=2.0, mentioned=True),
        row("b", probability=0.4, perplexity=8.0, mentioned=None),
        row("c", "retain", None, mentioned=None, perplexity=None, answer=""),
    )
    forget, retain = aggregate(evaluation("base", *rows))
    assert (forget.group, forget.request, forget.n, forget.n_mention) == ("forget", "q1", 2, 1)
    assert forget.probability == pytest.approx(0.3)
    assert forget.probability_ci == Interval(0.2, 0.4)
    assert forget.perplexity == pytest.approx(4.0)
    assert (forget.mention_rate, forget.mention_rate_ci) == (1.0, Interval(1.0, 1.0))
    assert (retain.n_mention, retain.mention_rate, retain.mention_rate_ci) == (0, None, None)
    assert (retain.n_perplexity, retain.perplexity) == (0, None)


def test_aggregates_stand_by_request_and_group_with_shared_rows_last() -> None:
    rows = [
        row("z", "retain", None),
        row("y", "paraphrase", "q2"),
        row("x", "forget", "q2"),
        row("w", "neighbour"),
    ]
    order = [(a.request, a.group) for a in aggregate(evaluation("base", *rows))]
    assert order == [("q1", "neighbour"), ("q2", "forget"), ("q2", "paraphrase"), (None, "retain")]


def test_the_verdict_needs_a_pass_and_no_failure() -> None:
    passed, failed, absent = finding(), finding("failed", 0.3), finding("not measured", None)
    assert verdict_of((passed,)) == verdict_of((passed, absent)) == "pass"
    assert verdict_of(()) == verdict_of((absent,)) == verdict_of((passed, failed)) == "fail"
    assert not absent.passed


@pytest.mark.parametrize(
    ("outcome", "value"), [("passed", None), ("not measured", 0.1), ("failed", math.nan)]
)
def test_a_finding_that_contradicts_itself_is_refused(outcome, value) -> None:
    with pytest.raises(RecordError, match="expected"):
        finding(outcome, value)


def test_the_report_as_json() -> None:
    document = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert (document["schema"], document["verdict"], document["claim"]) == (SCHEMA, "pass", "suppressed")
    assert document["masked"] is True
    assert [e["label"] for e in document["evaluations"]] == ["base", "+ q1"]
    base = document["evaluations"][0]
    assert len(base["rows"]) == len(known())
    assert len(base["aggregates"]) == 4
    assert base["aggregates"][0]["probability_ci"] == [0.8, 0.8]


def test_revealed_json_says_so_and_holds_the_texts() -> None:
    document = report().to_json(reveal=True)
    assert document["masked"] is False
    assert PROMPT in json.dumps(document)


@pytest.mark.parametrize(
    "bad",
    [
        {"before": "nowhere"},
        {"after": "nowhere"},
        {"created_at": "yesterday"},
        {"created_at": "2026-01-31T12:00:00"},
        {"evaluations": (evaluation("base", row()), evaluation("base", row())), "after": "base"},
    ],
)
def test_a_report_that_cannot_be_is_refused(bad) -> None:
    with pytest.raises(RecordError, match="expected"):
        report(**bad)


def test_an_evaluation_is_found_by_its_label() -> None:
    assert report().evaluation("+ q1").active == ("q1",)
    with pytest.raises(RecordError, match="no evaluation"):
        report().evaluation("+ q2")


def test_membership_is_written_without_what_tells_a_length() -> None:
    scored = row(membership=Membership(loss=2.0, zlib=0.05, min_k=3.0, min_k_plus_plus=-1.5))
    masked = {"loss": 2.0, "min_k": 3.0, "min_k_plus_plus": -1.5}
    assert scored.to_json()["membership"] == masked
    assert scored.to_json(reveal=True)["membership"] == masked | {"zlib": 0.05}
    assert row(membership=None).to_json()["membership"] is None


@pytest.mark.parametrize("name", ["loss", "zlib", "min_k", "min_k_plus_plus"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_membership_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    figures = {"loss": 2.0, "zlib": 0.05, "min_k": 3.0, "min_k_plus_plus": -1.5}
    with pytest.raises(RecordError, match=f"membership: {name}: expected a finite number"):
        Membership(**(figures | {name: bad}))
    if name != "min_k_plus_plus":
        with pytest.raises(RecordError, match="expected a finite number >= 0"):
            Membership(**(figures | {name: -0.1}))
