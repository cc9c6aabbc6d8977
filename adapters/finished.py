"""A finished run's weights and report, kept so that a later part of the same request can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from peft import PeftModel

from .checkpoint import (
    STATE,
    WEIGHTS,
    Checkpoints,
    clear,
    put_weights,
    read_state,
    read_tensors,
    write_state,
    write_weights,
)
from .errors import TrainingError
from .probing import ProbeReport, Stopped
from .watch import StepReport

Report = tuple[tuple[StepReport, ...], float, Stopped, int, tuple[ProbeReport, ...]]


def finish(
    model: PeftModel,
    checkpoints: Checkpoints,
    steps: Sequence[StepReport],
    seconds: float,
    stopped: Stopped,
    kept: int,
    probes: Sequence[ProbeReport],
) -> None:
    """Keep the weights that ``model`` has now and what led there; the run's checkpoints go."""
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    write_weights(model, checkpoints.folder / WEIGHTS)
    state: dict[str, Any] = {
        "key": checkpoints.key,
        "steps": [asdict(report) for report in steps],
        "seconds": seconds,
        "stopped": stopped,
        "kept": kept,
        "probes": [asdict(probe) for probe in probes],
    }
    write_state(checkpoints.folder, state)
    clear(checkpoints)


def finished(model: PeftModel, checkpoints: Checkpoints) -> Report | None:
    """The report of a run that finished before, its weights put on ``model``; None if it did not.

    Raises :class:`TrainingError` when the finished run is another one.
    """
    if not (checkpoints.folder / STATE).is_file():
        return None
    state = read_state(checkpoints.folder)
    if state["key"] != checkpoints.key:
        raise TrainingError(
            f"{checkpoints.folder}: expected this very run ({checkpoints.key[:19]}), got one of {state['key'][:19]}: "
            "the rows, the recipe, the base or efface itself changed; start again without --resume"
        )
    put_weights(model, read_tensors(checkpoints.folder / WEIGHTS))
    model.eval()
    return (
        tuple(StepReport(**report) for report in state["steps"]),
        state["seconds"],
        state["stopped"],
        state["kept"],
        tuple(ProbeReport(**probe) for probe in state["probes"]),
    )
