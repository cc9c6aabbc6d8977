"""Balance: one adapter that gives back what a stack costs the rest, while every request of it stays forgotten.

Adapters that were trained apart each shift a little of what nobody asked them to touch, and they shift it the same
way: in log-probability, what is kept falls with the square of their number (docs/LOG.md, 2026-11-23). A balance is
trained with the whole stack on, frozen, and the bare base as its reference: the forget rows of every request, so
that they stay down, and retain rows, to where the base has them. It forgets nothing of its own and names no request;
its `trained_on` is the stack. Retain rows hold what they show and little else, so more of them may be given, such as
questions to which the base's own answers are kept. When a request leaves, the balance stays only if an audit of what
is left passes, and goes with `drop_repairs` otherwise: then what is left is again what it would be without that
request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..registry import (
    JSON,
    Adapter,
    Composition,
    Part,
    Registry,
    Release,
    checks,
    compose,
    parse_render,
    seal_adapter,
)
from ..registry.compactions import BALANCES, is_balance, manifest_of
from .attest import signer
from .audit import audit_rows
from .balance_rows import balance_rows
from .bench import Bench
from .beside import Beside
from .data import RequestData, Row
from .errors import RequestError
from .given import check_given, require_unmeasured
from .prepare import TrainingRows
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
from .repair import repairable
from .rounds import train_adapter
from .run import live_requests
from .slots import require_slot

RANK, STEPS = 16, 60
"""What a balance is made of unless the caller says otherwise; measured on 8 and 16 requests in docs/LOG.md."""
RETAIN_BATCH = 8
"""At least: what is kept is what a balance is for."""


@dataclass(frozen=True, slots=True)
class BalancePlan:
    """The stack of ``release`` without the balances in it (``replaced``), and its requests; those of ``shredded`` are
    in it too, but no row is left to hold them down with."""

    release: Release
    stack: Composition
    replaced: tuple[str, ...]
    requests: tuple[str, ...]
    shredded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Balanced:
    """The balance, and the release of the stack with it."""

    plan: BalancePlan
    adapter: Adapter
    released: Released


def plan_balance(registry: Registry, channel: str, version: int | None = None) -> BalancePlan:
    """What a balance of a release would be trained on.

    Without ``version``, of the newest version that is a candidate, approved or active. Raises `RequestError` where
    there is none, or where no request of it has rows left.
    """
    release = repairable(registry, channel, version)
    with registry.read() as db:
        parts = release.composition.parts
        old = [part.adapter for part in parts if is_balance(manifest_of(db, part.adapter))]
    below = release.composition
    stack = compose(below.base, below.quantization, [p for p in parts if p.adapter not in old], below.render)
    known = audit_rows(registry, requests_in(registry, stack))
    if not known.active:
        raise RequestError(f"{channel}@{release.version} is the bare base: there is nothing to balance")
    return BalancePlan(release, stack, tuple(old), known.active, known.shredded)


def balance(
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
    retain: Sequence[Row] = (),
) -> Balanced:
    """Train the balance of a release's stack, and release the stack with it, audited anew.

    A balance that is there already is replaced. ``retain``: rows to keep besides those of the requests, those without
    a completion as the bare base answers them; what lies in the scope of a live request is left out (that of a request
    whose rows are shredded nobody knows any more: keep such rows out). ``render``: as that release by default;
    ``max_rank``: what the server holds. Raises `RequestError` when there is nothing to balance, `DataError` for
    ``retain`` rows that an audit only measures and `RenderError` when the server would not hold the whole, before
    anything is trained, and what training and the registry raise; then no release is made.
    """
    checks.actor(actor)
    checks.reason(reason)
    progress, chosen = progress or Silent(), balancing(recipe, rank, steps)
    plan = plan_balance(registry, channel, version)
    parse_render(how := render or plan.stack.render)
    require_base(bench, plan.stack)
    require_in_force(registry, requests_in(registry, plan.stack))
    require_slot(registry, plan.stack, rank, how, max_rank=max_rank)
    live = live_requests(registry)
    require_unmeasured(retain, live.values(), bench.plan)
    check_given(bench.plan, {name: live[name] for name in plan.requests}, plan.requests)
    rows = balance_rows(live, plan.requests, retain, bench, chosen, progress)
    with tempfile.TemporaryDirectory(prefix="efface-balance-") as scratch:
        below, folder = (
            render_composition(registry, plan.stack, Path(scratch) / "stack"),
            Path(scratch) / "new",
        )
        # One folder in company: the draw of one is always on.
        stack = Beside(company={plan.stack.digest: below})
        (result,) = train_adapter(
            bench, RequestData((), (), ()), rows, chosen, folder, progress, beside=stack
        )
        adapter = seal_adapter(
            registry,
            folder,
            kind="trained",
            base=plan.stack.base,
            quantization=plan.stack.quantization,
            request_ids=[],
            facts={**_facts(plan, chosen, rows, retain, list(live)), "steps": len(result.steps)},
            trained_on=plan.stack.digest,
            actor=actor,
        )
    signer(registry, actor).adapter(registry, adapter)
    parts = [*plan.stack.parts, Part(adapter.digest, "1")]
    whole = compose(plan.stack.base, plan.stack.quantization, parts, how)
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
    return Balanced(plan, adapter, released)


def balancing(recipe: Recipe, rank: int, steps: int) -> Recipe:
    """``recipe`` as a balance is trained: ``rank`` at the same scale, ``steps`` in one round, the stack always on."""
    if not 1 <= rank <= 512 or steps < 1:
        raise RequestError(
            f"expected rank and steps of at least 1 (rank at most 512), got {rank} and {steps}"
        )
    changes = {
        "rank": rank,
        "lora_alpha": max(1, round(recipe.lora_alpha * rank / recipe.rank)),
        "steps": steps,
        "warmup_steps": min(recipe.warmup_steps, steps - 1),
        "rounds": 1,
        "stop": None,
        "retain_batch": max(recipe.retain_batch, RETAIN_BATCH),
        "initialisation": "default",
        "stacking": {"company": 1.0},
    }
    return Recipe.model_validate({**recipe.model_dump(), **changes})


def _facts(
    plan: BalancePlan, recipe: Recipe, rows: TrainingRows, retain: Sequence[Row], live: Sequence[str]
) -> dict[str, JSON]:
    """What the manifest says of it; no text of any row."""
    return {
        BALANCES: plan.stack.digest,
        "objective": recipe.objective,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "rank": recipe.rank,
        "forget_rows": len(rows.forget),
        "retain_rows": len(rows.retain),
        "retain_rows_given": len(retain),
        "retain_rows_in_scope_left_out": list(rows.excluded),
        "retain_rows_without_an_answer_left_out": list(rows.unanswered),
        "held_down": list(plan.requests),
        "scope_kept_out_of": list(live),
    }
