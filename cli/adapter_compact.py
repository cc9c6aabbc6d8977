"""`efface adapter compact`: the adapters of many requests made into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..registry import Registry
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    HtmlOption,
    JsonOption,
    ModelOption,
    RecipeOption,
    RegistryOption,
    RevealOption,
    SetOption,
)
from .output import emit, progress, talk
from .record_acts import CandidateRecord, CompactRecord
from .reports import findings_text, write_reports
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, bench_of, planned

if TYPE_CHECKING:
    from ..recipes.compact import Compacted, Way

EXAMPLE = "Example: efface adapter compact --channel prod --rank 64 --model ./base"
WAYS = ("compressed", "distilled")


def compact(
    model: ModelOption,
    rank: Annotated[int, typer.Option("--rank", min=1, max=512, help="Of the one adapter.")],
    requests: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REQUEST]...", help="Whose adapters. With --channel, of what it serves."),
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", help="Compact what this serves, at the weights it has there.")
    ] = None,
    way: Annotated[
        list[str] | None, typer.Option("--way", help=f"{' or '.join(WAYS)}; both by default. Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the distillation.")] = 200,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of the distillation.")] = 1e-3,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
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
    """Make one adapter of bounded rank from those of many requests; prints its digest.

    Two ways, and what audits better is sealed: the best approximation of the weights, and a fresh adapter distilled
    from the stack's own answers. Its originals stay: put it in their place with `release compact`, and roll a request
    back as ever. Exit 1 when the audit's gates fail: no release will take that audit.
    """
    from ..adapters.distil import DistilSettings
    from ..recipes.compact import compact as run
    from ..recipes.recipe import load_recipe

    if not requests and channel is None:
        raise typer.BadParameter("expected REQUESTs or --channel CHANNEL")
    if unknown := sorted(set(way or ()) - set(WAYS)):
        raise typer.BadParameter(f"expected --way {' or '.join(WAYS)}, got {', '.join(unknown)}")
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    settings = DistilSettings(steps=steps, learning_rate=learning_rate, seed=chosen.seed)
    with Registry.open(registry) as reg, progress() as bars:
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        done = run(
            reg,
            bench,
            chosen,
            requests=requests or [],
            channel=channel,
            rank=rank,
            ways=cast("list[Way]", way or list(WAYS)),
            settings=settings,
            actor=actor,
            progress=bars,
        )
    write_reports(done.report, html, json, reveal)
    talk.print(findings_text(done.report), soft_wrap=True)
    for one in done.candidates:
        talk.print(
            f"  {one.way} to rank {one.rank}: {one.verdict}, error {one.error:.3f}, drift {one.drift:.4f}"
        )
    emit(_record(done), format, done.adapter.digest)
    raise typer.Exit(0 if done.audit.verdict == "pass" else 1)


def _record(done: Compacted) -> CompactRecord:
    best = done.candidates[0]
    return {
        "adapter": done.adapter.digest,
        "requests": list(done.adapter.requests),
        "made_from": {part.adapter: part.weight for part in done.originals.parts},
        "rank": best.rank,
        "error_bound": done.adapter.error_bound,
        "composition": done.composition.digest,
        "audit": done.audit.digest,
        "verdict": done.audit.verdict,
        "candidates": [cast("CandidateRecord", one.figures()) for one in done.candidates],
    }
