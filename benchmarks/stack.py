"""The stacking curve: `python benchmarks/stack.py prepare|run|table|overlap [--data DIR]`.

N forget requests (a person each, twenty questions about everybody) on one small model: adapters trained apart and
summed, or in the other ways of `stack_protocol/method.py`, for N = 1, 2, 4, 8, 16 and three seeds. Does every request
stay forgotten, does the rest stay well, does any request come out again exactly?

The persons are generated (`stack_protocol/generated.py`); with DIR, a folder of TOFU's JSON files
(https://huggingface.co/datasets/locuslab/TOFU), they are TOFU's authors, whose rows are three times as long. `prepare`
memorises the rows (once, cached), `run` trains adapters and measures stacks (adapters and figures are kept in the
cache, so that it can be interrupted, and run for several seeds at once; the figures of a method and seed also as a
record in benchmarks/results/stack, and what is there is not run again, so that machines can share the work), `table`
writes benchmarks/results/stack-cpu.md, .json and .svg from the records, and `overlap` stack-overlap.md and .json: what
overlap of the cached adapters says beforehand, against what their stacks did. Progress on stderr, JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from stack_protocol.data import People, load_people
from stack_protocol.forecast import compared
from stack_protocol.forecast import page as overlap_page
from stack_protocol.generated import TEMPLATE, generated_people
from stack_protocol.make import Bench, members, place
from stack_protocol.measure import alone, bare, stack
from stack_protocol.method import METHODS, Series, series
from stack_protocol.records import Curve, file_name, is_whole, keep, read
from stack_protocol.table import write
from stack_protocol.unpacked import unpacked
from tofu_protocol.memorise import Memorising, memorised

from efface.adapters import fetch_model, load_base
from efface.adapters.errors import AdapterError
from efface.adapters.fetch import cache_dir
from efface.recipes import InvalidRecipe

RESULTS = Path(__file__).parent / "results"
TOFU = Memorising(epochs=6)
GENERATED = Memorising(learning_rate=3e-4, epochs=6, template=TEMPLATE)
FEWER = replace(GENERATED, epochs=8)
"""A third of the rows takes more visits to each."""
SHORT = ("steps=16", "stop.rows=8")
"""Generated persons are forgotten sooner than TOFU's authors: by 8 to 16 steps most have less probability than under
the model that never knew them."""
CLOSE = "stop.every=4"
"""Where A is free to move, a request is forgotten by step 8, and some repeat themselves by then: look more often."""
talk = Console(stderr=True, highlight=False, emoji=False)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        print(json.dumps(given.command(given), indent=1))
    except (InvalidRecipe, AdapterError) as error:
        talk.print(f"error: {error}", markup=False)
        return 2
    return 0


def prepare(given: argparse.Namespace) -> dict[str, Any]:
    """Memorise; measure the model before and the retain-only one."""
    people = _people(given)
    return {name: bare(bench(given, people, name)) for name in ("retain", "full")}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Every series that is asked for and not in the records: its adapters, each alone, then the stacks."""
    people = _people(given)
    asked = _asked(given, people)
    wanted = [one for one in asked if not is_whole(_record(given, one), one, given.counts, people.name)]
    if not wanted:
        return {"measured": [], "there": [_label(one) for one in asked]}
    here = bench(given, people, "full")
    before, without = bare(here), bare(bench(given, people, "retain"))
    made: dict[str, str] = {}
    for one in wanted:
        label = _label(one)
        if one.method.kind != "together":
            for count in range(1, max(given.counts) + 1):
                _timed(f"{label}: adapter {count}", lambda n=count, s=one.apart: members(here, s, n))
        if one.apart.method.kind == "independent":
            for author in one.order[: max(given.counts)]:
                _timed(f"{label}: author {author} alone", lambda a=author, s=one.apart: alone(here, s, a))
        for count in given.counts:
            _timed(f"{label}: stack of {count}", lambda n=count, s=one: stack(here, s, n))
            curve = _curve(given, people, here, one, before, without)
            made[label] = str(keep(curve, _record(given, one).parent))
    there = [_label(one) for one in asked if one not in wanted]
    return {"measured": made, "there": there}


def table(given: argparse.Namespace) -> dict[str, Any]:
    """Write the page, the data and the plot from the records; say what is not there."""
    curves: list[Curve] = []
    for name in given.methods:
        for seed in given.seeds:
            file = _records(given) / file_name(name, seed)
            curve = read(file) if file.is_file() else None
            missing = [n for n in given.counts if curve is None or n not in curve.stacks]
            if missing:
                talk.print(f"missing: {name} seed {seed} N={missing}; `stack.py run` makes it", markup=False)
            if curve is not None:
                curves.append(curve)
    if not curves:
        raise SystemExit(f"no records in {_records(given)}: expected those of `stack.py run`")
    return write(given.out, curves, command=_spelled(given), note=given.note)


def overlap(given: argparse.Namespace) -> dict[str, Any]:
    """Write what overlap of the adapters forecast of the largest stack of each series, and what that did."""
    people, n = _people(given), max(given.counts)
    asked = [one for one in _asked(given, people) if one.method.kind == "independent"]
    if not asked or n < 2:
        raise SystemExit(
            "expected methods whose adapters are trained apart (sum, contrast, ...) and an N of 2 or more"
        )
    rows: list[dict[str, Any]] = []
    for one in asked:
        file = _record(given, one)
        if not is_whole(file, one, [n], people.name):
            raise SystemExit(f"no record of {_label(one)} at N = {n}: expected that of `stack.py run`")
        curve = read(file)
        kept = place(given.cache, people, curve.base, one)
        folders = {author: kept / f"author-{author:02d}" for author in one.order[:n]}
        if absent := [str(folder) for folder in folders.values() if not folder.is_dir()]:
            raise SystemExit(f"expected the adapters of {_label(one)} in the cache, got none at {absent[0]}")
        _timed(_label(one), lambda c=curve, f=folders: rows.append(compared(c, f, n)))
    command = _spelled(given).replace("stack.py run", "stack.py overlap")
    given.out.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"command": command, "rows": rows}, indent=1, allow_nan=False)
    (given.out / "stack-overlap.json").write_text(data + "\n", encoding="utf-8")
    (given.out / "stack-overlap.md").write_text(overlap_page(rows, command), encoding="utf-8")
    return {"compared": [f"{row['method']}, seed {row['seed']}" for row in rows]}


def _curve(
    given: argparse.Namespace,
    people: People,
    here: Bench,
    one: Series,
    before: Mapping[str, Any],
    without: Mapping[str, Any],
) -> Curve:
    """What the cache holds of a series."""
    files = {n: here.folder(one) / f"stack-{n:02d}.json" for n in given.counts}
    apart = one.apart
    if apart.method.kind != "independent":
        apart = _series("sum", one.seed, given, people)
    singles = sorted(here.folder(apart).glob("alone-*.json"))
    return Curve(
        one.method,
        one.seed,
        one.key,
        people.name,
        here.base.fingerprint.digest,
        before,
        without,
        {n: json.loads(file.read_text()) for n, file in files.items() if file.is_file()},
        {int(file.stem[-2:]): json.loads(file.read_text()) for file in singles},
        [json.loads(file.read_text()) for file in sorted(here.folder(one).glob("*/training.json"))],
    )


def _people(given: argparse.Namespace) -> People:
    return generated_people() if given.data is None else load_people(given.data)


def _records(given: argparse.Namespace) -> Path:
    return given.records or RESULTS / ("stack" if given.data is None else "stack-tofu")


def _record(given: argparse.Namespace, one: Series) -> Path:
    return _records(given) / file_name(one.method.name, one.seed)


def _label(one: Series) -> str:
    return f"{one.method.name}, seed {one.seed}"


def bench(given: argparse.Namespace, people: People, which: str) -> Bench:
    """The memorised model ("full") or the one without the authors ("retain"), trained now if it is not cached."""
    original = fetch_model("smollm2-135m", progress=lambda line: talk.print(line, markup=False))
    rows = people.memorised if which == "full" else people.stays
    how = TOFU if given.data is not None else GENERATED if which == "full" else FEWER
    folder = memorised(given.cache, original, rows, how, name=which)
    return Bench(unpacked(load_base(folder, given.precision)), people, given.cache, {})


def _asked(given: argparse.Namespace, people: People) -> list[Series]:
    return [_series(name, seed, given, people) for name in given.methods for seed in given.seeds]


def _series(name: str, seed: int, given: argparse.Namespace, people: People) -> Series:
    short = [] if given.data is not None else [*SHORT, *([] if METHODS[name].holds_a else [CLOSE])]
    return series(name, seed, len(people.authors), [*short, *given.set])


def _timed(label: str, make: Any) -> None:
    started = time.monotonic()
    with talk.status(label):
        make()
    if (seconds := time.monotonic() - started) > 1:
        talk.print(f"{label}: {seconds:.1f} s", markup=False)


def _spelled(given: argparse.Namespace) -> str:
    overrides = [part for value in given.set for part in ("--set", value)]
    words = [
        "--methods",
        *given.methods,
        "--seeds",
        *map(str, given.seeds),
        "--counts",
        *map(str, given.counts),
    ]
    data = [] if given.data is None else ["--data DIR"]
    return " ".join(["python benchmarks/stack.py run", *data, *words, *overrides])


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, help="folder with TOFU's JSON files; else persons are generated")
    common.add_argument("--cache", type=Path, default=cache_dir() / "tofu", help="models, adapters, results")
    common.add_argument("--precision", default="nf4", help="of the base, for training and measuring")
    choice = argparse.ArgumentParser(add_help=False, parents=[common])
    choice.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    choice.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    choice.add_argument(
        "--records", type=Path, help="where figures are kept: benchmarks/results/stack, or stack-tofu"
    )
    choice.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="the Ns")
    choice.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every method")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    commands.add_parser("prepare", parents=[common]).set_defaults(command=prepare)
    commands.add_parser("run", parents=[choice]).set_defaults(command=run)
    for name, command in (("table", table), ("overlap", overlap)):
        writing = commands.add_parser(name, parents=[choice])
        writing.add_argument("--out", type=Path, default=RESULTS)
        writing.set_defaults(command=command)
        if command is table:
            writing.add_argument("--note", default="", help="what else a reader has to know of these runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
