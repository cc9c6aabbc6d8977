"""`efface release`: put stacks of adapters on a channel, and take requests off again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import Registry, active_release, get_adapter, get_channel, get_request, history, parse_render
from ..registry import plan_removal as plan
from . import (
    release_balance,
    release_compact,
    release_gate,
    release_render,
    release_steps,
    release_transfer,
)
from .lookups import requests_of
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
    RenderOption,
    RevealOption,
    SetOption,
    SlotOption,
)
from .output import emit, emit_table, progress
from .records import release_json
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, bench_of, planned

if TYPE_CHECKING:
    from ..recipes.release import Released

app = typer.Typer(help="Releases of composed adapters.", no_args_is_help=True)


@app.command("create", epilog="Example: efface release create prod --add req-000001 --model ./base")
def create(
    channel: ChannelArgument,
    add: Annotated[list[str], typer.Option("--add", help="Request to add. Repeatable.")],
    model: ModelOption,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    reason: ReasonOption = "requested",
    activate: Annotated[
        bool, typer.Option("--activate/--no-activate", help="Leave it a candidate, for others to approve.")
    ] = True,
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
    """Stack the adapters of requests onto the channel, audit every active request again, and activate.

    All but `cat` and `live` are approximate: another composition, with an audit of its own, and with the bound of
    their error sealed in the adapter that is served. Exit 1 when the gates fail: the version stays a candidate and
    the channel serves what it served. With --no-activate, or where the channel is protected, it stays one anyway:
    `release approve` and `release activate` are then for others to do.
    """
    from ..recipes.recipe import load_recipe
    from ..recipes.release import add_requests

    if render is not None:
        parse_render(render)
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        for request in add:
            get_request(reg, request)
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        done = add_requests(
            reg,
            channel,
            add,
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
    _say(registry, done, format)


@app.command(
    "rollback",
    epilog="Example: efface release rollback prod --remove req-000001 --reason 'licence agreed' --model ./base",
)
def rollback(
    channel: ChannelArgument,
    model: ModelOption,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="Request to take off. Repeatable.")
    ] = None,
    to: Annotated[int | None, typer.Option("--to", help="Version whose composition to return to.")] = None,
    drop_repairs: Annotated[
        bool, typer.Option("--drop-repairs", help="Also take off repairs that were trained on what goes.")
    ] = False,
    render: RenderOption = None,
    max_rank: SlotOption = None,
    reason: ReasonOption = "",
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
    """Take requests off, or return to an earlier version: a new version, as if they had never been added.

    Where every request in question is shredded nothing can be measured any more: a stack that passed before, and the
    bare base, are released all the same and say so; another stack is refused.

    Out of a compaction a request leaves by going back to the adapters that it was made from. Where those have more
    rank than a server's slot, --render svd:RANK makes what is left fit: approximate, and audited as such.
    """
    from ..recipes.recipe import load_recipe
    from ..recipes.release import remove_requests, return_to

    if bool(remove) == (to is not None):
        raise typer.BadParameter("expected either --remove REQUEST or --to VERSION")
    if not reason:
        raise typer.BadParameter("a rollback needs --reason: it is written into the ledger")
    if render is not None:
        parse_render(render)
    chosen, audited = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        if remove:
            plan(reg, channel, remove, drop_repairs=drop_repairs, render=render)
        bars.phase("Loading the base")
        bench = bench_of(reg, model, chosen, audited, cache, no_cache=no_cache, reveal=reveal)
        if to is not None:
            done = return_to(
                reg,
                channel,
                to,
                bench,
                chosen,
                reason=reason,
                actor=actor,
                progress=bars,
                render=render,
                max_rank=max_rank,
            )
        else:
            done = remove_requests(
                reg,
                channel,
                remove or [],
                bench,
                chosen,
                reason=reason,
                actor=actor,
                progress=bars,
                drop_repairs=drop_repairs,
                render=render,
                max_rank=max_rank,
            )
    report_released(done, html, json, reveal)
    _say(registry, done, format)


@app.command("show", epilog="Example: efface release show prod --format json")
def show(
    channel: ChannelArgument, registry: RegistryOption = DEFAULT_REGISTRY, format: FormatOption = Format.text
) -> None:
    """Show what is active on a channel."""
    with Registry.open(registry) as reg:
        release = active_release(reg, channel)
        record = release_json(release, requests_of(reg, release.composition.adapters))
        bound = get_adapter(reg, release.rendered).error_bound if release.rendered else None
        rules = get_channel(reg, channel)
    lines = [
        f"{record['channel']}@{record['version']}  {record['state']}",
        f"requests     {', '.join(record['requests']) or 'none: this is the bare base'}",
        f"composition  {record['composition']['digest']}",
        *(f"  {part['weight']} × {part['adapter']}" for part in record["composition"]["parts"]),
        f"rendered     {record['rendered'] or '–'}",
        f"render       {release.composition.render}"
        + (f"  (approximate: relative error at most {bound})" if bound else ""),
        f"audit        {record['audit']}",
        f"approved by  {record['approved_by']}: {record['reason']}",
        f"gates        {release_gate.gates_text(rules)}",
    ]
    emit(record, format, "\n".join(lines))


@app.command("history", epilog="Example: efface release history prod")
def history_(
    channel: ChannelArgument, registry: RegistryOption = DEFAULT_REGISTRY, format: FormatOption = Format.text
) -> None:
    """List every version of a channel, oldest first."""
    with Registry.open(registry) as reg:
        records = [release_json(r, requests_of(reg, r.composition.adapters)) for r in history(reg, channel)]
    rows = [
        {**r, "requests": ", ".join(r["requests"]) or "none", "composition": r["composition"]["digest"]}
        if format is Format.text
        else r
        for r in records
    ]
    emit_table(rows, ["version", "state", "requests", "composition", "reason", "created_at"], format, "")


app.command("compact", epilog=release_compact.COMPACT_EXAMPLE)(release_compact.compact)
app.command("repair", epilog=release_compact.REPAIR_EXAMPLE)(release_compact.repair)
app.command("render", epilog=release_render.EXAMPLE)(release_render.render)
app.command("balance", epilog=release_balance.EXAMPLE)(release_balance.balance)
app.command("approve", epilog=release_steps.APPROVE_EXAMPLE)(release_steps.approve)
app.command("activate", epilog=release_steps.ACTIVATE_EXAMPLE)(release_steps.activate)
app.command("withdraw", epilog=release_steps.WITHDRAW_EXAMPLE)(release_steps.withdraw)
app.command("diff", epilog=release_steps.DIFF_EXAMPLE)(release_steps.diff)
app.command("protect", epilog=release_steps.PROTECT_EXAMPLE)(release_steps.protect)
app.command("gate", epilog=release_gate.GATE_EXAMPLE)(release_gate.gate)
app.command("push", epilog=release_steps.PUSH_EXAMPLE)(release_steps.push)
app.command("pull", epilog=release_transfer.PULL_EXAMPLE)(release_transfer.pull)


def _say(registry: str, done: Released, format: Format) -> None:
    emit(measured_json(registry, done), format, measured_text(done))
    raise typer.Exit(0 if done.audit.verdict == "pass" else 1)
