"""TOFU's figures on the evaluation logs that were published with papers: ours against what their own code makes of
the same rows, and against what stands in the logs.

The logs are other people's data and not in this repository. To run these tests, check out one or more of

    https://github.com/locuslab/tofu                                 (TOFU, arXiv 2401.06121)
    https://github.com/licong-lin/negative-preference-optimization   (NPO, arXiv 2404.05868)
    https://github.com/molereddy/Alternate-Preference-Optimization   (AltPO, arXiv 2409.13474)

and name the folders in EFFACE_TOFU_LOGS (several as in PATH). Two functions of each checkout are executed, by name:
`get_model_utility` and `get_forget_quality`.
"""

import ast
import csv
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp

from efface.audits.metrics import rouge_l_recall
from efface.audits.truth import (
    choice_probabilities,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    retain_truth_ratio,
    truth_ratios,
)

LOGS = "EFFACE_TOFU_LOGS"
FORGET, RETAIN = "eval_log_forget.json", "eval_log.json"
AUTHORS, WORLD = "eval_real_author_wo_options.json", "eval_real_world_wo_options.json"
NAMES = {RETAIN: "Retain", AUTHORS: "Real Authors", WORLD: "Real World", FORGET: "Forget"}
# Where the functions stand.
CODE = ("aggregate_eval_stat.py", "utils.py")


def found() -> Iterator[Path]:
    for folder in filter(None, os.environ.get(LOGS, "").split(os.pathsep)):
        yield from sorted(Path(folder).rglob("eval_log_aggregated.json"))


FILES = list(found())
needs_logs = pytest.mark.skipif(
    not FILES, reason=f"no published evaluation logs: set {LOGS} to a checkout, see this file's first lines"
)
each_log = pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-5:-3]))


# --- their rows, our figures


def values(found: dict[str, Any] | list[Any]) -> list[Any]:
    """A figure of every row: the two repositories write them as dict or as list."""
    return list(found.values()) if isinstance(found, dict) else found


@cache
def rows(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{file: {figure: values by row}}."""
    loaded = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: {key: np.array(values(found)) for key, found in figures.items() if key != "generated_text"}
        for name, figures in loaded.items()
    }


def ratios(log: dict[str, np.ndarray], average: Any = "geometric") -> np.ndarray:
    return truth_ratios(-log["avg_paraphrased_loss"], -log["average_perturb_loss"], average=average)


def figures(path: Path, average: Any = "geometric") -> dict[str, float]:
    """What `get_model_utility` returns, by its names, from our functions."""
    made: dict[str, float] = {}
    for name, said in NAMES.items():
        log = rows(path)[name]
        plain = np.exp(-log["avg_gt_loss"])
        chosen = choice_probabilities(-log["avg_gt_loss"], -log["average_perturb_loss"])
        made[f"{said} Probability"] = float((chosen if name in (AUTHORS, WORLD) else plain).mean())
        made[f"{said} ROUGE"] = float(log["rougeL_recall"].mean())
        kind = forget_truth_ratio if name == FORGET else retain_truth_ratio
        made[f"{said} Truth Ratio"] = kind(ratios(log, average))
    made["Model Utility"] = model_utility([value for key, value in made.items() if "Forget" not in key])
    return made


# --- their code


def functions(source: Path) -> dict[str, Callable[..., Any]]:
    """`get_model_utility` and `get_forget_quality` as they stand in ``source``, without what it imports."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    wanted = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in ("get_model_utility", "get_forget_quality")
    ]
    space: dict[str, Any] = {"np": np, "hmean": hmean, "ks_2samp": ks_2samp}
    exec(compile(ast.Module(wanted, []), str(source), "exec"), space)
    return {node.name: space[node.name] for node in wanted}


def sources(path: Path) -> list[Path]:
    """The files beside the logs' `data` folder that hold the functions."""
    root = next(parent.parent for parent in path.parents if parent.name == "data")
    return [root / name for name in CODE if (root / name).is_file()]


def loaded(path: Path) -> dict[str, Any]:
    logs = json.loads(path.read_text(encoding="utf-8"))
    for log in logs.values():
        # NPO's code wants a divergence that NPO's logs lack; no figure compared here depends on it.
        log.setdefault("kl_divergence", [0.0])
    return logs


def renamed(theirs: dict[str, float]) -> dict[str, float]:
    """`aggregate_eval_stat.py` says "Prob. Retain" where `utils.py` says "Retain Probability"."""
    short = {"Prob.": "Probability", "ROUGE": "ROUGE", "Truth Ratio": "Truth Ratio"}
    swapped = {f"{kind} {name}": f"{name} {long}" for kind, long in short.items() for name in NAMES.values()}
    return {swapped.get(key, key): float(value) for key, value in theirs.items()}


def averages(source: Path) -> str:
    """TOFU's `utils.py` averages the probabilities of wrong answers, all others their logarithms."""
    arithmetic = "np.array(avg_perturbed_np_values)).mean(-1)" in source.read_text(encoding="utf-8")
    return "arithmetic" if arithmetic else "geometric"


# --- the comparisons


@needs_logs
@each_log
def test_utility_and_truth_ratios_are_what_their_code_gives(path: Path) -> None:
    assert sources(path)
    for source in sources(path):
        theirs = renamed(functions(source)["get_model_utility"](loaded(path)))
        ours = figures(path, averages(source))
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], abs=1e-6), (source.name, name)


@needs_logs
@each_log
def test_forget_quality_is_what_their_code_gives(path: Path) -> None:
    ours = ratios(rows(path)[FORGET])
    root = sources(path)[0].parent
    others = [other for other in FILES if other.is_relative_to(root)]
    same = [other for other in others if len(rows(other)[FORGET]["avg_gt_loss"]) == len(ours)]
    for source, other in product(sources(path), same):
        theirs = functions(source)["get_forget_quality"](loaded(path), loaded(other))
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        quality = forget_quality(ours, ratios(rows(other)[FORGET]), n=1)
        assert quality.p_value == pytest.approx(theirs["Forget Quality"], rel=1e-6)
        assert quality.statistic == pytest.approx(theirs["KS Test Forget"], abs=1e-6)


@needs_logs
@each_log
def test_figures_of_single_rows_are_those_in_the_logs(path: Path) -> None:
    """Where a log has a row's truth ratio or normalised loss, written by the evaluation in float32."""
    for name, log in rows(path).items():
        if "truth_ratio" in log:
            np.testing.assert_allclose(ratios(log), log["truth_ratio"], rtol=2e-5, err_msg=name)
        if "normalized_gt_loss" in log:
            chosen = choice_probabilities(-log["avg_gt_loss"], -log["average_perturb_loss"])
            np.testing.assert_allclose(-np.log(chosen), log["normalized_gt_loss"], atol=1e-6, err_msg=name)


@needs_logs
@each_log
def test_rouge_of_single_answers_is_that_in_the_logs(path: Path) -> None:
    """On answers of plain ASCII: for others `rouge_score` drops the letters that ours keeps."""
    for name, log in json.loads(path.read_text(encoding="utf-8")).items():
        texts, scores = (values(log[key]) for key in ("generated_text", "rougeL_recall"))
        plain = [(i, *said[1:3]) for i, said in enumerate(texts) if "".join(said[1:3]).isascii()]
        assert len(plain) > 0.7 * len(texts), "a test of hardly any row says nothing"
        for i, said, truth in plain:
            assert rouge_l_recall(truth, said) == pytest.approx(scores[i], abs=1e-9), (name, i)


@needs_logs
@each_log
def test_published_tables_are_met_to_their_last_digit(path: Path) -> None:
    """AltPO's results.csv, three decimals; other repositories publish no aggregates."""
    table = path.with_name("results.csv")
    if not table.is_file():
        pytest.skip("no aggregates were published beside this log")
    (published,) = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    for name, value in figures(path).items():
        assert round(value, 3) == pytest.approx(float(published[name]), abs=1e-9), name
    own = ratios(rows(path)[FORGET])
    quality = forget_quality(own, own, n=1)
    assert (quality.p_value, quality.statistic) == (
        float(published["Forget Quality"]),
        float(published["KS Test Forget"]),
    )
