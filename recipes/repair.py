"""Repair: requests that a stack lets come back get a small adapter of their own, trained on top of that stack.

An audit of the stack says which: those with a forgetting gate that failed. A repair is an adapter of kind `trained`
like any other, sealed with `trained_on` the stack and `facts["repairs"]` its request. So it leaves with it;
and when something that it was trained on leaves, that is refused until what is left has passed an audit, or the repair
is taken off too (`plan_removal(…, drop_repairs=True)`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..audits import FORGET_SIDE
from ..registry import (
    JSON,
    Adapter,
    Audit,
    Part,
    Registry,
    Release,
    checks,
    compose,
    get_release,
    history,
    list_audits,
    parse_render,
    seal_adapter,
)
from ..registry.canon import parse
from ..registry.compactions import REPAIRS
from .attest import signer
from .audit import audit_rows
from .bench import Bench
from .data import RequestData
from .errors import RequestError
from .prepare import TrainingRows, training_rows
from .progress import Progress, Silent
from .recipe import Recipe
from .release import (
    Released,
    release_composition,
    render_composition,
    requests_in,
    require_base,
    require_in_force,
)
from .rounds import Stacked, train_adapter
from .run import live_requests
from .slots import require_slot

RANK, STEPS = 4, 12
"""What a repair is made of unless the caller says otherwise: it corrects an adapter, and is not one."""
_REPAIRABLE = ("CANDIDATE", "APPROVED", "ACTIVE")


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """The stack of ``release``, its newest ``audit``, and the ``requests`` that came back according to it."""

    release: Release
    audit: Audit
    requests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Repaired:
    """The repairs, by request, and the release of the stack with them."""

    plan: RepairPlan
    adapters: tuple[Adapter, ...]
    released: Released


def plan_repair(registry: Registry, channel: str, version: int | None = None) -> RepairPlan:
    """Which requests of a release came back, by its newest audit at the precision it is served in.

    Without ``version``, of the newest version that is a candidate, approved or active. Raises `RequestError` where
    nothing was audited, or there is no such version.
    """
    release = repairable(registry, channel, version)
    composition = release.composition
    audits = [
        one for one in list_audits(registry, composition.digest) if one.precision == composition.quantization
    ]
    if not audits:
        raise RequestError(
            f"{channel}@{release.version} was never audited at {composition.quantization}: "
            f"efface audit run --release {channel}"
        )
    came_back = _came_back(registry, audits[-1]) & set(requests_in(registry, composition))
    return RepairPlan(release, audits[-1], tuple(sorted(came_back)))


def repair(
    registry: Registry,
    channel: str,
    bench: Bench,
    recipe: Recipe,
    *,
    version: int | None = None,
    rank: int = RANK,
    steps: int = STEPS,
    reason: str,
    actor: str,
    progress: Progress | None = None,
    activate: bool = True,
    render: str | None = None,
    max_rank: int | None = None,
) -> Repaired:
    """Train a repair of each request that came back, and release the stack with them, audited anew.

    Each is trained on the stack alone, so repairs do not depend on each other. Rows of every other live request are
    kept out of its retain rows. ``render``: as that release by default; ``max_rank``: what the server holds. Raises
    `RequestError` when nothing came back or its rows are shredded and `RenderError` when the server would not hold the
    repaired stack, before anything is trained, and what training and the registry raise; adapters that were sealed by
    then stay, and no release is made.
    """
    checks.actor(actor)
    checks.reason(reason)
    progress, small = progress or Silent(), repairing(recipe, rank, steps)
    plan = plan_repair(registry, channel, version)
    below = plan.release.composition
    parse_render(how := render or below.render)
    if not plan.requests:
        raise RequestError(f"{channel}@{plan.release.version}: by its audit no request came back")
    require_base(bench, below)
    require_in_force(registry, requests_in(registry, below))
    require_slot(registry, below, rank * len(plan.requests), how, max_rank=max_rank)
    if gone := audit_rows(registry, plan.requests).shredded:
        raise RequestError(
            f"the rows of {', '.join(gone)} are shredded: nothing is left to train a repair with. Open it anew"
        )
    signs = signer(registry, actor)
    live = live_requests(registry)
    made: list[Adapter] = []
    with tempfile.TemporaryDirectory(prefix="efface-repair-") as scratch:
        stacked = Stacked(below.digest, render_composition(registry, below, Path(scratch) / "below"))
        for request in plan.requests:
            folder = Path(scratch) / request
            rows, facts = _rows(live, request, bench, small, progress)
            rounds = train_adapter(bench, live[request], rows, small, folder, progress, stacked=stacked)
            adapter = seal_adapter(
                registry,
                folder,
                kind="trained",
                base=below.base,
                quantization=below.quantization,
                request_ids=[request],
                facts={**facts, "steps": sum(len(result.steps) for result in rounds)},
                trained_on=below.digest,
                actor=actor,
            )
            made.append(adapter)
            signs.adapter(registry, adapter)
    whole = compose(
        below.base,
        below.quantization,
        [*below.parts, *(Part(adapter.digest, "1") for adapter in made)],
        how,
    )
    released = release_composition(
        registry,
        channel,
        whole,
        bench,
        recipe,
        reason,
        actor,
        progress,
        activate=activate,
        max_rank=max_rank,
    )
    return Repaired(plan, tuple(made), released)


def _rows(
    live: Mapping[str, RequestData], request: str, bench: Bench, recipe: Recipe, progress: Progress
) -> tuple[TrainingRows, dict[str, JSON]]:
    """What a repair is trained on, and what its manifest says of that."""
    others = {name: data for name, data in live.items() if name != request}
    rows = training_rows(
        bench,
        live[request],
        recipe,
        others=tuple(others.values()),
        progress=progress,
        alternates=recipe.train_settings().needs_alternates,
        truncation=recipe.truncation,
    )
    return rows, {
        REPAIRS: [request],
        "objective": recipe.objective,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "rank": recipe.rank,
        "forget_rows": len(rows.forget),
        "retain_rows": len(rows.retain),
        "scope_kept_out_of": list(others),
    }


def repairable(registry: Registry, channel: str, version: int | None = None) -> Release:
    """That version, or the newest one that is a candidate, approved or active; `RequestError` where none is."""
    if version:
        return get_release(registry, channel, version)
    found = [release for release in history(registry, channel) if release.state in _REPAIRABLE]
    if not found:
        raise RequestError("expected a candidate, approved or active version to repair, got none: create one")
    return found[-1]


def _came_back(registry: Registry, audit: Audit) -> set[str]:
    """The requests with a forgetting gate that failed, out of the stored report."""
    report = cast("dict[str, Any]", parse(registry.blobs.read(audit.report)))
    return {
        finding["request"]
        for finding in report.get("findings", ())  # of the bare base (`unmeasured`) there are none
        if finding["outcome"] == "failed" and finding["group"] in FORGET_SIDE and finding["request"]
    }


def repairing(recipe: Recipe, rank: int, steps: int) -> Recipe:
    """``recipe`` with ``rank``, at the same scale, and ``steps`` in one round; A learns, from a random start where the
    recipe's is a contrast (of inputs that the stack has already changed)."""
    if not 1 <= rank <= 512 or steps < 1:
        raise RequestError(
            f"expected rank and steps of at least 1 (rank at most 512), got {rank} and {steps}"
        )
    alpha = max(1, round(recipe.lora_alpha * rank / recipe.rank))
    changes: dict[str, object] = {
        "rank": rank,
        "lora_alpha": alpha,
        "steps": steps,
        "rounds": 1,
        "stop": None,
    }
    if recipe.initialisation == "contrast":
        changes |= {
            "initialisation": "default",
            "stacking": {**recipe.stacking.model_dump(), "freeze_a": False},
        }
    warmup = min(recipe.warmup_steps, max(0, steps - 1))
    return Recipe.model_validate({**recipe.model_dump(), **changes, "warmup_steps": warmup})
