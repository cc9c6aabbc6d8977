"""Time `efface demo` over seeds and check that every run told its story: `python benchmarks/demo.py --seeds 0 1 2`.

One run per seed, nothing else should be running. Prints one JSON line: seconds (median, lowest, highest), training
seconds, peak memory, and for each run what the three releases measured. A run whose gates failed is a result too.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as efface demo's")
    given = parser.parse_args()
    runs = [one_run(seed, given.set) for seed in given.seeds]
    # A run that its gates ended early took less time and tells nothing about the demo's.
    seconds = [run["seconds"] for run in runs if "figures" in run]
    spread = (
        {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)} if seconds else None
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    settings = "".join(f" --set {value}" for value in given.set)
    print(
        json.dumps(
            {
                "command": f"efface demo{settings} --set seed=N",
                "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
                "n": len(seconds),
                "seconds": spread,
                "peak_memory_gib": round(peak, 2),
                "runs": runs,
            }
        )
    )
    return int(any(run["problems"] for run in runs))


def one_run(seed: int, settings: list[str]) -> dict[str, Any]:
    """What one demo took and found; ``problems`` is empty when every claim held."""
    options = [part for value in [*settings, f"seed={seed}"] for part in ("--set", value)]
    with tempfile.TemporaryDirectory(prefix="efface-bench-") as workdir:
        command = [sys.executable, "-m", "efface.cli", "demo", "--format", "json", "--workdir", workdir]
        started = time.monotonic()
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    if not done.stdout:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        return {"seed": seed, "seconds": time.monotonic() - started, "problems": said}
    story = json.loads(done.stdout)
    keys = ("seconds", "training_seconds", "problems", "figures")
    return {"seed": seed, **{key: story[key] for key in keys}}


if __name__ == "__main__":
    raise SystemExit(main())
