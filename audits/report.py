"""An audit as one self-contained HTML page: no script, no network, nothing loaded from elsewhere.

Read `render_html` first. Everything on the page goes through `markup.element`, which escapes it.
"""

from __future__ import annotations

from importlib import resources
from string import Template

from .attack_pictures import attack_section
from .document import SCHEMA, AuditReport
from .further import further_section
from .markup import EMPTY, Markup, element, escape, join
from .pictures import pictures, trade_off
from .summary import header, summary
from .tables import (
    Table,
    findings_table,
    matrix_table,
    own_table,
    pairs_table,
    rows_table,
    suite_facts,
    thresholds_of,
)
from .types import Evaluation

_FIGURES = {
    "Answer probability": "exp(mean log p) of the reference answer, teacher-forced (TOFU, arXiv 2401.06121)",
    "Extraction strength": "1 - k/T, k of T answer tokens given before all argmaxes hold (arXiv 2012.07805)",
    "ROUGE-L": "recall of the reference by the greedy answer (longest common subsequence of words)",
    "Mention rate": "share of greedy answers that name a keyword of the row as whole words",
    "Fluency": "n-gram entropy of the greedy answer in bits (arXiv 1809.05972, weights of 2202.05262)",
    "Perplexity": "of the greedy answer as judged by the base without adapters; geometric mean",
    "Brought back": "(attacked - suppressed) / (known - suppressed): 0 % nothing, 100 % all that was taken",
    "Intervals": "95 % percentile bootstrap over rows; they say nothing about training seeds",
}


def render_html(report: AuditReport, *, reveal: bool = False, table: Table | None = None) -> str:
    """The report as one HTML page.

    Without `reveal` no prompt, reference or answer of any group is on the page, nor a sensitive `table`.
    `title`, `asked`, `claim_evidence`, `digests`, `environment`, `reproduce`, row ids and what attacks and suite say
    of themselves are shown as given, escaped.
    """
    before, after = report.evaluation(report.before), report.evaluation(report.after)
    sections = (
        header(report, after),
        summary(report, after),
        pictures(before, after),
        trade_off(report.evaluations, after.active),
        attack_section(report.attacks),
        further_section(report.suite),
        _matrix(report),
        _findings(report),
        EMPTY if table is None else element("section", own_table(table, reveal=reveal)),
        _provenance(report),
        _rows(before, after, reveal),
    )
    return Template(_read("report.html")).substitute(
        title=escape(report.title),
        css=_read("report.css"),
        body=join(*sections).html,
        schema=escape(SCHEMA),
    )


def _read(name: str) -> str:
    return resources.files(f"{__package__}.templates").joinpath(name).read_text(encoding="utf-8")


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
        "Suite": {} if report.suite is None else suite_facts(report.suite),
        "What the figures mean": _FIGURES,
    }
    tables = [join(element("h3", name), pairs_table(pairs)) for name, pairs in parts.items() if pairs]
    commands = element("pre", element("code", "\n".join(report.reproduce)))
    again = join(element("h3", "Do it again"), commands) if report.reproduce else EMPTY
    return element("section", element("h2", "Provenance"), *tables, again, class_="provenance")
