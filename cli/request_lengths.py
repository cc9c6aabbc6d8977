"""`efface request lengths`: how long a request's rows are in tokens, before anything is trained on them."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Registry, get_request
from .options import (
    DEFAULT_REGISTRY,
    Format,
    FormatOption,
    ModelOption,
    RecipeOption,
    RegistryOption,
    SetOption,
)
from .output import emit

EXAMPLE = "Example: efface request lengths req-000001 --model ./base"


def lengths(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST", help="Such as req-000001.")],
    model: ModelOption,
    recipe: RecipeOption = "simnpo",
    overrides: SetOption = [],  # noqa: B006 - typer's way to a repeatable option
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Tokens per row of each set, and how many rows the recipe's max_length would refuse or cut.

    Loads the tokenizer only. Prints numbers and, as JSON, the ids of rows that are too long; no text.
    """
    from ..adapters import require_context
    from ..recipes.audit import request_data
    from ..recipes.lengths import format_lengths, open_tokenizer, request_lengths
    from ..recipes.recipe import load_recipe

    chosen = load_recipe(recipe, overrides)
    with Registry.open(registry) as reg:
        get_request(reg, request_id)
        data = request_data(reg, [request_id])[request_id]
    tokenizer, config = open_tokenizer(model)
    require_context(config, chosen.max_length)
    method = chosen.method(has_chat_template=bool(tokenizer.chat_template))
    report = request_lengths(
        tokenizer,
        data,
        chat=method.chat,
        max_length=chosen.max_length,
        max_new_tokens=chosen.max_new_tokens,
    )
    emit(report.to_json(), format, format_lengths(report))
