"""The TOFU protocol on a small model: `python benchmarks/tofu.py prepare|run|table|tune --data DIR`.

DIR holds TOFU's JSON files (https://huggingface.co/datasets/locuslab/TOFU). `prepare` memorises the rows (once,
cached), `run` unlearns and evaluates every recipe with every seed (one JSON file each; what is there already is not
run again), `table` writes benchmarks/results/tofu-cpu.md and .json from them, `tune` ranks a grid of settings.
Progress on stderr, JSON on stdout. About five minutes a run on one core; OMP_NUM_THREADS sets threads.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from tofu_protocol.alternates import plausible
from tofu_protocol.data import Split, load_split
from tofu_protocol.evaluate import quick
from tofu_protocol.memorise import Memorising, memorised
from tofu_protocol.table import Against, page, summary
from tofu_protocol.tune import SCORE, grid, tune
from tofu_protocol.unlearn import Bench, Run, done, perform, recipe_run, reference

from efface.adapters import StepReport, fetch_model, load_base
from efface.adapters.errors import AdapterError
from efface.adapters.fetch import cache_dir
from efface.recipes import InvalidRecipe, shipped_recipes

RESULTS = Path(__file__).parent / "results"
MEMORISED = 0.8
talk = Console(stderr=True, highlight=False, emoji=False)


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        print(json.dumps(given.command(given, prepared(given)), indent=1, ensure_ascii=False))
    except (InvalidRecipe, AdapterError) as error:
        talk.print(f"error: {error}", markup=False)
        return 2
    return 0


def prepared(given: argparse.Namespace) -> Bench:
    """The memorised models, trained now where they are not cached."""
    split, how = load_split(given.data), Memorising()
    base = fetch_model("smollm2-135m", progress=lambda line: talk.print(line, markup=False))
    talk.print("the memorised models: training them, half an hour on one core, unless they are cached")
    full = memorised(given.cache, base, [*split.forget, *split.retain], how, name="full")
    retain = memorised(given.cache, base, split.retain, how, name="retain")
    return Bench(base, full, retain, split, given.cache)


def prepare(_: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Check that Full knows all rows and Retain only its own; sample the alternates."""
    found: dict[str, Any] = {}
    for name, folder in (("full", bench.full), ("retain", bench.retain)):
        base = load_base(folder, "bf16")
        sides = {"forget": bench.split.forget, "retain": bench.split.retain}
        figures = {side: quick(base.model, base.tokenizer, rows) for side, rows in sides.items()}
        record = json.loads((folder / "memorised.json").read_text())
        found[name] = {"folder": str(folder), **figures, "training": record}
    known = found["full"]["forget"]["probability"]
    if known < MEMORISED:
        raise SystemExit(
            f"Full gives forget answers a probability of {known:.3f}, expected {MEMORISED}: raise epochs"
        )
    talk.print("sampling plausible other answers, or reading the cached ones")
    answers = plausible(bench.cache, bench.base, bench.split.forget)
    return {**found, "alternates": sum(map(len, answers.values())), "rows": sizes(bench.split)}


def run(given: argparse.Namespace, bench: Bench) -> list[dict[str, Any]]:
    """Every run that is asked for, references first."""
    runs = asked(given)
    for precision in dict.fromkeys(one.precision for one in runs):
        for label in ("retain", "full"):
            _timed(Run(label, precision), bench)
    return [_timed(one, bench, again=given.again) for one in runs]


def table(given: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Write the page from what has been run; say what has not."""
    runs = asked(given)
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    failed: list[str] = []
    for one in runs:
        if (record := done(one, bench)) is None:
            talk.print(f"missing: {one.label} seed {one.seed} at {one.precision}; `tofu.py run` makes it")
        elif "problem" in record:
            failed.append(f"{one.label} ({one.precision}) seed {one.seed}: {record['problem']}")
        else:
            by_name.setdefault((one.label, one.precision), []).append(record)
    if not by_name:
        raise SystemExit("nothing has been run yet: expected results of `tofu.py run` with the same options")
    rows: list[dict[str, Any]] = []
    for precision in dict.fromkeys(precision for _, precision in by_name):
        full, retain = (reference(label, precision, bench) for label in ("full", "retain"))
        against = Against(full, retain)
        rows += [summary("Full", [full], against), summary("Retain", [retain], against)]
        rows += [
            summary(name, records, against) for (name, at), records in by_name.items() if at == precision
        ]
    all_runs = [run for runs in by_name.values() for run in runs]
    days = sorted({run["date"] for run in all_runs})
    about = {**all_runs[0], "date": days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"}
    command = "python benchmarks/tofu.py run " + " ".join(_spelled(given))
    given.out.mkdir(parents=True, exist_ok=True)
    found = {
        "command": command,
        "rows": sizes(bench.split),
        "machine": about["machine"],
        "date": about["date"],
    }
    found |= {"versions": about["versions"], "table": rows, "failed": failed}
    how = Memorising()
    text = page(
        rows,
        command=command,
        split=sizes(bench.split),
        failed=failed,
        note=given.note,
        memorising=f"{how.epochs} epochs, batches of {how.batch}, AdamW at {how.learning_rate:g}",
        about=about,
    )
    (given.out / "tofu-cpu.md").write_text(text, encoding="utf-8")
    (given.out / "tofu-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def tuned(given: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Rank a grid for each recipe."""
    points = list(grid([f"learning_rate={given.learning_rates}", *given.grid]))
    options: dict[str, Any] = {"seed": given.seeds[0], "overrides": given.set, "precision": given.precision}
    found = {
        name: tune(bench, name, points, **options, on_point=lambda p: talk.print(_point(p), markup=False))
        for name in given.recipes
    }
    return {"score": SCORE, "ranking": found}


def asked(given: argparse.Namespace) -> list[Run]:
    """The runs that the options name, seeds within recipes."""
    return [
        recipe_run(name, seed, given.set, given.precision) for name in given.recipes for seed in given.seeds
    ]


def sizes(split: Split) -> dict[str, int]:
    """How many rows there are of each kind."""
    return {
        "forget (forget01)": len(split.forget),
        "retain (of retain99)": len(split.retain),
        "retain evaluated": len(split.retain_seen),
        "real authors": len(split.authors),
        "world facts": len(split.world),
    }


def _timed(one: Run, bench: Bench, *, again: bool = False) -> dict[str, Any]:
    name = (
        f"{one.label} seed {one.seed} at {one.precision}" if one.recipe else f"{one.label} at {one.precision}"
    )
    found = None if again else done(one, bench)
    if found is None:
        started = time.monotonic()
        with talk.status(name) as status:

            def told(report: StepReport) -> None:
                status.update(f"{name}: step {report.step}, loss {report.loss:.3f}")

            found = perform(one, bench, told)
        talk.print(f"{name}: {time.monotonic() - started:.1f} s", markup=False)
    figures = {
        key: value for key, value in found.items() if key not in ("answers", "truth_ratios", "versions")
    }
    return {"file": str(one.file(bench)), **figures}


def _point(found: Any) -> str:
    return f"{' '.join(found['set'])}: " + ", ".join(
        f"{k} {v:.3f}" for k, v in found.items() if isinstance(v, float)
    )


def _spelled(given: argparse.Namespace) -> list[str]:
    """The options of a run as one types them, without paths of this machine."""
    precision = ["--precision", given.precision] if given.precision else []
    overrides = [part for value in given.set for part in ("--set", value)]
    seeds = [str(seed) for seed in given.seeds]
    recipes = [Path(name).name for name in given.recipes]
    return ["--data DIR", "--recipes", *recipes, "--seeds", *seeds, *precision, *overrides]


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON files")
    common.add_argument("--cache", type=Path, default=cache_dir() / "tofu", help="models and results")
    choice = argparse.ArgumentParser(add_help=False, parents=[common])
    choice.add_argument("--recipes", nargs="+", default=list(shipped_recipes()), help="names, or YAML files")
    choice.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    choice.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every recipe")
    choice.add_argument("--precision", help="instead of each recipe's quantization")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    commands.add_parser("prepare", parents=[common]).set_defaults(command=prepare)
    running = commands.add_parser("run", parents=[choice])
    running.add_argument("--again", action="store_true", help="also what has been run before")
    running.set_defaults(command=run)
    writing = commands.add_parser("table", parents=[choice])
    writing.add_argument("--out", type=Path, default=RESULTS)
    writing.add_argument(
        "--note", default="", help="what else a reader of the page has to know of these runs"
    )
    writing.set_defaults(command=table)
    tuning = commands.add_parser("tune", parents=[choice])
    tuning.add_argument("--learning-rates", default="2e-4,5e-4,1e-3")
    tuning.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2")
    tuning.set_defaults(command=tuned)
    return parser


if __name__ == "__main__":
    sys.exit(main())
