"""Audit reports: to files, and in a few lines for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from ..audits import AuditReport, Table


def write_reports(
    report: AuditReport, html: Path | None, as_json: Path | None, reveal: bool, table: Table | None = None
) -> None:
    """Write the report where asked. Without ``reveal`` no prompt and no answer is in it."""
    from ..audits import render_html

    if html:
        html.write_text(render_html(report, reveal=reveal, table=table), encoding="utf-8")
    if as_json:
        text = json.dumps(report.to_json(reveal=reveal), indent=2, ensure_ascii=False, allow_nan=False)
        as_json.write_text(text + "\n", encoding="utf-8")


def findings_text(report: AuditReport) -> str:
    """The verdict and one line per gate, as Rich markup."""
    marks = {
        "passed": "[green]✓[/green]",
        "failed": "[red]✗[/red]",
        "noted": "[blue]i[/blue]",
        "not measured": "[yellow]–[/yellow]",
    }
    lines = [
        f"  {marks[finding.outcome]} {finding.request or 'all'} · {finding.group}: {escape(finding.text)}"
        for finding in report.findings
    ]
    verdict = "[green]passed[/green]" if report.verdict == "pass" else "[red]FAILED[/red]"
    return "\n".join([f"Audit {verdict}: {escape(report.title)}", *lines])
