"""Recipes: one request from data to registered adapter and release.

Read `run.py` (request → train → audit → seal), then `release.py` (stack, roll back), `prepare.py` (which rows
count) and `recipe.py` (every setting). Names load on first use: reading rows needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audit import audit_composition, request_data
    from .bench import Bench, measure, open_bench, own_answers, wearing
    from .data import RequestData, Row, load_request_data, read_rows, shipped, shipped_request, to_payload
    from .errors import DataError, InvalidRecipe, RecipeError, RequestError
    from .prepare import TrainingRows, probes, training_rows
    from .progress import Progress, Silent
    from .recipe import Recipe, load_recipe, shipped_recipes
    from .release import (
        Released,
        add_requests,
        remove_requests,
        render_composition,
        render_release,
        return_to,
    )
    from .run import Unlearned, unlearn

_HOMES = {
    "audit": ("audit_composition", "request_data"),
    "bench": ("Bench", "measure", "open_bench", "own_answers", "wearing"),
    "data": (
        "RequestData",
        "Row",
        "load_request_data",
        "read_rows",
        "shipped",
        "shipped_request",
        "to_payload",
    ),
    "errors": ("DataError", "InvalidRecipe", "RecipeError", "RequestError"),
    "prepare": ("TrainingRows", "probes", "training_rows"),
    "progress": ("Progress", "Silent"),
    "recipe": ("Recipe", "load_recipe", "shipped_recipes"),
    "release": (
        "Released",
        "add_requests",
        "remove_requests",
        "render_composition",
        "render_release",
        "return_to",
    ),
    "run": ("Unlearned", "unlearn"),
}

__all__ = [
    "Bench",
    "DataError",
    "InvalidRecipe",
    "Progress",
    "Recipe",
    "RecipeError",
    "Released",
    "RequestData",
    "RequestError",
    "Row",
    "Silent",
    "TrainingRows",
    "Unlearned",
    "add_requests",
    "audit_composition",
    "load_recipe",
    "load_request_data",
    "measure",
    "open_bench",
    "own_answers",
    "probes",
    "read_rows",
    "remove_requests",
    "render_composition",
    "render_release",
    "request_data",
    "return_to",
    "shipped",
    "shipped_recipes",
    "shipped_request",
    "to_payload",
    "training_rows",
    "unlearn",
    "wearing",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
