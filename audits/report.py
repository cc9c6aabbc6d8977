"""An audit as one self-contained HTML page: no script, no network, nothing loaded from elsewhere.

Read `render_html` first. Everything on the page goes through `markup.element`, which escapes it.
"""

from __future__ import annotations

from importlib import resources
from string import Template

from .document import SCHEMA, AuditReport
from .markup import EMPTY, Markup, element, escape, join
from .pictures import pictures
from .tables import (
    Table,
    findings_table,
    matrix_table,
    own_table,
    pairs_table,
    request_name,
    rows_table,
    thresholds_of,
)
from .types import Evaluation

_SUPPRESSED = (
    "The knowledge is suppressed, not erased. The adapter can be removed: whoever holds the base model and "
    "this adapter recovers everything by switching the adapter off. Only retraining without the data, or "
    "dropping the shard that learned it, erases."
)
_NOTHING = "Nothing is suppressed: this composition holds no adapter. Only what stays known was judged."
_SCOPE = (
    "The figures hold for this base, this composition and this precision, and for the questions below. "
    "Quantizing, merging, relearning or other wordings were not tested here."
)
_FIGURES = {
    "Answer probability": "exp(mean log p) of the reference answer, teacher-forced (TOFU, arXiv 2401.06121)",
    "Extraction strength": "1 - k/T, k of T answer tokens given before all argmaxes hold (arXiv 2012.07805)",
    "ROUGE-L": "recall of the reference by the greedy answer (longest common subsequence of words)",
    "Mention rate": "share of greedy answers that name a keyword of the row as whole words",
    "Fluency": "n-gram entropy of the greedy answer in bits (arXiv 1809.05972, weights of 2202.05262)",
    "Perplexity": "of the greedy answer as judged by the base without adapters; geometric mean",
    "Intervals": "95 % percentile bootstrap over rows; they say nothing about training seeds",
}


def render_html(report: AuditReport, *, reveal: bool = False, table: Table | None = None) -> str:
    """The report as one HTML page.

    Without `reveal` no prompt, reference or answer of any group is on the page, nor a sensitive `table`.
    `title`, `asked`, `digests`, `environment`, `reproduce` and row ids are shown as given, escaped.
    """
    before, after = report.evaluation(report.before), report.evaluation(report.after)
    sections = (
        _head(report, after),
        _asked(report, after),
        pictures(before, after),
        _matrix(report),
        _findings(report),
        EMPTY if table is None else element("section", own_table(table, reveal=reveal)),
        _rows(before, after, reveal),
        _provenance(report),
    )
    return Template(_read("report.html")).substitute(
        title=escape(report.title),
        css=_read("report.css"),
        body=join(*sections).html,
        schema=escape(SCHEMA),
    )


def _read(name: str) -> str:
    return resources.files(f"{__package__}.templates").joinpath(name).read_text(encoding="utf-8")


def _head(report: AuditReport, after: Evaluation) -> Markup:
    passed = report.verdict == "pass"
    outcomes = [finding.outcome for finding in report.findings]
    counts = ", ".join(
        f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "not measured") if o in outcomes
    )
    word = "✓ Audit passed" if passed else "✗ Audit failed"
    return element(
        "header",
        element("p", "efface audit", class_="kicker"),
        element("h1", report.title),
        element(
            "p",
            element("strong", word, class_=f"verdict {report.verdict}"),
            f" Gates: {counts or 'none'}.",
        ),
        _failures(report),
        element(
            "p",
            f"{report.after} against {report.before} · {after.precision} · {report.created_at}",
            class_="muted",
        ),
    )


def _failures(report: AuditReport) -> Markup:
    failed = [
        element("li", element("b", f"{request_name(finding.request)}, {finding.group}: "), finding.text)
        for finding in report.findings
        if finding.outcome == "failed"
    ]
    return element("ul", *failed, class_="failures") if failed else EMPTY


def _asked(report: AuditReport, after: Evaluation) -> Markup:
    active = "not recorded" if after.active is None else ", ".join(after.active) or "none"
    asked = element(
        "div",
        element("h2", "What was asked"),
        element("p", report.asked),
        element("p", f"Requests in this composition: {active}.", class_="muted"),
    )
    heading = "What is claimed" if report.verdict == "pass" else "What would be claimed, had it passed"
    claimed = _NOTHING if after.active == () else _SUPPRESSED
    claim = element(
        "div", element("h2", heading), element("p", claimed), element("p", _SCOPE, class_="muted")
    )
    return element("section", asked, claim, class_="cards")


def _findings(report: AuditReport) -> Markup:
    return element("section", element("h2", "Findings"), findings_table(report.findings))


def _matrix(report: AuditReport) -> Markup:
    note = (
        "Mean answer probability, a stronger shade is higher. ● The composition holds this request's adapter."
    )
    return element(
        "section",
        element("h2", "Requests by composition"),
        element("p", note, class_="muted"),
        matrix_table(report.evaluations),
    )


def _rows(before: Evaluation, after: Evaluation, reveal: bool) -> Markup:
    note = "Texts are shown." if reveal else "Prompts, references and answers are withheld from this page."
    summary = element("summary", element("h2", f"All {len(after.rows)} rows"))
    content = (element("p", note, class_="muted"), rows_table(before, after, reveal=reveal))
    return element("section", element("details", summary, *content, open="open"))


def _provenance(report: AuditReport) -> Markup:
    runs = {
        e.label: f"{e.composition} · {e.precision} · seed {e.seed} · {e.seconds:.1f} s"
        for e in report.evaluations
    }
    parts = {
        "Compositions": runs,
        "Digests": dict(report.digests),
        "Environment": dict(report.environment),
        "Bounds": thresholds_of(report),
        "What the figures mean": _FIGURES,
    }
    tables = [join(element("h3", name), pairs_table(pairs)) for name, pairs in parts.items() if pairs]
    commands = element("pre", element("code", "\n".join(report.reproduce)))
    again = join(element("h3", "Do it again"), commands) if report.reproduce else EMPTY
    return element("section", element("h2", "Provenance"), *tables, again, class_="provenance")
