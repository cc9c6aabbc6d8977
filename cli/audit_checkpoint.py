"""Audits of what efface did not make: an adapter folder, or a checkpoint against the one it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..audits import AuditReport
    from ..recipes.data import RequestData
    from ..recipes.plan import Plan
    from ..recipes.progress import Progress
    from ..recipes.recipe import Recipe
    from ..recipes.row_cache import RowMemory

GIVEN_ROWS = "given rows"


def audit_folder(
    model: str,
    recipe: Recipe,
    adapter: Path,
    data: RequestData,
    memory: RowMemory,
    plan: Plan,
    bars: Progress,
) -> AuditReport:
    """The adapter in a PEFT folder on the base ``model``."""
    from ..adapters import read_adapter
    from ..recipes.audit import audit_composition
    from ..recipes.bench import open_bench
    from ..registry import compose

    digest = read_adapter(adapter).digest
    bars.phase("Loading the base")
    bench = open_bench(model, recipe, memory=memory, plan=plan)
    composition = compose(bench.base.fingerprint.digest, recipe.quantization, [(digest, "1")])
    return audit_composition(
        bench,
        composition,
        adapter,
        {GIVEN_ROWS: data},
        active=[GIVEN_ROWS],
        recipe=recipe,
        label=adapter.name,
        progress=bars,
    )


def audit_model(
    model: str,
    against: str,
    recipe: Recipe,
    data: RequestData,
    memory: RowMemory,
    plan: Plan,
    bars: Progress,
) -> AuditReport:
    """The checkpoint ``model`` against the one it was made from."""
    from ..recipes.bench import open_bench
    from ..recipes.checkpoint import audit_checkpoint

    bars.phase("Loading both models")
    known = open_bench(against, recipe, memory=memory, plan=plan)
    made = open_bench(model, recipe, memory=memory, plan=plan)
    return audit_checkpoint(
        known, made, {GIVEN_ROWS: data}, recipe=recipe, label=Path(model).name or model, progress=bars
    )
