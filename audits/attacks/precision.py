"""Attacks by precision: a small change of the weights may be lost in a coarse grid (arXiv 2410.16454).

Two deployments: the adapter unmerged on a base at another precision, and merged, then stored at one. Both are measured
as they are served; evidence for and against either depends on the rows, so neither is assumed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ...adapters.compose import Part
from ...adapters.merge import merge
from ...adapters.model import Base, Quantization, load_base
from ..attack import AttackResult, Point
from ..errors import AttackError
from .measure import Figure, Made, Watcher, by_request, point
from .settings import Listed, Settings
from .target import Target, wearing

Form = Literal["bf16", "int8", "nf4", "into nf4"]


class Stacked(Settings):
    """``precisions`` that the base is loaded at, the audited one left out."""

    metric: Figure = "probability"
    precisions: Annotated[tuple[Quantization, ...], Listed] = Field(("bf16", "int8", "nf4"), min_length=1)


class Merge(Settings):
    """``forms``: merged into the original weights and stored so; ``into nf4`` merges into what an NF4 base computes
    with, and quantizes that again."""

    metric: Figure = "probability"
    forms: Annotated[tuple[Form, ...], Listed] = Field(("bf16", "int8", "nf4"), min_length=1)


def stacked(target: Target, settings: Stacked, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Put the adapter, unmerged, on the base at other precisions. A second base is in memory meanwhile."""
    others = [p for p in dict.fromkeys(settings.precisions) if p != target.base.quantization]
    if not others:
        raise AttackError(
            f"expected a precision other than the audited {target.base.quantization}, got none: name some"
        )
    watcher.phase("precision/stacked", len(others))
    curve: list[dict[str | None, Point]] = []
    for number, precision in enumerate(others):
        other = load_base(target.base.path, precision, device=str(target.base.model.device))
        curve.append(_at(target, other, target.folder, settings, number, precision))
        watcher.advance()
    did = f"Unmerged on a base at {_listed(others)}, audited at {target.base.quantization}"
    return _found("precision/stacked", did, target, settings, curve)


def merged(target: Target, settings: Merge, watcher: Watcher) -> tuple[AttackResult, ...]:
    """Merge the adapters into the base's files and load what comes of it. The disk must hold another base."""
    forms = list(dict.fromkeys(settings.forms))
    # What is on, and not what it was composed of: an approximate rendering is not the sum of its parts.
    served = [] if target.folder is None else [Part(target.folder)]
    watcher.phase("precision/merged", len(forms))
    curve: list[dict[str | None, Point]] = []
    for number, form in enumerate(forms):
        with tempfile.TemporaryDirectory(prefix="efface-attack-") as scratch:
            onto = "nf4" if form == "into nf4" else "original"
            stored = {"bf16": None, "int8": "int8", "nf4": "nf4", "into nf4": "nf4"}[form]
            made = merge(target.base.path, served, Path(scratch) / "merged", onto=onto, requantize=stored)
            checkpoint = load_base(made.path, stored or "bf16", device=str(target.base.model.device))
            curve.append(_at(target, checkpoint, None, settings, number, f"merged {form}"))
        watcher.advance()
    return _found("precision/merged", f"Merged and stored as {_listed(forms)}", target, settings, curve)


def _at(
    target: Target, base: Base, folder: Path | None, settings: Stacked | Merge, number: int, label: str
) -> dict[str | None, Point]:
    other = replace(target, base=base)
    with wearing(base, folder) as model:
        found = by_request(other, model, settings.metric)
    return {request: point(number, values, label, settings.seed) for request, values in found.items()}


def _found(
    name: str, did: str, target: Target, settings: Stacked | Merge, curve: Sequence[dict[str | None, Point]]
) -> tuple[AttackResult, ...]:
    made = Made(name, "precision", settings.metric, did, settings.recorded(), "precision")
    return tuple(
        made.found(target, request, probes, [points[request] for points in curve])
        for request, probes in target.requests.items()
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
