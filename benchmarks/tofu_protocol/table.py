"""From run records to one page: a row per recipe, median (lowest-highest) over seeds, and whether targets are met."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Figure = Callable[[Record], float]

COLUMNS: tuple[tuple[str, Figure, int], ...] = (
    ("forget prob", lambda r: r["forget"]["probability"], 3),
    ("forget ES", lambda r: r["forget"]["extraction_strength"], 3),
    ("forget ROUGE-L", lambda r: r["forget"]["rouge_l"], 3),
    ("forget truth ratio", lambda r: r["forget"]["truth_ratio"], 3),
    ("KS D", lambda r: r["forget"]["quality"]["statistic"], 3),
    ("KS p", lambda r: r["forget"]["quality"]["p_value"], 3),
    ("retain prob", lambda r: r["retain"]["probability"], 3),
    ("retain ROUGE-L", lambda r: r["retain"]["rouge_l"], 3),
    ("retain truth ratio", lambda r: r["retain"]["truth_ratio"], 3),
    ("utility", lambda r: r["utility"], 3),
    ("mean of its nine", lambda r: _mean_of_nine(r), 3),
    ("fluency", lambda r: r["forget"]["fluency"], 2),
    ("gibberish", lambda r: r["forget"]["gibberish"], 3),
)
COSTS: tuple[tuple[str, Figure, int], ...] = (
    ("train s", lambda r: r["training"]["seconds"], 1),
    ("CPU s", lambda r: r["training"]["cpu_seconds"], 1),
    ("s/step", lambda r: r["training"]["seconds_per_step"], 2),
    ("peak GiB", lambda r: r["training"]["peak_gib"], 2),
)
# Issue targets; fluent is ours to say: nearly as varied as the retain-only model, and hardly more gibberish.
ROUGE_WITHIN, RETAIN_KEPT, FLUENCY_KEPT, MORE_GIBBERISH = 0.05, 0.95, 0.9, 0.05


@dataclass(frozen=True, slots=True)
class Against:
    """The two models every run is held against, at the same precision."""

    full: Record
    retain: Record


def targets(record: Record, against: Against) -> dict[str, bool]:
    """Which targets one run meets: forget ROUGE-L, retain probability, fluent generations."""
    forget, goal = record["forget"], against.retain["forget"]
    return {
        "ROUGE": abs(forget["rouge_l"] - goal["rouge_l"]) <= ROUGE_WITHIN,
        "retain": record["retain"]["probability"] >= RETAIN_KEPT * against.full["retain"]["probability"],
        "fluent": forget["fluency"] >= FLUENCY_KEPT * goal["fluency"]
        and forget["gibberish"] <= goal["gibberish"] + MORE_GIBBERISH,
    }


def summary(name: str, runs: Sequence[Record], against: Against) -> dict[str, Any]:
    """One row as data: for each figure its median, lowest and highest over ``runs``, and the targets met."""
    unlearned = all("training" in run for run in runs)
    columns = (*COLUMNS, *(COSTS if unlearned else ()))
    met = [targets(run, against) for run in runs] if unlearned else []
    ordered = sorted(runs, key=COLUMNS[4][1])
    quality = ordered[(len(ordered) - 1) // 2]["forget"]["quality"]
    return {
        "name": name,
        "precision": runs[0]["precision"],
        "seeds": [run["seed"] for run in runs],
        "figures": {label: _spread([figure(run) for run in runs]) for label, figure, _ in columns},
        "ks_interval": {
            "of_seed_with_D": quality["statistic"],
            "low": quality["low"],
            "high": quality["high"],
        },
        "met": {key: sum(one[key] for one in met) for key in (met[0] if met else ())},
        "met_all": sum(all(one.values()) for one in met),
    }


def page(
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    split: Mapping[str, int],
    memorising: str,
    about: Record,
    failed: Sequence[str] = (),
    note: str = "",
) -> str:
    """The markdown page of the summaries ``rows``, Full and Retain first."""
    digits = {label: places for label, _, places in (*COLUMNS, *COSTS)}
    labels = [label for label, _, _ in (*COLUMNS, *COSTS)]
    head = ["", "n", *labels, "D, 95 % interval over rows", "targets met"]
    lines = [
        "# TOFU on SmolLM2-135M-Instruct, CPU subset",
        "",
        *_preamble(command, split, memorising, about),
        *([note] if note else []),
        "",
        _line(head),
        _line(["---"] * len(head)),
        *(_line(_cells(row, labels, digits)) for row in rows),
        "",
        *(
            ["Runs without a result, which registered nothing:", "", *(f"- {one}" for one in failed), ""]
            if failed
            else []
        ),
        *_notes(),
    ]
    return "\n".join(lines) + "\n"


def _preamble(command: str, split: Mapping[str, int], memorising: str, about: Record) -> list[str]:
    sizes = ", ".join(f"{count} {name}" for name, count in split.items())
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        f"Measured {about['date']} with `{command}` on {about['machine']}; {versions}.",
        f"Rows: {sizes}. The models before (Full) and without the forget rows (Retain) are full fine-tunings of the "
        f"same base ({memorising}); runs are LoRAs on Full, which is loaded at the precision named in each row.",
    ]


def _notes() -> list[str]:
    return [
        "Median (lowest-highest) over seeds. Targets, against Full and Retain at the same precision: **ROUGE** forget "
        f"ROUGE-L within {ROUGE_WITHIN} of Retain's, on either side; **retain** answer probability at least "
        f"{RETAIN_KEPT:g} of Full's; **fluent** n-gram entropy at least {FLUENCY_KEPT:g} of Retain's and at most "
        f"{MORE_GIBBERISH:g} more gibberish. The count is of seeds that meet each, and all three at once.",
        "",
        "ES: extraction strength. Truth ratio: on forget rows 1 is best, on the others 1 - ratio, more is better "
        "(against three of TOFU's five perturbed answers). KS: truth ratios of the forget rows against "
        "Retain's; p is TOFU's forget quality, comparable only at this number of rows. Utility: harmonic mean of "
        "TOFU's nine figures, on the subsets above, not on the whole sets; 0 where one of the nine is 0, as is already "
        "the ROUGE-L of Full on real authors; so the arithmetic mean of the nine stands beside it. "
        "Gibberish: share of forget answers without a letter, going in circles, or very odd to the original model. "
        "Peak: resident memory while training (of the GPU where one is used). Definitions: `audits/truth.py`, "
        "`audits/metrics.py`, `benchmarks/tofu_protocol/evaluate.py`.",
    ]


def _mean_of_nine(record: Record) -> float:
    """Of probability, ROUGE-L and truth score on retain rows, real authors and world facts."""
    sides = (record[side] for side in ("retain", "authors", "world"))
    return statistics.fmean(side[key] for side in sides for key in ("probability", "rouge_l", "truth_ratio"))


def _cells(row: Mapping[str, Any], labels: Sequence[str], digits: Mapping[str, int]) -> list[str]:
    interval, n = row["ks_interval"], len(row["seeds"])
    met = ", ".join(f"{key} {count}/{n}" for key, count in row["met"].items())
    return [
        f"{row['name']} ({row['precision']})",
        str(n),
        *(_cell(row["figures"].get(label), digits[label]) for label in labels),
        f"{interval['low']:.2f} to {interval['high']:.2f}",
        f"**{row['met_all']}/{n}**: {met}" if met else "–",
    ]


def _cell(spread: Mapping[str, float] | None, places: int) -> str:
    if spread is None:
        return "–"
    low, high = (_number(spread[key], places) for key in ("min", "max"))
    middle = _number(spread["median"], places)
    return middle if low == high else f"{middle} ({low}–{high})"


def _number(value: float, places: int) -> str:
    """A p-value of 1e-13 is not 0.000."""
    return f"{value:.1e}" if 0 < value < 10**-places else f"{value:.{places}f}"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
