"""Utility by other people's tasks: lm-evaluation-harness, on a model that is loaded already.

It is asked for only where a suite names tasks: `pip install 'efface[lm-eval]'`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .errors import AuditError
from .forced import Model
from .strict_yaml import read_mapping


class HarnessError(AuditError):
    """lm-evaluation-harness is not installed, knows no such task, or could not run it."""


def lm_eval_figures(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    batch_size: int = 16,
    seed: int = 0,
    limit: int | None = None,
) -> dict[str, float]:
    """``<task>/<metric>`` → value of each of ``tasks``: names that the harness knows, or its YAML files.

    The model is measured as it is, adapters included. Raises `HarnessError`.
    """
    harness, wrapped, manager = _imported()
    files = {name: Path(name) for name in tasks if name.endswith((".yaml", ".yml"))}
    names = [_task_name(files[name]) if name in files else name for name in tasks]
    # Its own thousands of tasks are looked through only where one of them is asked for.
    known = manager(
        include_path=sorted({str(path.resolve().parent) for path in files.values()}) or None,
        include_defaults=len(files) < len(tasks),
    )
    if unknown := [name for name in names if name not in known.all_tasks]:
        raise HarnessError(
            f"lm-eval has no task {', '.join(unknown)}: expected a name of `lm-eval ls tasks`, or a task's YAML file"
        )
    seeds = dict.fromkeys(
        ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed
    )
    try:
        found: Any = harness.simple_evaluate(
            model=wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            task_manager=known,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            **seeds,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise HarnessError(f"lm-eval did not run {', '.join(names)}: {first[:300]}") from error
    return _numbers(found["results"])


def _imported() -> tuple[Any, Any, Any]:
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise HarnessError(
            f"the part lm-eval needs lm-evaluation-harness, and {error.name or 'it'} is not installed: "
            "pip install 'efface[lm-eval]'"
        ) from error
    return lm_eval, HFLM, TaskManager


def _task_name(path: Path) -> str:
    try:
        name = read_mapping(path, "a task of lm-evaluation-harness").get("task")
    except ValueError as error:
        raise HarnessError(str(error)) from None
    if not isinstance(name, str) or not name:
        raise HarnessError(f"{path}: expected a task of lm-evaluation-harness with a `task:` name, got none")
    return name


def _numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What is a figure of them: ``acc,none`` is ``acc``; standard errors, names and counts are none."""
    found: dict[str, float] = {}
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, form = key.partition(",")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not form or metric.endswith("_stderr") or not number or not math.isfinite(value):
                continue
            found[f"{task}/{metric}" if form == "none" else f"{task}/{metric} ({form})"] = float(value)
    if not found:
        raise HarnessError(f"lm-eval gave no figure for {', '.join(results)}: expected a task with a metric")
    return found
