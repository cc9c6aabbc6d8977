"""`efface merge`: a checkpoint with the forgetting in its weights, audited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..registry import Registry, active_release
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
from .record_acts import MergeRecord
from .reports import findings_text, write_reports
from .suite_options import CacheOption, GiveOption, NoCacheOption, SuiteOption, planned, remembered

EXAMPLE = "Example: efface merge prod --model ./base --out ./merged --base dequantized --precision nf4"
BASES = ("original", "dequantized")
PRECISIONS = ("bf16", "fp32", "nf4", "int8")
REQUANTIZED = ("nf4", "int8")


def merge(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Whose active release to merge.")],
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    base: Annotated[
        str,
        typer.Option("--base", help="Onto its original weights, or what it was quantized to for training."),
    ] = "original",
    requantize: Annotated[
        str | None,
        typer.Option("--requantize", help="Store it quantized by bitsandbytes: nf4 or int8."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help=f"To audit it at: {', '.join(PRECISIONS)}. By default as it is stored, or bf16.",
        ),
    ] = None,
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
    """Merge what a channel serves into a checkpoint of its own, and audit that at the precision you will serve it in.

    The base is read, never changed. Exit 1 when the gates fail: the folder is there, and not to be served. The requests
    are consolidated once the base is withdrawn: record that with `efface request evidence`.
    """
    from ..recipes.merge import merge_channel
    from ..recipes.recipe import load_recipe

    if base not in BASES:
        raise typer.BadParameter(f"expected --base {' or '.join(BASES)}, got {base!r}")
    if requantize not in (None, *REQUANTIZED):
        raise typer.BadParameter(f"expected --requantize {' or '.join(REQUANTIZED)}, got {requantize!r}")
    precision = precision or requantize or "bf16"
    if precision not in PRECISIONS:
        raise typer.BadParameter(f"expected --precision {', '.join(PRECISIONS)}, got {precision!r}")
    chosen, plan = load_recipe(recipe, overrides), planned(suite, give)
    with Registry.open(registry) as reg, progress() as bars:
        trained_at = active_release(reg, channel).composition.quantization
        onto = trained_at if base == "dequantized" and trained_at in ("nf4", "int8") else "original"
        done = merge_channel(
            reg,
            channel,
            model,
            out,
            chosen,
            onto=onto,
            requantize=requantize,
            precision=precision,
            plan=plan,
            memory=remembered(reg, cache, no_cache=no_cache, reveal=reveal),
            actor=actor,
            progress=bars,
        )
    write_reports(done.report, html, json, reveal)
    talk.print(findings_text(done.report), soft_wrap=True)
    verdict = done.report.verdict
    record: MergeRecord = {
        "path": str(done.merged.path),
        "base": done.merged.base.digest,
        "artefact": done.merged.fingerprint.digest,
        "onto": onto,
        "requantized": requantize,
        "precision": precision,
        "audit": done.audit.digest,
        "verdict": verdict,
    }
    emit(
        record,
        format,
        f"{verdict} {done.merged.path}\nartefact {record['artefact']}\naudit {record['audit']}",
    )
    raise typer.Exit(0 if verdict == "pass" else 1)
