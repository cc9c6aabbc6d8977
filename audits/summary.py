"""The top of an audit page: verdict, what was asked, what is claimed, what an attacker could still do."""

from __future__ import annotations

from .attack_pictures import worst_first
from .claim import CLAIMS, MEANING, NOTHING, untested, without_attack
from .document import AuditReport
from .markup import EMPTY, Markup, element, join
from .names import request_name
from .types import Evaluation

_SCOPE = "The figures hold for this base, this composition and this precision, and for the questions below."
_MOST_FINDINGS = 6


def header(report: AuditReport, after: Evaluation) -> Markup:
    """Title, verdict, what failed."""
    passed = report.verdict == "pass"
    outcomes = [finding.outcome for finding in report.findings]
    counts = ", ".join(
        f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "noted", "not measured") if o in outcomes
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


def summary(report: AuditReport, after: Evaluation) -> Markup:
    """What somebody reads who reads nothing else."""
    return element(
        "section",
        element("div", _asked(report, after), _claimed(report, after), class_="cards"),
        _attacker(report, after),
    )


def _asked(report: AuditReport, after: Evaluation) -> Markup:
    active = "not recorded" if after.active is None else ", ".join(after.active) or "none"
    return element(
        "div",
        element("h2", "What was asked"),
        element("p", report.asked),
        element("p", f"Requests in this composition: {active}.", class_="muted"),
    )


def _claimed(report: AuditReport, after: Evaluation) -> Markup:
    heading = "What is claimed" if report.verdict == "pass" else "What would be claimed, had it passed"
    nothing = after.active == () and report.claim == "suppressed"
    rests = [element("li", sentence) for sentence in report.claim_evidence]
    return element(
        "div",
        element("h2", heading),
        EMPTY if nothing else _levels(report),
        element("p", NOTHING if nothing else MEANING[report.claim]),
        join(element("p", "It rests on:", class_="muted"), element("ul", *rests)) if rests else EMPTY,
        element("p", _SCOPE, class_="muted"),
    )


def _levels(report: AuditReport) -> Markup:
    """The three levels in a row, the claimed one marked by a sign and a frame."""
    steps = [
        element("b", f"● {level}", class_="level claimed") if level == report.claim else _level(level)
        for level in CLAIMS
    ]
    return element("p", *steps, class_="levels")


def _level(name: str) -> Markup:
    return element("span", f"○ {name}", class_="level")


def _attacker(report: AuditReport, after: Evaluation) -> Markup:
    worst = worst_first(report.attacks)
    free = [] if after.active == () else without_attack(report.claim)
    told = [
        element("li", element("b", f"{one.name}, {request_name(one.request)}: "), one.finding)
        for one in worst[:_MOST_FINDINGS]
    ]
    more = len(worst) - len(told)
    return element(
        "div",
        element("h2", "What an attacker could still do"),
        element("ul", *(element("li", sentence) for sentence in free), *told),
        element("p", f"{more} more in the table below.", class_="muted") if more else EMPTY,
        element("p", untested(report.attacks), class_="muted") if untested(report.attacks) else EMPTY,
        class_="card",
    )
