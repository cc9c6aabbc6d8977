"""The tables of an audit page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .aggregate import Subject, aggregate, subject_order
from .document import AuditReport
from .errors import RecordError
from .markup import EMPTY, Child, Markup, element, join
from .names import request_name
from .suite_run import SuiteRun
from .types import Aggregate, Evaluation, Finding, Outcome, RowScore

_RANK: tuple[Outcome, ...] = ("failed", "not measured", "noted", "passed")
_SIGNS: dict[Outcome, str] = {"passed": "✓", "failed": "✗", "noted": "i", "not measured": "?"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the caller's own: questions by compositions in the demo.

    `sensitive` (the default) means that its cells may quote prompts or answers: it is shown only with
    `reveal=True`. The caption is always shown. Raises RecordError when a row is not as long as the header.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sensitive: bool = True

    def __post_init__(self) -> None:
        uneven = [i for i, row in enumerate(self.rows) if len(row) != len(self.columns)]
        if uneven:
            raise RecordError(
                f"table: expected {len(self.columns)} cells a row, got others in rows {uneven[:5]}"
            )


def findings_table(findings: Sequence[Finding]) -> Markup:
    """One row per finding: outcome as sign and word, what was judged, value against bound, and why."""
    head = ("Outcome", "Request", "Group", "Value", "Bound", "Finding")
    # What a reader must not overlook stands first; the order is otherwise that of the gates.
    ranked = sorted(findings, key=lambda finding: _RANK.index(finding.outcome))
    return grid(head, [_finding(finding) for finding in ranked], class_="findings")


def matrix_table(evaluations: Sequence[Evaluation]) -> Markup:
    """Mean answer probability (shaded) and mention rate by (request, group) and composition; ● is active."""
    columns = [_by_subject(e) for e in evaluations]
    subjects = sorted({subject for column in columns for subject in column}, key=subject_order)
    head: list[Child] = ["Request", "Group", *(_composition(e) for e in evaluations)]
    body = [
        [
            element("td", request_name(request)),
            element("td", group),
            *(
                _heat(c.get((request, group)), _is_active(e, request))
                for c, e in zip(columns, evaluations, strict=True)
            ),
        ]
        for request, group in subjects
    ]
    return grid(head, body, class_="matrix")


def rows_table(before: Evaluation, after: Evaluation, *, reveal: bool) -> Markup:
    """One row per question, before → after; its texts below only with `reveal`."""
    old = {row.key: row for row in before.rows}
    head = (
        "Row",
        "Request",
        "Group",
        "Answer prob.",
        "Extr. strength",
        "ROUGE-L",
        "Mentioned",
        "Fluency, bits",
    )
    body: list[list[Markup]] = []
    for row in sorted(after.rows, key=lambda row: (subject_order((row.request, row.group)), row.id)):
        body.append(_row(old.get(row.key), row))
        if reveal:
            body.append([element("td", _texts(old.get(row.key), row), colspan=len(head), class_="texts")])
    return grid(head, body, class_="rows")


def own_table(table: Table, *, reveal: bool) -> Markup:
    """The caller's table, or how many rows of it are withheld."""
    caption = element("h2", table.caption)
    if table.sensitive and not reveal:
        note = f"{len(table.rows)} rows quote prompts and answers: withheld; render with reveal to see them."
        return join(caption, element("p", note, class_="muted"))
    body = [[element("td", cell, dir="auto") for cell in row] for row in table.rows]
    return join(caption, grid(table.columns, body, class_="own"))


def pairs_table(pairs: Mapping[str, str]) -> Markup:
    """Name and value, in the order given."""
    body = [
        [element("th", name, scope="row"), element("td", element("code", value))]
        for name, value in pairs.items()
    ]
    return element("table", element("tbody", *(element("tr", *cells) for cells in body)), class_="pairs")


def thresholds_of(report: AuditReport) -> dict[str, str]:
    """The bounds as text; None reads "not gated"."""
    return {name: "not gated" if value is None else f"{value:g}" for name, value in report.thresholds.items()}


def suite_facts(run: SuiteRun) -> dict[str, str]:
    """How the suite was run, as text: what one compares before comparing figures."""
    facts = {
        "suite": run.title,
        "digest of the suite": run.digest,
        "seed": f"{run.seed}",
        "precision": run.precision,
        "rows": f"{len(run.rows)} hashed, {run.cached} results taken from an earlier run",
        "wall time": f"{run.total_seconds:.1f} s",
    }
    versions = {f"version of {name}": version for name, version in run.versions.items()}
    times = {f"time of {name}": f"{value:.1f} s" for name, value in run.seconds.items()}
    skipped = {f"skipped: {name}": why for name, why in run.skipped.items()}
    return facts | skipped | times | versions


def grid(head: Sequence[Child], body: Sequence[Sequence[Markup]], class_: str) -> Markup:
    """A table with a header row, in a box that scrolls sideways on narrow screens."""
    columns = element("tr", *(element("th", cell, scope="col") for cell in head))
    rows = (element("tr", *cells) for cells in body)
    table = element("table", element("thead", columns), element("tbody", *rows), class_=class_)
    return element("div", table, class_="scroll")


def arrow(before: str | None, after: str) -> str:
    """ "before → after", or the after alone."""
    return after if before is None else f"{before} → {after}"


def _finding(finding: Finding) -> list[Markup]:
    badge = element("span", f"{_SIGNS[finding.outcome]} {finding.outcome}", class_=f"badge {finding.outcome}")
    bound = ("≤ " if finding.gate.startswith("max") else "≥ ") + f"{finding.threshold:g}"
    value = "none" if finding.value is None else f"{finding.value:.3g}"
    return [
        element("td", badge),
        element("td", request_name(finding.request)),
        element("td", finding.group),
        element("td", value, class_="number"),
        element("td", bound, class_="number"),
        element("td", finding.text, element("code", finding.gate, class_="gate")),
    ]


def _by_subject(evaluation: Evaluation) -> dict[Subject, Aggregate]:
    return {(item.request, item.group): item for item in aggregate(evaluation)}


def _composition(evaluation: Evaluation) -> Markup:
    digest = element("code", short(evaluation.composition), title=evaluation.composition, class_="gate")
    return join(evaluation.label, digest)


def short(digest: str) -> str:
    """First 12 characters after the algorithm: enough to recognise, not to verify."""
    return digest.removeprefix("sha256:")[:12]


def _is_active(evaluation: Evaluation, request: str | None) -> bool:
    return request is not None and request in (evaluation.active or ())


def _heat(item: Aggregate | None, active: bool) -> Markup:
    if item is None:
        return element("td", "not run", class_="muted")
    mention = EMPTY if item.mention_rate is None else element("small", f"mentions {item.mention_rate:.0%}")
    figure = element("b", f"{item.probability:.2f}", " ●" if active else "")
    return element("td", figure, mention, class_="heat", style=f"--share:{item.probability:.3f}")


def _row(old: RowScore | None, new: RowScore) -> list[Markup]:
    def both(name: str) -> Markup:
        was = None if old is None else f"{getattr(old, name):.2f}"
        return element("td", arrow(was, f"{getattr(new, name):.2f}"), class_="number")

    return [
        element("td", new.id),
        element("td", request_name(new.request)),
        element("td", new.group),
        both("probability"),
        both("extraction_strength"),
        both("rouge_l"),
        element("td", arrow(None if old is None else _yes(old), _yes(new)), class_="number"),
        both("fluency"),
    ]


def _yes(row: RowScore) -> str:
    return "no keyword" if row.mentioned is None else "yes" if row.mentioned else "no"


def _texts(old: RowScore | None, new: RowScore) -> Markup:
    texts = {"Prompt": new.prompt, "Reference": new.reference}
    answers = {"After": new.answer} if old is None else {"Before": old.answer, "After": new.answer}
    items = [
        join(element("dt", name), element("dd", text, dir="auto")) for name, text in (texts | answers).items()
    ]
    return element("dl", *items)
