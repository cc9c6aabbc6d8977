"""The adapters of a series: trained when they are first asked for, then kept as PEFT folders."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tofu_protocol.data import Row

from efface.adapters import (
    Base,
    Encoded,
    Part,
    ReferenceCache,
    TrainSettings,
    attach,
    compose,
    detach,
    encode,
    initialise_contrast,
    initialise_null_space,
    save,
    train,
)
from efface.adapters.encode import eos_id, pad_id
from efface.recipes.balance import RANK, STEPS, balancing

from .data import People
from .generated import strangers
from .method import Series
from .said import said

MOST_STEPS = 150
"""Of one adapter for many requests, which has as many steps for each of them as one alone; it may stop before."""


@dataclass(frozen=True, slots=True)
class Bench:
    """``base``: the model before, which knows every author, at the precision of the runs. ``references``: what its
    reference policies were asked, by policy. ``cache``: where adapters and figures are kept."""

    base: Base
    people: People
    cache: Path
    references: dict[str, ReferenceCache]

    def folder(self, series: Series) -> Path:
        """Where a series is kept: another base, other rows or settings are another folder."""
        return place(self.cache, self.people, self.base.fingerprint.digest, series)


def place(cache: Path, people: People, base: str, series: Series) -> Path:
    """Where ``cache`` keeps a series on the ``base`` of this digest."""
    return cache / "stack" / f"{people.digest}-{base.removeprefix('sha256:')[:12]}" / series.folder


def members(bench: Bench, series: Series, count: int) -> list[Path]:
    """The adapters of the first ``count`` requests of ``series``, in its order; trained where they are not there."""
    if series.method.kind == "together":
        return [_made(bench, series, f"together-{count}", series.order[:count], ())]
    if series.of is not None:
        apart = members(bench, series.of, count)
        authors = series.order[:count]
        return (
            apart
            if count == 1 or series.method.kind == "compressed"
            else [*apart, _made(bench, series, f"balance-{count}", authors, apart)]
        )
    found: list[Path] = []
    for author in series.order[:count]:
        found.append(_made(bench, series, f"author-{author:02d}", (author,), tuple(found)))
    return found


def _made(bench: Bench, series: Series, name: str, authors: Sequence[int], before: Sequence[Path]) -> Path:
    folder = bench.folder(series) / name
    if (folder / "training.json").is_file():
        return folder
    scratch = folder.with_name(f".{name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    below = before if series.method.kind in ("sequential", "balanced") else ()
    stacked = compose([Part(path) for path in below], scratch / "below").path if below else None
    facts = (
        _balance(bench, series, authors, stacked, scratch / "adapter")
        if stacked is not None and series.of is not None
        else _train(bench, series, authors, stacked, before, scratch / "adapter")
    )
    shutil.rmtree(scratch / "below", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    (scratch / "adapter").rename(folder)
    scratch.rmdir()
    # Last: a folder without it was interrupted and is trained again.
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def _train(
    bench: Bench,
    series: Series,
    authors: Sequence[int],
    stacked: Path | None,
    before: Sequence[Path],
    out: Path,
) -> dict[str, object]:
    recipe = series.recipe
    settings = replace(recipe.train_settings(), steps=min(recipe.steps * len(authors), MOST_STEPS))
    company = before if recipe.stacking.company else ()
    return _trained(bench, series, authors, settings, out, stacked=stacked, before=before, company=company)


def _balance(
    bench: Bench, series: Series, authors: Sequence[int], stack: Path, out: Path
) -> dict[str, object]:
    """As `efface release balance` trains it, the whole stack always on."""
    recipe = balancing(series.recipe, RANK, STEPS)
    series = replace(series, recipe=recipe)
    own = _own_words(bench) if series.method.own else ()
    return _trained(bench, series, authors, recipe.train_settings(), out, company=[stack], own=own)


def _own_words(bench: Bench) -> tuple[Row, ...]:
    """What the bare base says of those who are in none of the sets."""
    rows = strangers()
    answers = said(bench.base, bench.base.model, rows, bench.people.longest)
    return tuple(replace(row, answer=text) for row, text in zip(rows, answers, strict=True) if text)


def _trained(
    bench: Bench,
    series: Series,
    authors: Sequence[int],
    settings: TrainSettings,
    out: Path,
    *,
    stacked: Path | None = None,
    before: Sequence[Path] = (),
    company: Sequence[Path] = (),
    own: Sequence[Row] = (),
) -> dict[str, object]:
    base, recipe = bench.base, series.recipe
    forget = [row for author in authors for row in bench.people.authors[author]]
    model = attach(
        base.model,
        rank=recipe.rank,
        alpha=recipe.lora_alpha,
        rslora=recipe.rslora,
        stacked_on=stacked,
        seed=recipe.seed,
    )
    policy = "bare" if stacked is None else f"{series.key} {authors}"
    cache = bench.references.setdefault(policy, ReferenceCache(policy)) if stacked is None else None
    started, cpu = time.monotonic(), time.process_time()
    try:
        if recipe.initialisation == "null_space":
            initialise_null_space(model, before)
        encoded = _encoded(base, forget), _encoded(base, (*_retain(bench.people, series, authors), *own))
        if recipe.initialisation == "contrast":
            initialise_contrast(model, *encoded, pad_id=pad_id(base.tokenizer), seed=recipe.seed)
        result = train(
            model,
            *encoded,
            settings,
            pad_id=pad_id(base.tokenizer),
            eos_id=eos_id(base.tokenizer),
            cache=cache,
            apart_from=before if recipe.penalised else (),
            company=company,
        )
        save(model, out, base=base.fingerprint.digest)
    finally:
        detach(model)
    return {
        "authors": list(authors),
        "retain_rows": len(encoded[1]),
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - cpu,
        "steps": len(result.steps),
        "kept": result.kept,
        "stopped": result.stopped,
        "probes": [str(probe) for probe in result.probes],
    }


def _retain(people: People, series: Series, authors: Sequence[int]) -> tuple[Row, ...]:
    if series.method.excluded:
        return people.retain
    others = [row for i, rows in enumerate(people.authors) if i not in authors for row in rows]
    return (*people.retain, *random.Random(series.seed).sample(others, len(people.retain)))


def _encoded(base: Base, rows: Sequence[Row]) -> list[Encoded]:
    return [encode(base.tokenizer, row.item(), chat=True, end=True) for row in rows]
