"""`efface release balance`: give back what a stack costs the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import Registry, parse_render
from .measured import measured_json, measured_text, report_released
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    ChannelArgument,
    DrawSeedOption,
    Format,
    FormatOption,
    HtmlOption,
    JsonOption,
    ReasonOption,
    RecipeOption,
    RegistryOption,
    RenderOption,
    RetainLimitOption,
    RetainOption,
    RevealOption,
    SetOption,
    SlotOption,
    YesOption,
)
from .output import emit, progress, talk, tell_drawn
from .record_acts import BalancePlanRecord, BalanceRecord
from .release_compact import ActivateOption
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, bench_of, planned

if TYPE_CHECKING:
    from ..recipes.balance import BalancePlan

EXAMPLE = "Example: efface release balance prod --model ./base --yes"


def balance(
    channel: ChannelArgument,
    model: Annotated[
        str | None, typer.Option("--model", "-m", envvar="EFFACE_MODEL", help="Base model, with --yes.")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", min=1, help="The newest candidate, approved or active one by default."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, max=512, help="Of the balance.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of its training.")] = 60,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    reason: ReasonOption = "balance",
    activate: ActivateOption = True,
    render: RenderOption = None,
    max_rank: SlotOption = None,
    retain: RetainOption = None,
    retain_limit: RetainLimitOption = None,
    seed: DrawSeedOption = 0,
    yes: YesOption = False,
    suite: SuiteOption = "quick",
    give: GiveOption = [],  # noqa: B006
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    html: HtmlOption = None,
    json: JsonOption = None,
    reveal: RevealOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Train one adapter that keeps what a stack of many would break, and release the stack with it.

    It holds every request of the stack down and brings retain rows back to where the base has them; one that is there
    already is replaced. --retain: more rows to keep than the requests name; those without a completion as the bare base
    answers them. Without --yes it is only said what would be trained. Exit 1 when the gates fail.
    """
    from ..recipes.balance import balance as run
    from ..recipes.balance import plan_balance
    from ..recipes.data import load_retain
    from ..recipes.given import require_unmeasured
    from ..recipes.recipe import load_recipe
    from ..recipes.run import live_requests

    if render is not None:
        parse_render(render)
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    rows = load_retain(retain or [], limit=retain_limit, seed=seed, on_read=tell_drawn)
    with Registry.open(registry) as reg, progress() as bars:
        plan = plan_balance(reg, channel, version)
        if rows:
            require_unmeasured(rows, live_requests(reg).values(), audited)
        if rows and plan.shredded:
            talk.print(
                f"the rows of {', '.join(plan.shredded)} are shredded: nothing can keep them out of what --retain "
                "gives. See to it that none of it asks about them",
                soft_wrap=True,
            )
        would = _plan(plan, len(rows))
        if not yes:
            record: BalanceRecord = {"done": False, "plan": would, "adapter": None, "release": None}
            emit(record, format, "\n".join(would["requests"]))
            return
        if model is None:
            raise typer.BadParameter("--yes needs --model BASE")
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        done = run(
            reg,
            channel,
            bench,
            chosen,
            version=plan.release.version,
            rank=rank,
            steps=steps,
            reason=reason,
            actor=actor,
            progress=bars,
            activate=activate,
            render=render,
            max_rank=max_rank,
            retain=rows,
        )
    report_released(done.released, html, json, reveal)
    release = measured_json(registry, done.released)
    record = {"done": True, "plan": would, "adapter": done.adapter.digest, "release": release}
    emit(record, format, f"{done.adapter.digest}\n{measured_text(done.released)}")
    raise typer.Exit(0 if done.released.audit.verdict == "pass" else 1)


def _plan(plan: BalancePlan, retain: int) -> BalancePlanRecord:
    return {
        "channel": plan.release.channel,
        "version": plan.release.version,
        "requests": list(plan.requests),
        "shredded": list(plan.shredded),
        "retain_rows_given": retain,
        "replaces": list(plan.replaced),
    }
