"""A finished run's weights and report, kept so that a later part of the same request can be resumed."""

from __future__ import annotations

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
from .probing import ProbeReport
from .watch import StepReport, TrainResult


def finish(model: PeftModel, checkpoints: Checkpoints, result: TrainResult) -> None:
    """Keep the weights that ``model`` has now and what led there; the run's checkpoints go."""
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    write_weights(model, checkpoints.folder / WEIGHTS)
    write_state(checkpoints.folder, {**asdict(result), "key": checkpoints.key})
    clear(checkpoints)


def finished(model: PeftModel, checkpoints: Checkpoints) -> TrainResult | None:
    """The result of a run that finished before, its weights put on ``model``; None if it did not.

    Raises :class:`TrainingError` when the finished run is another one.
    """
    if not (checkpoints.folder / STATE).is_file():
        return None
    state: dict[str, Any] = read_state(checkpoints.folder)
    if (key := state.pop("key")) != checkpoints.key:
        raise TrainingError(
            f"{checkpoints.folder}: expected this very run ({checkpoints.key[:19]}), got one of {key[:19]}: "
            "the rows, the recipe, the base or efface itself changed; start again without --resume"
        )
    put_weights(model, read_tensors(checkpoints.folder / WEIGHTS))
    model.eval()
    steps = tuple(StepReport(**report) for report in state.pop("steps"))
    probes = tuple(ProbeReport(**probe) for probe in state.pop("probes"))
    return TrainResult(steps=steps, probes=probes, **state)
