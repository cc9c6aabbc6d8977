"""Time `efface demo` and check that every run told its story: `python benchmarks/demo.py --runs 3`.

Prints seconds (median, lowest, highest), training seconds, and peak memory of the process; one JSON line.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = [one_run(number) for number in range(parser.parse_args().runs)]
    seconds = [run["seconds"] for run in runs]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        json.dumps(
            {
                "command": "efface demo",
                "machine": f"{platform.machine()}, {platform.processor() or platform.platform()}",
                "n": len(runs),
                "seconds": {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)},
                "training_seconds": [run["training_seconds"] for run in runs],
                "peak_memory_gib": round(peak, 2),
                "problems": [run["problems"] for run in runs],
            }
        )
    )
    return int(any(run["problems"] for run in runs))


def one_run(number: int) -> dict:
    with tempfile.TemporaryDirectory(prefix="efface-bench-") as workdir:
        command = [sys.executable, "-m", "efface.cli", "demo", "--format", "json", "--workdir", workdir]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise SystemExit(f"run {number} ended with {done.returncode} and told nothing")
    return json.loads(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
