"""Every figure that a suite measured is on the page, once, with its interval and what it means."""

import html

import pytest
from audit_kit import REFERENCE, full_report, suite_run
from hypothesis import given
from hypothesis import strategies as st

from efface.audits.further import SIDES, further_section, lines, meaning
from efface.audits.report import render_html

FIGURES = {
    "membership/loss/auc/before": 1.0,
    "membership/loss/auc/after": 0.62,
    "membership/loss/auc_low/after": 0.41,
    "membership/loss/auc_high/after": 0.83,
    "membership/loss/auc/reference": 0.53,
    "membership/loss/privleak": 12.5,
    "drift/retain/kl": 0.021,
    "drift/retain/kl_low": 0.011,
    "drift/retain/kl_high": 0.034,
    "patching/score": 0.71,
    "patching/low": 0.66,
    "patching/high": 0.77,
    "patching/n": 9.0,
    "patching/skipped": 1.0,
    "lm-eval/arc_easy/after": 0.41,
}


def test_one_line_a_figure_with_its_sides_and_interval() -> None:
    found = {one.name: one for one in lines(FIGURES)}
    assert list(found) == [
        "membership/loss/auc",
        "membership/loss/privleak",
        "drift/retain/kl",
        "patching/score",
        "lm-eval/arc_easy",
    ]
    auc = found["membership/loss/auc"]
    assert (auc.shown, auc.spread) == ("1 → 0.62; reference 0.53", "after 0.41 to 0.83")
    assert found["drift/retain/kl"].spread == "0.011 to 0.034"
    assert found["patching/score"].intervals == {"": (0.66, 0.77)}
    assert found["lm-eval/arc_easy"].spread == "none"


def test_the_page_and_the_document_have_them() -> None:
    report = full_report(suite=suite_run(figures=FIGURES))
    page = html.unescape(render_html(report))
    shown = ("Further figures", "0.41 to 0.83", "Unlearning Depth Score", "n = 9, without a gap: 1", "nats")
    for part in (*shown, *(one.name for one in lines(FIGURES))):
        assert part in page, part
    assert report.to_json()["suite"]["figures"] == FIGURES  # type: ignore[index]
    assert REFERENCE not in page


def test_nothing_measured_is_no_section() -> None:
    assert further_section(None).html == further_section(suite_run(figures={})).html == ""


def test_a_name_is_escaped() -> None:
    assert "<b>" not in further_section(suite_run(figures={"lm-eval/<b>/after": 0.5})).html


WORDS = ("a", "a_low", "a_high", "a_low_low", "a_low_high", "low", "high", "score", "n", "patching", *SIDES)
NAMES = st.builds("/".join, st.lists(st.sampled_from(WORDS), min_size=1, max_size=3))


@given(st.dictionaries(NAMES, st.floats(-9, 9), max_size=12))
def test_no_figure_is_lost(figures: dict[str, float]) -> None:
    """Each is a value, an end of an interval, or a count beside the depth."""
    found = lines(figures)
    counts = sum(name in figures for name in ("patching/n", "patching/skipped")) * (
        "patching/score" in figures
    )
    assert sum(len(one.values) + 2 * len(one.intervals) for one in found) + counts == len(figures)


@pytest.mark.parametrize(
    "name", ["membership/min_k/auc", "drift/neighbour/probability", "tofu/model_utility"]
)
def test_what_efface_measures_has_a_meaning(name: str) -> None:
    assert meaning(name)
    assert meaning("ours/own") == ""
