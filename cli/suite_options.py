"""The options that say what an audit runs, and where figures of rows are kept between runs."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry import Registry, row_key

if TYPE_CHECKING:
    from ..recipes.bench import Bench
    from ..recipes.plan import Plan
    from ..recipes.recipe import Recipe
    from ..recipes.row_cache import RowMemory

SuiteOption = Annotated[
    str, typer.Option("--suite", help="quick, standard, full, tofu, muse, lm-eval, or a YAML file.")
]
GiveOption = Annotated[
    list[str],
    typer.Option("--give", metavar="NAME=PATH", help="What the suite needs: see `efface audit suites NAME`."),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        envvar="EFFACE_CACHE",
        help="Folder that keeps figures of rows (no text). By default in the registry's folder.",
    ),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Measure every row, and keep nothing.")]


def planned(suite: str, given: list[str]) -> Plan:
    """The suite with its sources, checked before a model is loaded."""
    from ..audits.suites import load_suite
    from ..recipes.plan import Plan
    from ..recipes.sources import read_sources

    chosen = load_suite(suite)
    return Plan(chosen, read_sources(chosen, given))


def bench_of(
    reg: Registry,
    model: str,
    recipe: Recipe,
    plan: Plan,
    folder: Path | None,
    *,
    no_cache: bool,
    reveal: bool,
) -> Bench:
    """The base, loaded, on a bench whose audits run ``plan`` and remember rows as `remembered` says."""
    from ..recipes.bench import open_bench

    memory = remembered(reg, folder, no_cache=no_cache, reveal=reveal)
    return open_bench(model, recipe, memory=memory, plan=plan)


def remembered(
    reg: Registry | None, folder: Path | None, *, no_cache: bool, reveal: bool = False
) -> RowMemory:
    """What rows are hashed under and where their figures are kept.

    Without a registry nothing is kept but where ``folder`` says. With ``reveal`` answers are asked for again.
    """
    from ..recipes.row_cache import RowMemory, one_key, open_cache

    found = None if no_cache or folder is None else open_cache(folder)
    if reg is not None:
        own = None if no_cache else cache(partial(open_cache, reg.root / "cache" / "rows"))
        return RowMemory(cache(partial(row_key, reg)), found or own, not reveal)
    return RowMemory(one_key(found.key if found else None), found, not reveal)
