"""Time efface's NPO step against open-unlearning's own, on the same model, rows and batch.

    python benchmarks/peer.py --peer CHECKOUT --data TOFU_JSON_FOLDER --model MODEL_FOLDER

CHECKOUT: https://github.com/locuslab/open-unlearning at commit d3d7cf9. Its NPO runs whole (dataset, collator, trainer,
loss, full fine-tuning, deep-copied reference, bf16); `peer_sides.py` stubs the imports of it that are absent. One
interleaved run: each round starts every side once in a fresh process on the round's own rows, and ratios are taken
inside a round. Prints one JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Found = dict[str, Any]
COMMIT = "d3d7cf9"
TYPICAL_STEPS = 40
HERE = Path(__file__).parent
NOTES = (
    "Each process: the same forget and retain rows of TOFU at every step, as the peer's dataset tokenizes them through "
    "the model's chat template; the first two steps are left out. Seconds run from one point of a step to the same "
    "point of the next.",
    "peer: bf16 weights under bf16 autocast, its NPO's defaults (beta 0.1, NLL, gradient checkpointing off). Its Llama "
    "configuration asks for flash_attention_2 and paged_adamw_32bit, made for CUDA: here sdpa and adamw_torch, "
    "whose two states are bf16 like the weights (its own are fp32: 0.5 GiB more for 135M parameters). Its trainer, "
    "loss and collator run whole under transformers 5; three shims: `compute_loss` drops `num_items_in_batch`, the "
    "chat template answers with a list, and absent omegaconf and deepspeed are empty modules.",
    "efface: LoRA of rank 16 on every linear layer, float32 masters; base in bf16, or in NF4 (double quantization) "
    "with bf16 compute.",
    "efface asks the reference once before training, the peer in every step. 'with reference' adds the reference over "
    f"forget01's 40 rows divided by {TYPICAL_STEPS} steps.",
    "Memory: peak resident set (ru_maxrss) of the whole process, loading included; 'above imports' leaves out what the "
    "libraries take before a model is loaded (the same imports on every side). The highest of the rounds.",
    "Where the machine is shared, read the CPU seconds: wall time then counts other processes too.",
)


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="efface-peer-") as scratch:
        common = {"peer": str(given.peer), "model": str(given.model), "scratch": scratch}
        rows = run(
            {
                **common,
                "side": "prepare",
                "data": str(given.data),
                "rounds": given.rounds,
                "batch": given.batch,
            },
            given.threads,
        )
        rounds = []
        for number, batch in enumerate(rows["rounds"]):
            job = {**common, **batch, "steps": given.steps + 2, "pad_id": rows["pad_id"]}
            found = {}
            for side in ("peer", *given.sides):
                found[side] = run({**job, "side": side, "reference": rows["reference"]}, given.threads)
                spent = statistics.median(found[side]["wall_s"])
                print(f"round {number + 1} {side}: {spent:.2f} s a step", file=sys.stderr)
            rounds.append(found)
    result = {
        "command": " ".join(["python benchmarks/peer.py", *_shown(given)]),
        "machine": machine(),
        "threads": given.threads,
        "peer_commit": COMMIT,
        "date": datetime.now(UTC).date().isoformat(),
        "load_average": os.getloadavg()[0],
        "tokens": [tokens(batch) for batch in rows["rounds"]],
        "notes": NOTES,
        "sides": {side: summary([found[side] for found in rounds]) for side in rounds[0]},
        "ratios": {
            side: ratios([found[side] for found in rounds], [found["peer"] for found in rounds])
            for side in given.sides
        },
        "rounds": rounds,
    }
    print(json.dumps(result))
    if given.write:
        target = HERE / "results" / "peer-cpu.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(markdown(result))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="checkout of open-unlearning")
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's forget10.json and so on")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sides", nargs="+", default=["bf16", "nf4", "nf4-checkpointing"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="timed steps a process, after two that are not")
    parser.add_argument("--batch", type=int, default=8, help="forget rows a step, and as many retain rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/peer-cpu.md")
    given = parser.parse_args()
    if not (given.peer / "src/trainer/unlearn/npo.py").is_file():
        parser.error(f"{given.peer} is no checkout of open-unlearning: src/trainer/unlearn/npo.py is missing")
    return given


def _shown(given: argparse.Namespace) -> list[str]:
    return [
        f"--sides {' '.join(given.sides)} --rounds {given.rounds} --steps {given.steps}",
        f"--batch {given.batch} --threads {given.threads}",
    ]


def run(job: Found, threads: int) -> Found:
    """What a fresh process with ``threads`` threads answers to ``job``. This process stays small: a child's
    ru_maxrss starts at its parent's."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **limits, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        command = [sys.executable, str(HERE / "peer_sides.py"), file.name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{job['side']} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def summary(runs: list[Found]) -> Found:
    """Median, lowest and highest over all steps of all rounds; memory: the highest of the rounds."""
    found: Found = {key: spread([s for run in runs for s in run[key]]) for key in ("wall_s", "cpu_s")}
    found |= {key: max(run[key] for run in runs) for key in ("peak_gib", "above_imports_gib")}
    found |= {"n": sum(len(run["wall_s"]) for run in runs), "first_losses": [r["first_loss"] for r in runs]}
    found["trained_parameters"] = runs[0]["trained_parameters"]
    if "reference" in runs[0]:
        seconds = {
            key: statistics.median(run["reference"][key] for run in runs) for key in ("wall_s", "cpu_s")
        }
        found["reference_once"] = {"rows": runs[0]["reference"]["rows"], **seconds}
    return found


def spread(values: list[float]) -> Found:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(ours: list[Found], peers: list[Found]) -> Found:
    """ours/peer of the same round; the spread is over rounds."""
    each: dict[str, list[float]] = {}
    for mine, theirs in zip(ours, peers, strict=True):
        for key in ("wall_s", "cpu_s"):
            once = mine["reference"][key] / TYPICAL_STEPS
            step, other = statistics.median(mine[key]), statistics.median(theirs[key])
            each.setdefault(key, []).append(step / other)
            each.setdefault(f"{key}_with_reference", []).append((step + once) / other)
        for key in ("peak_gib", "above_imports_gib"):
            each.setdefault(key, []).append(mine[key] / theirs[key])
    return {key: spread(values) for key, values in each.items()}


def tokens(batch: Found) -> Found:
    """How many tokens a step holds, and with padding to each side's longest row."""
    lengths = {side: [len(row["input_ids"]) for row in rows] for side, rows in batch.items()}
    padded = sum(max(found) * len(found) for found in lengths.values())
    together = max(max(found) for found in lengths.values()) * sum(map(len, lengths.values()))
    answers = sum(len(row["labels"]) - row["labels"].count(-100) for rows in batch.values() for row in rows)
    return {
        "tokens": sum(map(sum, lengths.values())),
        "answer_tokens": answers,
        "padded_apart": padded,
        "padded_together": together,
    }


def machine() -> str:
    names = [
        line.split(":", 1)[1].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")
    ]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor() or platform.machine()}"


def _cpuinfo() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.is_file() else ""


def markdown(result: Found) -> str:
    """The JSON's summary as a page."""
    head = "| side | wall s a step: median (min–max) | CPU s | peak GiB | above imports GiB | trained parameters | n |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for side, s in result["sides"].items():
        name = "open-unlearning" if side == "peer" else f"efface {side}"
        wall, cpu = s["wall_s"], s["cpu_s"]
        lines.append(
            f"| {name} | {wall['median']:.2f} ({wall['min']:.2f}–{wall['max']:.2f}) | {cpu['median']:.2f} | "
            f"{s['peak_gib']:.2f} | {s['above_imports_gib']:.2f} | {s['trained_parameters']:,} | {s['n']} |"
        )
    lines += ["", "| efface / peer, same round | wall | CPU | CPU with reference | peak | above imports |"]
    lines += ["|---|---|---|---|---|---|"]
    keys = ("wall_s", "cpu_s", "cpu_s_with_reference", "peak_gib", "above_imports_gib")
    for side, r in result["ratios"].items():
        shown = [f"{r[key]['median']:.2f} ({r[key]['min']:.2f}–{r[key]['max']:.2f})" for key in keys]
        lines.append(f"| {side} | " + " | ".join(shown) + " |")
    once = ", ".join(
        f"{side} {s['reference_once']['wall_s']:.1f} s"
        for side, s in result["sides"].items()
        if "reference_once" in s
    )
    title = f"# NPO step: efface against open-unlearning {result['peer_commit']}, CPU"
    about = (
        f"{result['date']}, {result['machine']}, {result['threads']} thread(s), load {result['load_average']:.1f}. "
        f"`{result['command']}`"
    )
    sizes = f"Tokens a step, by round: {json.dumps(result['tokens'])}. Reference over 40 rows, once: {once}."
    notes = [f"- {note}" for note in result["notes"]]
    return "\n".join([title, "", about, "", *lines, "", sizes, "", *notes]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
