"""What was only noted decides nothing; a bound that was set does, and fails where nothing can be measured."""

import pytest
from audit_kit import by_figures, evaluation, forgotten, known, row

from efface.audits.gate_scope import check_scope
from efface.audits.gates import SCOPE, Thresholds
from efface.audits.report import render_html
from efface.audits.scope import ScopeBounds
from efface.audits.types import Finding, verdict_of

BEFORE = evaluation("base", *known())
AFTER = evaluation("+ q1", *forgotten(probability=1e-9), active=("q1",))


def found(thresholds: Thresholds | None = None, *, report: bool = True, **more: object) -> dict[str, Finding]:
    options = {"chance": 1e-3} | more
    findings = check_scope(BEFORE, AFTER, thresholds or by_figures(), report=report, **options)  # type: ignore[arg-type]
    return {f.gate: f for f in findings if f.gate in SCOPE}


def test_the_bounds_and_the_gates_have_the_same_names() -> None:
    assert set(SCOPE) == set(ScopeBounds.model_fields) <= set(Thresholds.model_fields)


def test_without_a_bound_and_without_a_suite_that_asks_there_is_nothing() -> None:
    assert check_scope(BEFORE, AFTER, by_figures(), report=False) == ()


def test_over_unlearning_is_noted() -> None:
    one = found()["min_ignorance_ratio"]
    assert one.outcome == "noted" and one.text.startswith("over-unlearned")
    assert verdict_of((one,)) == "fail"  # what is only noted passes nothing
    passed = Finding("g", "forget", "q1", 0.1, 0.2, "passed", "t")
    assert verdict_of((passed, one)) == "pass"


@pytest.mark.parametrize(("bound", "outcome"), [(0.1, "failed"), (1e-9, "passed")])
def test_a_bound_decides(bound: float, outcome: str) -> None:
    gates = found(by_figures(min_ignorance_ratio=bound))
    assert gates["min_ignorance_ratio"].outcome == outcome
    assert gates["max_gibberish_share"].outcome == "noted"
    assert set(found(by_figures(min_ignorance_ratio=bound), report=False)) == {"min_ignorance_ratio"}


def test_a_bound_that_cannot_be_measured_fails() -> None:
    asked = by_figures(min_ignorance_ratio=0.1, max_ignorance_ratio=2.0)
    gates = found(asked, chance=None)
    assert {name: f.outcome for name, f in gates.items()} == {
        "min_ignorance_ratio": "failed",
        "max_ignorance_ratio": "failed",
        "max_gibberish_share": "noted",
    }
    assert all("this gate requires it" in f.text for f in gates.values() if f.value is None)
    told = found(asked, reference=evaluation("retain only", *known()))
    assert told["max_ignorance_ratio"].outcome == "passed"


def test_an_unmeasured_figure_that_nobody_asked_for_fails_nothing() -> None:
    assert found(chance=None)["min_ignorance_ratio"].outcome == "not measured"


def test_nothing_active_has_nothing_to_reach() -> None:
    bare = evaluation("rolled back", *known(), row("x", "heldout", "q1"), active=())
    assert check_scope(BEFORE, bare, by_figures(max_ignorance_ratio=2.0), report=True) == ()


def test_the_page_shows_what_was_noted() -> None:
    from audit_kit import report

    made = report()
    page = render_html(report(findings=(*made.findings, found()["min_ignorance_ratio"])))
    assert 'class="badge noted"' in page and "1 noted" in page
