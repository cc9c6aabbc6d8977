"""`efface audit`: measure a release, or any PEFT adapter on its base, and write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..registry import InvalidInput, Registry, Release, active_release, get_audit, list_audits
from . import audit_compare, audit_suites
from .audit_checkpoint import ClaimOption, EvidenceOption, audit_folder, audit_model, claimed
from .audit_release import Measured, measure_release
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    EntailedOption,
    Format,
    FormatOption,
    FormatRowsOption,
    HeldoutOption,
    HtmlOption,
    JsonOption,
    ModelOption,
    RecipeOption,
    RegistryOption,
    RevealOption,
    SetOption,
    UnrelatedOption,
)
from .output import emit, emit_table, progress, talk
from .records import audit_json
from .reports import findings_text, write_reports
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, planned, remembered

app = typer.Typer(help="Audits of releases and adapters.", no_args_is_help=True)
app.command("compare", epilog=audit_compare.EXAMPLE)(audit_compare.compare)
app.command("suites", epilog=audit_suites.EXAMPLE)(audit_suites.suites)


@app.command("run", epilog="Example: efface audit run --release prod --model ./base --html report.html")
def run(
    model: ModelOption,
    release: Annotated[
        str | None, typer.Option("--release", help="Channel whose active release to audit.")
    ] = None,
    less: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="REQUEST",
            help="With --release: what removing this would leave. A removal needs it where others were trained on "
            "what goes. Repeatable.",
        ),
    ] = None,
    drop_repairs: Annotated[
        bool,
        typer.Option(
            "--drop-repairs", help="With --without: also less the repairs that were trained on what goes."
        ),
    ] = False,
    render: Annotated[
        str | None,
        typer.Option("--render", help="With --without: as it would be rendered. As the release by default."),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="A PEFT LoRA folder instead of a release.")
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", help="With --adapter or --against: the forgotten rows.")
    ] = None,
    retain: Annotated[list[str] | None, typer.Option("--retain", help="With --adapter: kept rows.")] = None,
    neighbours: Annotated[list[str] | None, typer.Option("--neighbours", help="With --adapter.")] = None,
    heldout: HeldoutOption = None,
    entailed: EntailedOption = None,
    format_rows: FormatRowsOption = None,
    unrelated: UnrelatedOption = None,
    against: Annotated[
        str | None, typer.Option("--against", help="What --model was made from: audits a checkpoint.")
    ] = None,
    claim: ClaimOption = None,
    evidence: EvidenceOption = [],  # noqa: B006 - typer's way to a repeatable option
    suite: SuiteOption = "quick",
    give: GiveOption = [],  # noqa: B006 - typer's way to a repeatable option
    cache: CacheOption = None,
    no_cache: NoCacheOption = False,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    html: HtmlOption = None,
    json: JsonOption = None,
    reveal: RevealOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Measure before and after: probability, ROUGE-L, extraction strength, fluency. Exit 1 if a gate fails.

    A release's audit is written into its registry; an adapter or a checkpoint (--model DIR --against BASE) is only
    reported on. Gates and precision come from the recipe, more gates from the channel. --suite says what else is run.
    """
    from ..recipes.bench import open_bench
    from ..recipes.data import load_request_data
    from ..recipes.recipe import load_recipe

    if [release, adapter, against].count(None) != 2:
        raise typer.BadParameter("expected either --release CHANNEL, --adapter DIR or --against BASE")
    if less and release is None:
        raise typer.BadParameter("--without needs --release CHANNEL")
    if release is not None and (heldout or entailed or format_rows or unrelated):
        raise typer.BadParameter(
            "--heldout, --entailed, --format-rows and --unrelated go with --adapter and --against: "
            "a request brings its own"
        )
    if drop_repairs and not less:
        raise typer.BadParameter("--drop-repairs needs --without REQUEST")
    if render is not None and not less:
        raise typer.BadParameter("--render needs --without REQUEST")
    if release is None and forget is None:
        raise typer.BadParameter(
            "--adapter and --against need --forget FILE: the rows that are to be forgotten"
        )
    word = claimed(claim, evidence, against)
    chosen, plan = load_recipe(recipe, overrides), planned(suite, give)
    with progress() as bars:
        if release is not None:
            with Registry.open(registry) as reg:
                measured = _measured(reg, release, less or [], drop_repairs, render)
                bars.phase("Loading the base")
                memory = remembered(reg, cache, no_cache=no_cache, reveal=reveal)
                bench = open_bench(model, chosen, memory=memory, plan=plan)
                report, record = measure_release(reg, measured, bench, chosen, actor, bars)
        else:
            data = load_request_data(
                forget or "",
                retain or [],
                neighbours or [],
                heldout=heldout or [],
                entailed=entailed or [],
                formats=format_rows or [],
                unrelated=unrelated or [],
            )
            memory = remembered(None, cache, no_cache=no_cache, reveal=reveal)
            if adapter is not None:
                report = audit_folder(model, chosen, adapter, data, memory, plan, bars)
            else:
                report = audit_model(
                    model, against or "", chosen, data, memory, plan, bars, claim=word, evidence=evidence
                )
            record = None
    write_reports(report, html, json, reveal)
    talk.print(findings_text(report), soft_wrap=True)
    emit(
        {"audit": record, "report": report.to_json()},
        format,
        f"{report.verdict}" + (f" {record}" if record else ""),
    )
    raise typer.Exit(0 if report.verdict == "pass" else 1)


@app.command("show", epilog="Example: efface audit show sha256:1f0c8a")
def show(
    reference: Annotated[
        str | None, typer.Argument(help="Digest or prefix; without it, all are listed.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Show one recorded audit with its report, or list all."""
    with Registry.open(registry) as reg:
        if reference is None:
            records = [audit_json(audit) for audit in list_audits(reg)]
            emit_table(
                records,
                ["digest", "composition", "precision", "suite", "verdict", "at"],
                format,
                "No audits.",
            )
            return
        audit = get_audit(reg, reference)
        text = reg.blobs.read(audit.report).decode()
    emit({**audit_json(audit), "document": text}, format, text)


def _require_requests(release: Release) -> None:
    if not release.composition.parts:
        raise InvalidInput(
            "a release that suppresses a request",
            f"{release.channel}@{release.version}, which is the bare base: there is nothing to audit",
            "Name another channel, or create a release with --add REQUEST.",
        )


def _measured(
    reg: Registry, channel: str, less: list[str], drop_repairs: bool, render: str | None
) -> Measured:
    """What is to be audited, checked before the base is loaded."""
    from ..recipes.release import composition_without, requests_in

    release = active_release(reg, channel)
    _require_requests(release)
    label = f"{channel}@{release.version}"
    watched = requests_in(reg, release.composition)
    if not less:
        return Measured(release.composition, watched, label, release.rendered, channel)
    left = composition_without(reg, release.composition, less, drop_repairs=drop_repairs, render=render)
    named = ", ".join([*sorted(set(less)), *(["what repaired it"] if drop_repairs else [])])
    return Measured(left, watched, f"{label} without {named}", channel=channel)
