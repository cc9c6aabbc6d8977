"""`efface demo`: the whole story on a real small model, in minutes on a laptop's CPU."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..registry import InvalidInput
from .options import DEFAULT_ACTOR, ActorOption, Format, FormatOption, RecipeOption, SetOption
from .output import data, emit, progress, talk
from .reports import write_reports

if TYPE_CHECKING:
    from ..audits import Aggregate
    from ..recipes.demo import Line, Story

EXAMPLE = "Example: efface demo --workdir ./efface-demo"
_CELL = 34


def demo(
    workdir: Annotated[Path, typer.Option("--workdir", help="Where the registry and the report go.")] = Path(
        "efface-demo"
    ),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A base; the demo model by default.")
    ] = None,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Forget that Shakespeare wrote plays, then Harry Potter; stack both; take the first back, bit for bit.

    Every claim printed is measured in this run. Exit 1 when forgetting, retention or rollback falls short.
    """
    from ..adapters import fetch_model
    from ..recipes.demo import tell
    from ..recipes.recipe import load_recipe

    chosen = load_recipe(recipe, overrides)
    folder = workdir / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    if workdir.exists() and not workdir.is_dir():
        raise InvalidInput("a folder for --workdir", "a file", "Name a folder; it is made if it is missing.")
    path = Path(model) if model else fetch_model("smollm2-135m", progress=talk.print)
    with progress() as bars:
        story = tell(path, chosen, folder, actor=actor, progress=bars)
    html = folder / "report.html"
    # The demo's facts are public: the report may show what was asked and answered.
    write_reports(story.report, html, folder / "report.json", reveal=True, table=_report_table(story))
    if format is Format.json:
        emit(_record(story, html), format, "")
    else:
        _print(story, html)
    raise typer.Exit(1 if story.problems else 0)


def _print(story: Story, html: Path) -> None:
    # Rich takes a pipe to be 80 wide, too little for the tables.
    out = data if data.is_terminal else Console(width=106, soft_wrap=True, highlight=False, emoji=False)
    out.print(_answers(story.lines))
    out.print("[dim]✓ the answer names the fact   ✗ it does not[/dim]\n")
    out.print(_figures(story))
    for number, done in enumerate(story.releases, 1):
        release = done.release
        digest = release.composition.digest
        out.print(
            f"\n{release.channel}@{number} {release.state:10} {digest}  {escape(release.reason)}", end=""
        )
    out.print("\n")
    for claim, held in story.facts.items():
        out.print(f"{'[green]✓[/green]' if held else '[red]✗[/red]'} {escape(claim)}")
    for problem in story.problems:
        out.print(f"[red]✗ {escape(problem)}[/red]")
    for request, done in zip(story.requests, story.trained, strict=True):
        out.print(
            f"\n{request}  adapter {done.adapter.digest}  trained in {done.training.seconds:.0f} s", end=""
        )
    out.print(
        "\n\nSuppressed, not erased: whoever holds the base without the adapters can ask it everything."
    )
    out.print(f"Report: {html}\nRegistry: {html.parent / 'registry'} ({story.ledger.events} events)")
    out.print(f"{story.seconds:.0f} s")


def _answers(lines: tuple[Line, ...]) -> Table:
    from ..recipes.demo import COLUMNS

    table = Table(title="What the model answers", title_justify="left", show_lines=True)
    table.add_column("question")
    for column in COLUMNS:
        table.add_column(column, min_width=10)
    for line in lines:
        cells = [_cell(a, n) for a, n in zip(line.answers, line.names_it, strict=True)]
        table.add_row(f"[dim]{line.kind}[/dim]\n{escape(line.question)}", *cells)
    return table


def _cell(answer: str, names_it: bool | None) -> str:
    text = escape(_clip(answer))
    mark = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: " "}[names_it]
    return f"{mark} {text}"


def _clip(answer: str) -> str:
    words = " ".join(answer.split())
    return words if len(words) <= 2 * _CELL else f"{words[: 2 * _CELL]}…"


def _figures(story: Story) -> Table:
    from ..audits import aggregate

    table = Table(
        title="Audit: means over n rows, by request", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("rows", "composition"):
        table.add_column(column, no_wrap=True)
    for column in ("n", "names it", "prob.", "ROUGE-L", "ES", "fluency"):
        table.add_column(column, justify="right", no_wrap=True)
    names = {request: str(number) for number, request in enumerate(story.requests, 1)}
    figures = [(e.label, item) for e in story.report.evaluations for item in aggregate(e)]
    for request, group in dict.fromkeys((item.request, item.group) for _, item in figures):
        table.add_section()
        title = f"{names[request]} {group}" if request else group
        for label, item in figures:
            if (item.request, item.group) == (request, group):
                table.add_row(title, label, str(item.n), _rate(item), *_numbers(item))
                title = ""
    return table


def _rate(item: Aggregate) -> str:
    if item.mention_rate is None:
        return "–"
    return f"{item.mention_rate:.0%}" + ("" if item.n_mention == item.n else f" of {item.n_mention}")


def _numbers(item: Aggregate) -> tuple[str, ...]:
    figures = (item.probability, item.rouge_l, item.extraction_strength, item.fluency)
    return tuple(f"{figure:.2f}" for figure in figures)


def _report_table(story: Story) -> Any:
    from ..audits import Table as ReportTable
    from ..recipes.demo import COLUMNS

    rows = tuple(
        (line.kind, line.question, *(_marked(a, n) for a, n in zip(line.answers, line.names_it, strict=True)))
        for line in story.lines
    )
    return ReportTable("What the model answers", ("kind", "question", *COLUMNS), rows)


def _marked(answer: str, names_it: bool | None) -> str:
    return {True: "✓ ", False: "✗ ", None: ""}[names_it] + _clip(answer)


def _record(story: Story, html: Path) -> dict[str, Any]:
    from ..audits import aggregate

    return {
        "requests": list(story.requests),
        "adapters": [done.adapter.digest for done in story.trained],
        "releases": [
            {
                "version": r.release.version,
                "composition": r.release.composition.digest,
                "verdict": r.audit.verdict,
            }
            for r in story.releases
        ],
        "answers": [
            {"kind": x.kind, "question": x.question, "answers": list(x.answers), "names_it": list(x.names_it)}
            for x in story.lines
        ],
        "figures": [
            {"composition": e.label, **item.to_json()}
            for e in story.report.evaluations
            for item in aggregate(e)
        ],
        "claims": dict(story.facts),
        "problems": list(story.problems),
        "report": str(html),
        "training_seconds": [round(done.training.seconds, 1) for done in story.trained],
        "seconds": round(story.seconds, 1),
    }
