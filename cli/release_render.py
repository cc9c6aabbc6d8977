"""`efface release render`: what a channel serves, made into one LoRA in another way."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Registry, active_release, parse_render
from .measured import measured_json, measured_text, report_released
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    ChannelArgument,
    Format,
    FormatOption,
    HtmlOption,
    JsonOption,
    ModelOption,
    ReasonOption,
    RecipeOption,
    RegistryOption,
    RevealOption,
    SetOption,
    SlotOption,
)
from .output import emit, progress
from .release_compact import ActivateOption
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, bench_of, planned

EXAMPLE = "Example: efface release render prod svd:64 --model ./base"


def render(
    channel: ChannelArgument,
    how: Annotated[
        str,
        typer.Argument(
            metavar="RENDER", help="cat (exact), live, svd:RANK, error:E, or ties|dare|knots:DENSITY:RANK."
        ),
    ],
    model: ModelOption,
    max_rank: SlotOption = None,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    reason: ReasonOption = "another render",
    activate: ActivateOption = True,
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
    """Release what a channel serves with another render: the same adapters, audited anew. Exit 1 when the gates fail.

    For a server with smaller slots, or back to what is exact. All but `cat` and `live` are approximate.
    """
    from ..recipes.recipe import load_recipe
    from ..recipes.release import render_release

    parse_render(how)
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        active_release(reg, channel)
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        done = render_release(
            reg,
            channel,
            how,
            bench,
            chosen,
            reason=reason,
            actor=actor,
            progress=bars,
            activate=activate,
            max_rank=max_rank,
        )
    report_released(done, html, json, reveal)
    emit(measured_json(registry, done), format, measured_text(done))
    raise typer.Exit(0 if done.audit.verdict == "pass" else 1)
