"""The page: complete, self-contained, masked unless asked, and inert whatever the model said."""

import json
import re
from html.parser import HTMLParser

import pytest
from audit_kit import (
    ANSWER,
    PROMPT,
    REFERENCE,
    attack,
    attacks,
    by_figures,
    evaluation,
    forgotten,
    full_report,
    known,
    report,
    row,
    suite_run,
)
from hypothesis import given
from hypothesis import strategies as st

from efface.audits.attack import Point
from efface.audits.charts import MAX_DOTS, thin
from efface.audits.curves import MOST_SERIES, Cross, Series, Spot, curves_chart, plane_chart
from efface.audits.errors import RecordError
from efface.audits.gates import check
from efface.audits.markup import Markup, element, number
from efface.audits.report import render_html
from efface.audits.tables import Table

HOSTILE = (
    "</td></svg><script>alert('x')</script><img src=x onerror=alert(1)>"
    '\u202e\x00\ud800 & "quoted" $title ${css}'
)
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Outline(HTMLParser):
    """Every tag and attribute that a browser would see; fails on tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def hostile_report():
    rows = [
        row(r.id + HOSTILE, r.group, r.request and HOSTILE, prompt=HOSTILE, answer=HOSTILE) for r in known()
    ]
    before, after = (
        evaluation(HOSTILE, *rows),
        evaluation("after", *rows, composition=HOSTILE, active=(HOSTILE,)),
    )
    return report(
        title=HOSTILE,
        asked=HOSTILE,
        evaluations=(before, after),
        findings=check(before, after, by_figures()),
        before=HOSTILE,
        after="after",
        digests={HOSTILE: HOSTILE},
        environment={HOSTILE: HOSTILE},
        reproduce=(HOSTILE,),
        claim="consolidated",
        claim_evidence=(HOSTILE,),
        attacks=(
            attack(
                HOSTILE,
                request=HOSTILE,
                metric=HOSTILE,
                finding=HOSTILE,
                x_label=HOSTILE,
                settings={HOSTILE: HOSTILE},
            ),
            attack("b", x_label=HOSTILE, points=(Point(0, 0.1, label=HOSTILE), Point(1, 0.2, label=HOSTILE))),
        ),
        suite=suite_run(
            name=HOSTILE, versions={HOSTILE: HOSTILE}, skipped={HOSTILE: HOSTILE}, figures={HOSTILE: 1.0}
        ),
    )


def test_the_page_says_what_was_asked_claimed_and_found() -> None:
    text = outline(render_html(report())).text
    for part in ("One request", "Forget q1.", "Audit passed", "What is claimed", "suppressed, not erased"):
        assert part in text
    for part in (
        "switching the adapter off",
        "sha256:" + "cd" * 32,
        "2.13.0",
        "efface audit run --suite first",
    ):
        assert part in text
    assert "mention rate 1 → 0 (n = 2), at most 0.1" in text


def test_a_failed_audit_says_so_first() -> None:
    before, after = evaluation("base", *known()), evaluation("+ q1", *known(), active=("q1",))
    text = outline(
        render_html(report(evaluations=(before, after), findings=check(before, after, by_figures())))
    ).text
    assert "Audit failed" in text
    assert "Audit passed" not in text
    assert "had it passed" in text
    assert text.index("mention rate 1 → 1 (n = 2), at most 0.1") < text.index("What was asked")


def test_a_composition_without_adapters_claims_nothing() -> None:
    after = evaluation("+ q1", *known(), active=())
    text = outline(render_html(report(evaluations=(evaluation("base", *known()), after)))).text
    assert "Nothing is suppressed" in text
    assert "suppressed, not erased" not in text


def test_the_page_loads_and_runs_nothing() -> None:
    page = render_html(hostile_report(), reveal=True, table=Table("t", ("a",), ((HOSTILE,),)))
    seen = outline(page)
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(seen.tags)
    names = {name for name, _ in seen.attributes}
    assert not {"src", "href", "srcset", "action"} & names
    assert not any(name.startswith("on") for name in names)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|@import|url\(", page)


@pytest.mark.parametrize("reveal", [False, True])
def test_hostile_text_is_shown_and_not_obeyed(reveal: bool) -> None:
    page = render_html(hostile_report(), reveal=reveal)
    assert "<script>alert('x')</script>" in outline(page).text
    assert not re.search("[\u202e\x00\ud800]", page)
    page.encode("utf-8")
    assert "${css}" in outline(page).text


@pytest.mark.parametrize("text", [PROMPT, REFERENCE, ANSWER])
def test_texts_are_shown_only_when_revealed(text: str) -> None:
    assert text not in render_html(report())
    assert text in render_html(report(), reveal=True)


def test_a_callers_table_is_masked_unless_revealed_or_harmless() -> None:
    cells = (("Who wrote Hamlet?", "unknown-cell"),)
    secret, harmless = (
        Table("Asked", ("question", "+1"), cells),
        Table("Asked", ("question", "+1"), cells, sensitive=False),
    )
    assert "unknown-cell" not in render_html(report(), table=secret)
    assert "1 rows quote" in render_html(report(), table=secret)
    assert "unknown-cell" in render_html(report(), reveal=True, table=secret)
    assert "unknown-cell" in render_html(report(), table=harmless)


def test_an_uneven_table_is_refused() -> None:
    with pytest.raises(RecordError, match="expected 2 cells"):
        Table("t", ("a", "b"), (("1", "2"), ("3",)))


def test_the_matrix_shows_every_composition_and_marks_the_active_one() -> None:
    third = evaluation("rolled back", *known(), active=())
    page = render_html(report(evaluations=(*report().evaluations, third)))
    matrix = page[page.index('class="matrix"') :]
    matrix = matrix[: matrix.index("</table>")]
    assert [label in matrix for label in ("base", "+ q1", "rolled back")] == [True] * 3
    assert matrix.count("●") == 3  # forget, paraphrase and neighbour of q1 in "+ q1"
    assert "<b>0.80</b>" in matrix
    assert "<b>0.10 ●</b>" in matrix


def test_the_pictures_describe_themselves() -> None:
    page = render_html(report())
    assert page.count('role="img"') == 3
    assert "forget, q1 · n = 2: 0.80 → 0.10" in page
    assert "+ q1: forget 0.10, retain 0.80" in page
    assert "forget, q1 · n = 2: 100% → 0%" in page


def test_groups_without_keywords_have_no_mention_picture() -> None:
    rows = [
        [row(r.id, r.group, r.request, mentioned=None) for r in source] for source in (known(), forgotten())
    ]
    evaluations = (evaluation("base", *rows[0]), evaluation("+ q1", *rows[1]))
    assert render_html(report(evaluations=evaluations)).count('role="img"') == 2


def test_many_rows_are_thinned_and_the_page_says_so() -> None:
    rows = [row(str(i), probability=i / 400) for i in range(400)]
    evaluations = (evaluation("base", *rows), evaluation("+ q1", *rows))
    page = render_html(report(evaluations=evaluations))
    assert f"At most {MAX_DOTS} rows" in page
    assert page.count('class="dot after"') == MAX_DOTS + 1  # and one in the legend
    assert f"At most {MAX_DOTS} rows" not in render_html(report())


def test_thin_keeps_the_ends() -> None:
    assert thin([3, 1, 2]) == [1, 2, 3]
    assert thin(list(range(10)), 4) == [0, 3, 6, 9]


def test_elements_escape_all_but_elements() -> None:
    inner = element("b", "<i>")
    assert inner == Markup("<b>&lt;i&gt;</b>")
    assert element("p", inner, class_='a"b', data_x=0.5, hidden=None).html == (
        '<p class="a&quot;b" data-x="0.5"><b>&lt;i&gt;</b></p>'
    )


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.25, "0.25"), (-0.001, "0"), (100.0, "100"), (0.5, "0.5")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_the_page_is_deterministic() -> None:
    assert render_html(report()) == render_html(report())


def test_a_claim_says_which_level_and_what_it_rests_on() -> None:
    ground = "Merged into the weights of base sha256:12."
    page = outline(render_html(report(claim="consolidated", claim_evidence=(ground,)))).text
    assert "● consolidated" in page
    assert "○ suppressed" in page
    assert ground in page
    assert "It is not erased" in page
    assert "Whoever still holds the model from before" in page
    erased = outline(
        render_html(report(claim="erased", claim_evidence=("Retrained without the rows.",)))
    ).text
    assert "● erased" in erased
    assert "switching the adapter off" not in erased


@pytest.mark.parametrize("claim", ["consolidated", "erased"])
def test_a_claim_beyond_suppressed_needs_evidence(claim: str) -> None:
    with pytest.raises(RecordError, match="expected claim_evidence"):
        report(claim=claim)
    with pytest.raises(RecordError, match="expected claim_evidence"):
        report(claim=claim, claim_evidence=("",))


def test_an_unknown_claim_and_an_attack_told_twice_are_refused() -> None:
    with pytest.raises(RecordError, match="expected a claim of"):
        report(claim="forgotten")
    with pytest.raises(RecordError, match="each attack once"):
        report(attacks=(attack(), attack()))


def test_the_summary_says_what_an_attacker_could_do_worst_first() -> None:
    text = outline(render_html(full_report())).text
    summary = text[text.index("What an attacker could still do") : text.index("Before and after")]
    in_order = sorted(attacks(), key=lambda one: summary.index(one.finding))
    shares = [one.recovered for one in in_order]
    assert shares == sorted(shares, reverse=True)
    assert "no attack is needed for that" in summary
    assert "Not tried" not in summary


def test_what_nobody_tried_is_said() -> None:
    text = outline(render_html(report(attacks=(attack(),)))).text
    assert (
        "Not tried for this report: other precisions, other wordings and prompts, asking many times" in text
    )
    assert "relearning from a part" not in text
    assert "Not tried for this report: relearning from a part" in outline(render_html(report())).text


def test_more_attacks_than_the_summary_holds_are_counted() -> None:
    many = tuple(attack(f"relearning/{i}", finding=f"finding {i}") for i in range(9))
    text = outline(render_html(report(attacks=many))).text
    assert "3 more in the table below." in text
    assert all(f"finding {i}" in text for i in range(9))


def test_curves_of_one_scale_share_a_picture_and_precisions_stand_side_by_side() -> None:
    page = render_html(full_report())
    assert "relearning/random-20%: 0 → 0.10, 25 → 0.30, 50 → 0.45; relearning/benign: 0 → 0.10" in page
    assert "bf16, precision/stack · q1: 0.12; int8, precision/stack · q1: 0.20" in page
    assert "Adapter: answer probability over weight, q1" in page
    assert page.count('role="img"') == 3 + 1 + 3 + 1  # before/after and plane, overview, scales, precisions


def test_an_attack_with_nothing_to_bring_back_is_not_called_a_success() -> None:
    text = outline(render_html(report(attacks=(attack(known=0.1, suppressed=0.1, attacked=0.1),)))).text
    assert "nothing to bring back" in text


def test_every_line_of_a_chart_is_drawn_differently_and_the_rest_goes_to_another() -> None:
    many = tuple(attack(f"relearning/{i}") for i in range(MOST_SERIES + 1))
    page = render_html(report(attacks=many))
    headed = "Relearning: answer probability over steps, q1</title>"
    assert page.count(headed) == 2
    css = page[: page.index("</style>")]
    assert all(f".curve.s{i}" in css and f".point.s{i}" in css for i in range(1, MOST_SERIES + 1))


@given(
    st.lists(st.floats(0, 1e4), min_size=1, max_size=9),
    st.floats(0, 1),
)
def test_a_curve_stays_inside_its_picture_at_any_scale(xs: list[float], y: float) -> None:
    spots = tuple(Spot(x, y, y / 2, (1 + y) / 2) for x in xs)
    page = curves_chart([Series("a", spots)], 0.9, 0.1, "steps", "t", "d").html
    assert all(0 <= float(share) <= 100 for share in re.findall(r'x\d?="([-\d.e]+)%', page))
    assert page.count('class="point s1"') == len(xs) + 1
    assert 1 <= len(re.findall(r'class="small" text-anchor="(?:middle|start|end)">', page)) < 30


def test_the_suite_is_told_in_the_provenance() -> None:
    text = outline(render_html(full_report())).text
    for part in ("standard/1", "skipped: reference", "lm-eval/arc_easy", "1 hashed", "43.0 s"):
        assert part in text


def test_the_document_holds_everything_and_no_text() -> None:
    document = full_report().to_json()
    assert [one["name"] for one in document["attacks"]] == [one.name for one in attacks()]  # type: ignore[index]
    assert document["suite"]["name"] == "standard"  # type: ignore[index]
    assert document["claim_evidence"] == []
    written = json.dumps(document, allow_nan=False)
    assert not any(text in written for text in (PROMPT, REFERENCE, ANSWER))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=6))
def test_no_composition_hides_another_in_the_plane(at: list[tuple[float, float]]) -> None:
    crosses = [Cross(f"c{i}", x, y, x, x, y, y) for i, (x, y) in enumerate(at)]
    page = plane_chart(crosses, "x", "t", "d").html
    drawing = page[page.index("<desc>") :]
    marks = re.findall(r'<circle cx="([\d.]+)%" cy="([\d.]+)" r="9"', drawing)
    assert len(marks) == len(at)
    spots = [(float(x), float(y)) for x, y in marks]
    for i, (x, y) in enumerate(spots):
        assert all(abs(x - a) > 5.9 or abs(y - b) > 19.9 for a, b in spots[:i])
