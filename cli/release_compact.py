"""`efface release compact | repair`: one adapter in place of many, and small ones for what a stack let come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import Registry, parse_render
from .measured import measured_json, measured_text, report_released
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    AdapterArgument,
    ChannelArgument,
    Format,
    FormatOption,
    HtmlOption,
    JsonOption,
    ModelOption,
    ReasonOption,
    RecipeOption,
    RegistryOption,
    RenderOption,
    RevealOption,
    SetOption,
    SlotOption,
    YesOption,
)
from .output import emit, progress
from .record_acts import RepairPlanRecord, RepairRecord
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, bench_of, planned

if TYPE_CHECKING:
    from ..recipes.repair import RepairPlan

COMPACT_EXAMPLE = "Example: efface release compact prod 1f0c8a --model ./base"
REPAIR_EXAMPLE = "Example: efface release repair prod --model ./base --yes"
ActivateOption = Annotated[
    bool, typer.Option("--activate/--no-activate", help="Leave it a candidate, for others to approve.")
]


def compact(
    channel: ChannelArgument,
    adapter: AdapterArgument,
    model: ModelOption,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    reason: ReasonOption = "compaction",
    activate: ActivateOption = True,
    render: RenderOption = None,
    max_rank: SlotOption = None,
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
    """Serve a compaction in place of the adapters that it was made from, audited anew. Exit 1 when the gates fail."""
    from ..recipes.recipe import load_recipe
    from ..recipes.release import serve_compaction
    from ..registry import plan_compaction

    if render is not None:
        parse_render(render)
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        plan_compaction(reg, channel, adapter)
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        done = serve_compaction(
            reg,
            channel,
            adapter,
            bench,
            chosen,
            reason=reason,
            actor=actor,
            progress=bars,
            activate=activate,
            render=render,
            max_rank=max_rank,
        )
    report_released(done, html, json, reveal)
    emit(measured_json(registry, done), format, measured_text(done))
    raise typer.Exit(0 if done.audit.verdict == "pass" else 1)


def repair(
    channel: ChannelArgument,
    model: Annotated[
        str | None, typer.Option("--model", "-m", envvar="EFFACE_MODEL", help="Base model, with --yes.")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", min=1, help="The newest candidate, approved or active one by default."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, max=512, help="Of each repair.")] = 4,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of each repair.")] = 12,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    reason: ReasonOption = "repair",
    activate: ActivateOption = True,
    render: RenderOption = None,
    max_rank: SlotOption = None,
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
    """Train a small adapter for each request that a stack let come back, and release the stack with them.

    Which came back, the newest audit of the stack says: those with a forgetting gate that failed. Without --yes they
    are only named. A repair leaves with its request. Exit 1 when the gates fail again.
    """
    from ..recipes.recipe import load_recipe
    from ..recipes.repair import plan_repair
    from ..recipes.repair import repair as run

    if render is not None:
        parse_render(render)
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        plan = plan_repair(reg, channel, version)
        if not (yes and plan.requests):
            would = _plan(plan)
            record: RepairRecord = {"done": False, "plan": would, "adapters": [], "release": None}
            emit(record, format, "\n".join(would["requests"]) or "no request came back")
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
        )
    report_released(done.released, html, json, reveal)
    made: list[str] = [adapter.digest for adapter in done.adapters]
    release = measured_json(registry, done.released)
    record = {"done": True, "plan": _plan(done.plan), "adapters": made, "release": release}
    emit(record, format, "\n".join([*made, measured_text(done.released)]))
    raise typer.Exit(0 if done.released.audit.verdict == "pass" else 1)


def _plan(plan: RepairPlan) -> RepairPlanRecord:
    return {
        "channel": plan.release.channel,
        "version": plan.release.version,
        "audit": plan.audit.digest,
        "requests": list(plan.requests),
    }
