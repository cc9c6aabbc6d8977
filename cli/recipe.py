"""`efface recipe`: the settings an adapter is trained with."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Format, FormatOption, SetOption
from .output import emit, emit_table

app = typer.Typer(help="Training recipes.", no_args_is_help=True)


@app.command("list", epilog="Example: efface recipe list")
def list_(format: FormatOption = Format.text) -> None:
    """List the recipes that ship with efface."""
    from ..recipes.recipe import load_recipe, shipped_recipes

    records = [load_recipe(name).model_dump(mode="json") for name in shipped_recipes()]
    emit_table(records, ["name", "objective", "retain_term", "steps", "rank", "quantization"], format, "")


@app.command("show", epilog="Example: efface recipe show simnpo --set steps=20")
def show(
    name: Annotated[str, typer.Argument(help="A shipped name or a YAML file.")],
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    format: FormatOption = Format.text,
) -> None:
    """Print a recipe's effective values, after validation."""
    import yaml

    from ..recipes.recipe import load_recipe

    values = load_recipe(name, overrides).model_dump(mode="json")
    emit(values, format, yaml.safe_dump(values, sort_keys=False))


@app.command("validate", epilog="Example: efface recipe validate mine.yaml --set steps=20")
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="YAML files, or shipped names.")],
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    format: FormatOption = Format.text,
) -> None:
    """Check recipes without training: exit 0, or 2 with every error of every file at once."""
    from ..recipes.errors import InvalidRecipe
    from ..recipes.recipe import load_recipe

    records: list[dict[str, str]] = []
    problems: list[str] = []
    for file in files:
        try:
            found = load_recipe(file, overrides)
            records.append({"recipe": file, "name": found.name, "digest": found.digest})
        except InvalidRecipe as error:
            problems += str(error).splitlines()
    if problems:
        raise InvalidRecipe("\n".join(dict.fromkeys(problems)))
    emit(records, format, "\n".join(f"{record['recipe']}: valid, {record['digest']}" for record in records))
