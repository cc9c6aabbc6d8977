"""`efface gc`: delete what no event needs any more, by a plan that can be looked at first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, cast

import typer

from ..registry import InvalidInput, Registry, collect, plan_collection
from ..registry.canon import parse
from ..registry.gc import GcItem, GcPlan, plan_from_json
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    RegistryOption,
    YesOption,
    writable,
)
from .output import emit, talk
from .record_acts import GcItemRecord, GcPlanRecord, GcRecord

EXAMPLE = "Example: efface gc --min-age 24 --plan gc.json"
_LIMIT = 2**28


def gc(
    yes: YesOption = False,
    min_age: Annotated[
        float,
        typer.Option(
            "--min-age",
            metavar="HOURS",
            min=0,
            max=10**6,
            help="Leave what is younger, but for purged bytes.",
        ),
    ] = 1.0,
    file: Annotated[
        Path | None,
        typer.Option(
            "--plan", metavar="FILE", help="Write the plan here; with --yes, carry out the one in it."
        ),
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Plan or do the deletion of purged adapters' bytes, blobs without an event, unfinished writes and old caches.

    What became needed or was written again since the plan is left. Doing it twice is doing it once.
    """
    if not yes:
        writable(file)
    with Registry.open(registry) as reg:
        plan = _read(file) if yes and file else plan_collection(reg, min_age=timedelta(hours=min_age))
        done = collect(reg, plan, actor=actor) if yes else None
    if file is not None and not yes:
        file.write_text(json.dumps(plan.as_json(), indent=2) + "\n", encoding="utf-8")
    record: GcRecord = {
        "done": yes,
        "plan": cast("GcPlanRecord", plan.as_json()),
        "deleted": _items(done.deleted if done else ()),
        "left": _items(done.left if done else ()),
    }
    emit(record, format, "\n".join(_lines(record, done.size if done else plan.size)))
    if not yes:
        talk.print("Nothing was deleted. Do it with --yes.")


def _read(file: Path) -> GcPlan:
    then = "Make one: efface gc --plan FILE"
    try:
        if not file.is_file() or file.stat().st_size > _LIMIT:
            raise InvalidInput("a plan of `efface gc --plan FILE`", "no file of that size", then)
        value = parse(file.read_bytes())
    except OSError as error:
        raise InvalidInput("a plan of `efface gc --plan FILE`", type(error).__name__, then) from error
    if not isinstance(value, Mapping):
        raise InvalidInput("a plan of `efface gc --plan FILE`", "other JSON", then)
    return plan_from_json(value)


def _items(items: tuple[GcItem, ...]) -> list[GcItemRecord]:
    return [cast("GcItemRecord", asdict(item)) for item in items]


def _lines(record: GcRecord, size: int) -> list[str]:
    shown = record["deleted"] if record["done"] else record["plan"]["items"]
    lines = [f"{one['reason']}  {one['kind']}  {one['name']}  {one['size']} bytes" for one in shown]
    lines += [f"left  {one['kind']}  {one['name']}: needed, newer or gone" for one in record["left"]]
    word = "deleted" if record["done"] else "to delete"
    return [*lines, f"{len(shown)} {word}, {size} bytes"]
