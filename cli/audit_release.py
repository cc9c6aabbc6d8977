"""The audit of what a channel serves, or of what a removal would leave of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..registry import Composition, Registry, adapter_folder

if TYPE_CHECKING:
    from ..audits import AuditReport
    from ..recipes.bench import Bench
    from ..recipes.progress import Progress
    from ..recipes.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Measured:
    """What is audited: `watched` are the requests whose rows are measured, gated or not.

    `rendered` is the sealed adapter that serves it, where there is one: that very one is measured.
    """

    composition: Composition
    watched: list[str]
    label: str
    rendered: str | None = None
    channel: str | None = None
    """Whose gates hold it."""


def measure_release(
    reg: Registry, measured: Measured, bench: Bench, recipe: Recipe, actor: str, progress: Progress
) -> tuple[AuditReport, str]:
    """Render, measure and record it; returns the report and the digest of the record."""
    from ..recipes.attest import signer
    from ..recipes.audit import audit_composition, audit_rows, record
    from ..recipes.held import held_to
    from ..recipes.release import render_composition, requests_in, require_base
    from ..serving.render import folder_parts

    require_base(bench, measured.composition)
    signs = signer(reg, actor)
    known = audit_rows(reg, requests_in(reg, measured.composition), measured.watched)
    with TemporaryDirectory(prefix="efface-audit-") as scratch:
        folder = (
            adapter_folder(reg, measured.rendered)
            if measured.rendered
            else render_composition(reg, measured.composition, Path(scratch) / "rendered")
        )
        report = audit_composition(
            bench,
            measured.composition,
            folder,
            known.requests,
            active=known.active,
            shredded=known.shredded,
            recipe=recipe,
            label=measured.label,
            parts=folder_parts(reg, measured.composition),
            held=held_to(
                reg, measured.channel, measured.composition.quantization, recipe.gates, measured.composition
            )
            if measured.channel
            else None,
            progress=progress,
        )
    made = record(reg, measured.composition, report, recipe, actor, measured=known.active)
    signs.audit(reg, made, report)
    return report, made.digest
