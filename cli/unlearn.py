"""`efface unlearn`: train, audit and seal the adapter of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import Registry, active_release, get_request
from ..registry.requests import check_accepted
from .failure import INTERRUPTED
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
from .reports import findings_text, write_reports
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, bench_of, planned

if TYPE_CHECKING:
    from ..recipes.bench import Bench
    from ..recipes.recipe import Recipe

EXAMPLE = "Example: efface unlearn req-000001 --model ./base --recipe simnpo --set steps=40"


def unlearn(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Such as req-000001.")],
    model: ModelOption,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    suite: SuiteOption = "quick",
    give: GiveOption = [],  # noqa: B006
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    html: HtmlOption = None,
    json: JsonOption = None,
    reveal: RevealOption = False,
    report_to: Annotated[
        str, typer.Option("--report-to", help="A transformers tracker, such as wandb.")
    ] = "none",
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="CHANNEL", help="Train on top of what this channel serves now."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints of an interrupted run.")
    ] = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Train, audit and seal the adapter of one request; prints its digest.

    Exit 1 when the audit's gates fail: the adapter is sealed as evidence, but no release will take its audit.
    Ctrl-C ends a run after its step with a checkpoint (a second one at once); --resume goes on to the same adapter.
    """
    from ..adapters.errors import Interrupted
    from ..recipes.recipe import load_recipe
    from ..recipes.run import unlearn as train_request

    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        check_accepted(get_request(reg, request_id))
        below = active_release(reg, on).composition if on else None
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        talk.print(_lengths(reg, request_id, bench, chosen), soft_wrap=True)
        try:
            done = train_request(
                reg,
                request_id,
                bench,
                chosen,
                actor=actor,
                on=below,
                resume=resume,
                report_to=report_to,
                progress=bars,
            )
        except Interrupted as stop:
            talk.print(f"{stop}: nothing is registered yet")
            raise typer.Exit(INTERRUPTED) from None
    write_reports(done.report, html, json, reveal)
    record = {
        "adapter": done.adapter.digest,
        "request": request_id,
        "composition": done.composition.digest,
        "audit": done.audit.digest,
        "verdict": done.audit.verdict,
        "findings": [finding.to_json() for finding in done.report.findings],
        "seconds": round(done.training.seconds, 1),
        "stopped": [result.stopped for result in done.rounds],
    }
    talk.print(findings_text(done.report), soft_wrap=True)
    emit(record, format, done.adapter.digest)
    raise typer.Exit(0 if done.audit.verdict == "pass" else 1)


def _lengths(reg: Registry, request_id: str, bench: Bench, recipe: Recipe) -> str:
    """How long the rows are in tokens, before anything is trained on them."""
    from ..recipes.audit import request_data
    from ..recipes.lengths import format_lengths, request_lengths

    method = bench.method
    report = request_lengths(
        bench.base.tokenizer,
        request_data(reg, [request_id])[request_id],
        chat=method.chat,
        max_length=recipe.max_length,
        max_new_tokens=method.max_new_tokens,
    )
    return format_lengths(report)
