"""How fast adapters are stacked, compressed and merged on files, beside PEFT's `cat` in the same run.

    python benchmarks/compose.py [--repeats N] [--folder DIR] [--model DIR] [--only stack,compress,merge]
        [--write] [--results DIR]

Synthetic rank-8 adapters on the 210 linear layers of SmolLM2-135M (30 layers; 576 wide, 1536 inside, 192 for keys and
values), float32, Gaussian. Stacking writes the folder durably (fsync) and hashes every byte of input and output; PEFT's
`add_weighted_adapter(combination_type="cat")` works on adapters that are loaded already and writes nothing, so the
table gives it with and without `load_adapter` and `save_pretrained`. Merging is onto a sharded bfloat16 checkpoint of
the same shapes (or --model), against `shutil.copyfile` of its files with and without an fsync of each. Every timing is
taken in a process of its own, warm cache; peak memory is that process's.
Prints a table and one JSON; with --write also compose-cpu.md and .json in benchmarks/results (or --results). Exit 1 for
a missed target.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
SIDES = HERE.parent / "compose_sides.py"
COUNTS = (1, 2, 4, 8, 16, 32, 64)
TARGETS = {
    "stack_8_s": 0.4,
    "stack_64_s": 3.0,
    "compress_64_s": 60.0,
    "merge_over_copy": 2.0,
    "merge_shards": 2.0,
}
Found = dict[str, Any]


def main() -> int:
    given = arguments()
    parts = given.only.split(",")
    with tempfile.TemporaryDirectory(prefix="efface-compose-", dir=given.folder) as folder:
        root = Path(folder)
        found: Found = {
            "command": " ".join(["python benchmarks/compose.py", *sys.argv[1:]]),
            "machine": machine(),
            "threads": given.threads,
            "date": datetime.now(UTC).date().isoformat(),
            "load_average": round(os.getloadavg()[0], 2),
        }
        run = Runner(root, given.threads)
        run("adapters", {"count": max(COUNTS)})
        if "stack" in parts:
            found["stack"] = {n: spread(run, given.repeats, "stack", {"count": n}) for n in COUNTS}
            found["peft"] = {n: spread(run, min(given.repeats, 3), "peft", {"count": n}) for n in (2, 8, 64)}
        if "compress" in parts:
            found["compress"] = {
                n: spread(run, min(given.repeats, 3), "compress", {"count": n, "rank": 64}) for n in (8, 64)
            }
        if "merge" in parts:
            model = given.model or run("checkpoint", {})["path"]
            found["shard_bytes"] = max(file.stat().st_size for file in Path(model).glob("*.safetensors"))
            found["copy"] = spread(run, given.repeats, "copy", {"model": model})
            found["merge"] = spread(run, given.repeats, "merge", {"model": model, "count": 8})
            found["requantize"] = spread(
                run, min(given.repeats, 3), "merge", {"model": model, "count": 8, "requantize": "nf4"}
            )
    found["met"] = met(found)
    table = as_table(found)
    print(table)
    print(json.dumps(found, indent=1))
    if given.write:
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / "compose-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (given.results / "compose-cpu.md").write_text(page(found, table))
    return 0 if all(found["met"].values()) else 1


class Runner:
    """Runs one side of `compose_sides.py` in a fresh process, and returns what it measured of itself."""

    def __init__(self, root: Path, threads: int) -> None:
        self.root, self.threads = root, threads

    def __call__(self, side: str, options: Found) -> Found:
        print(f"{side} {options} …", file=sys.stderr)
        command = [sys.executable, str(SIDES), side, str(self.root), json.dumps(options)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{side} {options} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def spread(run: Callable[[str, Found], Found], repeats: int, side: str, options: Found) -> Found:
    """Median, least and most of each figure over processes."""
    taken = [run(side, options) for _ in range(repeats)]
    return {
        "n": repeats,
        **{
            name: {
                "median": round(statistics.median(one[name] for one in taken), 4),
                "least": round(min(one[name] for one in taken), 4),
                "most": round(max(one[name] for one in taken), 4),
            }
            for name in taken[0]
        },
    }


def met(found: Found) -> dict[str, bool]:
    measured: dict[str, float] = {}
    if "stack" in found:
        measured["stack_8_s"] = found["stack"][8]["wall_s"]["median"]
        measured["stack_64_s"] = found["stack"][64]["wall_s"]["median"]
    if "compress" in found:
        measured["compress_64_s"] = found["compress"][64]["wall_s"]["median"]
    if "merge" in found:
        copied = found["copy"]["synced_s"]["median"]
        measured["merge_over_copy"] = found["merge"]["wall_s"]["median"] / copied
        measured["merge_shards"] = found["merge"]["grown_mib"]["most"] * 2**20 / found["shard_bytes"]
    found["measured"] = {name: round(value, 3) for name, value in measured.items()}
    return {name: value < TARGETS[name] for name, value in measured.items()}


def as_table(found: Found) -> str:
    lines = ["| what | wall s | CPU s | peak MiB grown |", "|---|--:|--:|--:|"]
    for n, one in found.get("stack", {}).items():
        lines.append(row(f"stack {n} × r8", one))
    for n, one in found.get("peft", {}).items():
        lines.append(row(f"PEFT `cat` of {n} × r8, loaded, nothing written", one, "cat_s"))
        lines.append(row(f"PEFT load, `cat`, save of {n} × r8", one))
    for n, one in found.get("compress", {}).items():
        lines.append(row(f"compress {n} × r8 to r64", one))
    if "merge" in found:
        lines.append(row("copy the checkpoint, no fsync", found["copy"]))
        lines.append(row("copy the checkpoint, fsync", found["copy"], "synced_s"))
        lines.append(row("merge 8 × r8 into it", found["merge"]))
        lines.append(row("the same, stored as NF4", found["requantize"]))
    return "\n".join(lines)


def row(label: str, one: Found, name: str = "wall_s") -> str:
    def cell(key: str, digits: int) -> str:
        if key not in one:
            return "–"
        at = one[key]
        return f"{at['median']:.{digits}f} ({at['least']:.{digits}f}–{at['most']:.{digits}f})"

    rest = ("–", "–") if name != "wall_s" else (cell("cpu_s", 2), cell("grown_mib", 0))
    return f"| {label} | {cell(name, 3)} | {rest[0]} | {rest[1]} |"


def page(found: Found, table: str) -> str:
    missed = [name for name, good in found["met"].items() if not good]
    taken = sorted(
        {one["n"] for kind in ("stack", "peft", "compress") for one in found.get(kind, {}).values()}
    )
    about = (__doc__ or "").split("\n\n")[2].rsplit("Prints a table", 1)[0].strip()
    return f"""# Stacking, compressing and merging on files

`{found["command"]}` on {found["machine"]}, {found["threads"]} threads; {found["date"]}, load average
{found["load_average"]} at the start.

{about}

Medians (least–most) of {" or ".join(map(str, taken))} processes.

{table}

Targets: {json.dumps(TARGETS)}. Measured: {json.dumps(found["measured"])}: {
        "all met" if not missed else "missed " + ", ".join(missed)
    }.
"""


def machine() -> str:
    model = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} × {model}, Python {platform.python_version()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time stacking, compressing and merging of adapters on files."
    )
    parser.add_argument("--write", action="store_true", help="write compose-cpu.md and .json")
    parser.add_argument(
        "--repeats", type=int, default=7, help="processes per figure (at most 3 for the slow ones)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")
    parser.add_argument("--folder", help="where files are written: the disk that is measured")
    parser.add_argument(
        "--model", help="a model folder to merge into; a synthetic one of the same shapes by default"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder that --write writes to")
    parser.add_argument("--only", default="stack,compress,merge", help="some of stack,compress,merge")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
