"""What verbs print that made a release and measured it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..registry import Registry
from .lookups import requests_of
from .output import talk
from .records import MeasuredRelease, release_json
from .reports import findings_text, write_reports

if TYPE_CHECKING:
    from ..recipes.release import Released


def measured_json(registry: str, done: Released) -> MeasuredRelease:
    """The new version, and the audit that decided on it."""
    with Registry.open(registry) as reg:
        requests = requests_of(reg, done.release.composition.adapters)
    return {
        **release_json(done.release, requests),
        "measured_by": done.audit.digest,
        "verdict": done.audit.verdict,
    }


def measured_text(done: Released) -> str:
    """Its name, state and composition; what to do next, on stderr, where others are to approve it."""
    release = done.release
    if release.state == "CANDIDATE" and done.audit.verdict == "pass":
        then = f"efface release approve {release.channel} {release.version} --audit {done.audit.digest}"
        talk.print(f"A candidate; next: {then}", soft_wrap=True)
    return f"{release.channel}@{release.version} {release.state}\n{release.composition.digest}"


def report_released(done: Released, html: Path | None, json: Path | None, reveal: bool) -> None:
    """What the audit found; where nothing was left to measure, what carries the release instead."""
    if done.report is None:
        talk.print(f"{done.note} No report is written.", soft_wrap=True)
        return
    talk.print(findings_text(done.report), soft_wrap=True)
    write_reports(done.report, html, json, reveal)
