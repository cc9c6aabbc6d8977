"""Time `efface audit run --suite NAME` as a user runs it: a process with its imports, loading and the report.

    python benchmarks/suite.py --data TOFU_JSON_FOLDER [--suite quick] [--rows 50] [--rounds 3] [--write]

SmolLM2-135M-Instruct, a random LoRA of rank 16 on every linear layer, rows of TOFU (three in five to forget, the rest
to keep), each answered twice: with the adapter and without. The base does not know these rows, so that hardly an answer
ends before `max_new_tokens`: the longest that the suite takes. Prints one JSON; with --write also
benchmarks/results/suite-cpu.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peer import machine, spread

from efface.adapters import fetch_model
from serving import random_lora

MODEL = "smollm2-135m"
RESULT = Path(__file__).parent / "results" / "suite-cpu.md"
LIMIT_S = 60.0


def main() -> int:
    given = arguments()
    base, runs = fetch_model(MODEL), list[float]()
    with tempfile.TemporaryDirectory(prefix="efface-suite-") as work:
        command = audit(Path(work), base, given)
        for number in range(given.rounds):
            started = time.perf_counter()
            done = subprocess.run(command, check=False, capture_output=True, cwd=work)
            runs.append(time.perf_counter() - started)
            if done.returncode not in (0, 1):  # 1: a gate failed, which a random adapter should
                raise SystemExit(done.stderr.decode(errors="replace"))
            print(f"round {number + 1}: {runs[-1]:.1f} s", file=sys.stderr)
    result = {
        "command": f"python benchmarks/suite.py --suite {given.suite} --rows {given.rows} --rounds {given.rounds}",
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "wall_s": spread(runs),
        "n": given.rounds,
        "limit_s": LIMIT_S,
    }
    print(json.dumps(result))
    if given.write:
        RESULT.write_text(page(given, result))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's forget10.json and so on")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


def audit(work: Path, base: Path, given: argparse.Namespace) -> list[str]:
    """The command; what it reads is written into ``work``."""
    forget = given.rows * 3 // 5
    counts = {"forget": ("forget10", forget), "retain": ("retain90", given.rows - forget)}
    for side, (source, count) in counts.items():
        (work / f"{side}.jsonl").write_text("\n".join(rows(given.data / f"{source}.json", count)))
    adapter = random_lora(base, work / "adapter", seed=0, rank=16)
    command = [sys.executable, "-m", "efface.cli", "audit", "run", "--model", str(base)]
    named = ["--adapter", str(adapter), "--forget", "forget.jsonl", "--retain", "retain.jsonl"]
    return [*command, *named, "--suite", given.suite, "--no-cache", "--html", "report.html"]


def rows(path: Path, count: int) -> list[str]:
    """``count`` rows spread over a file of TOFU, as prompt and completion."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    picked = [lines[i * len(lines) // count] for i in range(count)]
    return [json.dumps({"prompt": row["question"], "completion": row["answer"]}) for row in picked]


def page(given: argparse.Namespace, result: dict[str, Any]) -> str:
    """The JSON as a page."""
    wall = result["wall_s"]
    return (
        f"# `efface audit run --suite {given.suite}`, the whole command\n\n"
        f"{result['date']}, {result['machine']}, load {result['load_average']:.1f}. `{result['command']}`\n\n"
        f"SmolLM2-135M-Instruct in NF4, {given.rows} rows, before and after: {wall['median']:.1f} s "
        f"({wall['min']:.1f}–{wall['max']:.1f}, n = {result['n']}; imports, loading and the HTML report in it). "
        f"The suite's description promises less than {LIMIT_S:.0f} s.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
