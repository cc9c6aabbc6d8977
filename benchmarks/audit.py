"""Time one shared-pass audit against each metric on its own, and against open-unlearning's evaluator.

    python benchmarks/audit.py --model FOLDER --data TOFU_JSON_FOLDER [--peer CHECKOUT] [--write]

The same model in memory, rows and greedy answers for every side, in alternating rounds of one process. All give answer
probability, exact memorization, extraction strength, ROUGE-L, and the AUC of four membership scores (loss, zlib, Min-K,
Min-K++) of forget against holdout rows. CHECKOUT: https://github.com/locuslab/open-unlearning at commit d3d7cf9, whose
metric handlers run whole. Prints one JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer import machine, spread

from efface.adapters import Item, encode, load_base
from efface.audits import (
    Method,
    Probe,
    answer_probability,
    auc,
    evaluate,
    exact_memorization,
    extraction_strength,
    rouge_l_recall,
)
from efface.audits.forced import teacher_forced
from efface.audits.run import answer_rows, membership_of

Found = dict[str, float]
MIA = ("loss", "zlib", "min_k", "min_k_plus_plus")
NOTES = (
    "shared: efface's `evaluate` of the forget rows (which also judges the perplexity of the answers: another forward "
    "of each, and a figure that the other sides do not have) and one teacher-forced pass of the holdout rows.",
    "alone: a loop over metrics and rows, with efface's functions: a forward per metric and row, a generation per row.",
    "peer: open-unlearning's handlers as its evaluator calls them, one after the other with batches of its own default "
    "size. Absent omegaconf is a stub; logits are float32, as transformers 4.45, for which it is written, gave them.",
    "Figures differ where definitions do: the peer's rows go on after the answer with what the template and it add "
    "(here <|im_end|>, a newline, EOS), and all of that but the last token counts as answer; it stems for ROUGE.",
)


def main() -> int:
    given = arguments()
    torch.set_num_threads(given.threads)
    base = load_base(given.model, "bf16", device="cpu")
    forget, holdout = (
        rows(given.data / f"{name}.json", given.rows) for name in (given.forget, given.holdout)
    )
    sides: dict[str, Callable[[], Found]] = {
        "shared": lambda: shared(base, forget, holdout, given),
        "alone": lambda: alone(base, forget, holdout, given),
    }
    if given.peer is not None:
        sides["peer"] = peer(base, given)
    rounds: list[dict[str, Any]] = []
    for number in range(given.rounds):
        # Each round begins with another side.
        names = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        rounds.append({name: timed(sides[name]) for name in names})
        print(
            f"round {number + 1}: " + ", ".join(f"{n} {rounds[-1][n]['wall_s']:.1f} s" for n in sides),
            file=sys.stderr,
        )
    result = {
        "command": f"python benchmarks/audit.py --rows {given.rows} --new-tokens {given.new_tokens} "
        f"--batch {given.batch} --rounds {given.rounds} --threads {given.threads}",
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "date": datetime.now(UTC).date().isoformat(),
        "notes": NOTES,
        "seconds": {n: {k: spread([r[n][k] for r in rounds]) for k in ("wall_s", "cpu_s")} for n in sides},
        "times_faster": {
            n: {k: spread([r[n][k] / r["shared"][k] for r in rounds]) for k in ("wall_s", "cpu_s")}
            for n in sides
            if n != "shared"
        },
        "figures": {n: rounds[-1][n]["figures"] for n in sides},
    }
    print(json.dumps(result))
    if given.write:
        target = Path(__file__).parent / "results" / "audit-cpu.md"
        target.write_text(markdown(result))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's forget10.json and so on")
    parser.add_argument("--forget", default="forget10")
    parser.add_argument("--holdout", default="retain90", help="rows that stand for those never seen")
    parser.add_argument("--peer", type=Path, help="checkout of open-unlearning")
    parser.add_argument("--rows", type=int, default=16, help="forget rows, and as many holdout rows")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/audit-cpu.md")
    given = parser.parse_args()
    if given.peer and not (given.peer / "src/evals/metrics/memorization.py").is_file():
        parser.error(f"{given.peer} is no checkout of open-unlearning: src/evals/metrics is missing")
    return given


def rows(path: Path, count: int) -> list[Item]:
    """``count`` rows spread over a file of TOFU."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    picked = [lines[i * len(lines) // count] for i in range(count)]
    return [Item(f"{path.stem}-{i}", row["question"], row["answer"]) for i, row in enumerate(picked)]


def timed(side: Callable[[], Found]) -> dict[str, Any]:
    started = time.perf_counter(), time.process_time()
    figures = side()
    return {
        "wall_s": time.perf_counter() - started[0],
        "cpu_s": time.process_time() - started[1],
        "figures": figures,
    }


def method(given: argparse.Namespace, batch: int) -> Method:
    return Method(max_new_tokens=given.new_tokens, generate_batch=batch, score_batch=batch)


def shared(base: Any, forget: list[Item], holdout: list[Item], given: argparse.Namespace) -> Found:
    """One pass: `efface audit run` with holdout rows."""
    how = method(given, given.batch)
    probes = [Probe(item, "forget") for item in forget]
    found = evaluate(
        base.model, base.tokenizer, probes, label="x", composition="x", precision="bf16", method=how
    ).rows
    held = [encode(base.tokenizer, item, chat=True) for item in holdout]
    scored = teacher_forced(base.model, base.tokenizer, held, how)
    theirs = [
        membership_of(s, base.tokenizer.decode(list(r.answer))) for s, r in zip(scored, held, strict=True)
    ]
    names = ("probability", "exact_memorization", "extraction_strength", "rouge_l")
    means = {name: float(np.mean([getattr(row, name) for row in found])) for name in names}
    return means | {
        f"mia_{name}": auc([getattr(r.membership, name) for r in found], [getattr(m, name) for m in theirs])
        for name in MIA
    }


def alone(base: Any, forget: list[Item], holdout: list[Item], given: argparse.Namespace) -> Found:
    """The loop that one writes first: every metric asks the model itself, row by row."""
    how = method(given, 1)
    encoded = {item.id: encode(base.tokenizer, item, chat=True) for item in (*forget, *holdout)}

    def score(item: Item) -> Any:
        return teacher_forced(base.model, base.tokenizer, [encoded[item.id]], how)[0]

    def member(item: Item, name: str) -> float:
        text = base.tokenizer.decode(list(encoded[item.id].answer))
        return getattr(membership_of(score(item), text), name)

    def said(item: Item) -> str:
        (answer,) = answer_rows(base.model, base.tokenizer, [encoded[item.id].prompt], how)
        return base.tokenizer.decode(list(answer), skip_special_tokens=True)

    metrics: dict[str, Callable[[Item], float]] = {
        "probability": lambda item: answer_probability(score(item).logps),
        "exact_memorization": lambda item: exact_memorization(score(item).hits),
        "extraction_strength": lambda item: extraction_strength(score(item).hits),
        "rouge_l": lambda item: rouge_l_recall(item.completion, said(item)),
    }
    found = {name: float(np.mean([of(item) for item in forget])) for name, of in metrics.items()}
    return found | {
        f"mia_{name}": auc([member(i, name) for i in forget], [member(i, name) for i in holdout])
        for name in MIA
    }


def peer(base: Any, given: argparse.Namespace) -> Callable[[], Found]:
    """open-unlearning's handlers on the same rows; loading its data is not timed."""
    import audit_peer

    scratch = tempfile.mkdtemp(prefix="efface-audit-peer-")
    items = {name: rows(given.data / f"{name}.json", given.rows) for name in (given.forget, given.holdout)}
    files = {}
    for name, some in items.items():
        files[name] = Path(scratch) / f"{name}.json"
        lines = [json.dumps({"question": item.prompt, "answer": item.completion}) for item in some]
        files[name].write_text("\n".join(lines))
    return audit_peer.side(
        str(given.peer),
        base,
        files[given.forget],
        files[given.holdout],
        scratch,
        given.new_tokens,
        given.batch,
    )


def markdown(result: dict[str, Any]) -> str:
    """The JSON's summary as a page."""

    def shown(value: dict[str, float], digits: int = 1) -> str:
        return f"{value['median']:.{digits}f} ({value['min']:.{digits}f}–{value['max']:.{digits}f})"

    lines = [
        "| side | wall s: median (min–max) | CPU s | shared pass is faster by: wall | CPU |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in result["seconds"].items():
        times = result["times_faster"].get(name)
        ratio = [f"{shown(times[key])}×" for key in ("wall_s", "cpu_s")] if times else ["–", "–"]
        lines.append(
            f"| {name} | {shown(seconds['wall_s'])} | {shown(seconds['cpu_s'])} | {' | '.join(ratio)} |"
        )
    names = list(result["figures"]["shared"])
    lines += [
        "",
        "| figure | " + " | ".join(result["figures"]) + " |",
        "|---" * (len(result["figures"]) + 1) + "|",
    ]
    lines += [
        f"| {n} | " + " | ".join(f"{f[n]:.4f}" for f in result["figures"].values()) + " |" for n in names
    ]
    about = f"{result['date']}, {result['machine']}, load {result['load_average']:.1f}. `{result['command']}`"
    notes = [f"- {note}" for note in result["notes"]]
    return (
        "\n".join(["# Audit: one shared pass against metric by metric", "", about, "", *lines, "", *notes])
        + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
