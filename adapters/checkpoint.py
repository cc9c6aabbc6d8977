"""What a run leaves behind so that it can go on after Ctrl-C, a crash or SIGKILL, to the same weights.

A checkpoint is transformers' own folder (optimizer, schedule, random state), with the weights of the adapter in
training alone, as safetensors, and `efface.json` written last: a folder without it is half a checkpoint and is
passed over. No text of any row is in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import TrainingError
from .lora import ANCHOR, TRAINED
from .tensors import require_finite, safetensors_bytes, write_atomic

WEIGHTS, BEST, STATE = "trained.safetensors", "best.safetensors", "efface.json"
_WHOLE = (WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", STATE)
_STEP = re.compile(r"checkpoint-(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a run keeps its checkpoints: ``folder`` is the run's own.

    ``key``: the digest of everything that decides the weights; a checkpoint of another key is refused.
    ``every``: steps from one to the next. ``resume``: go on from the newest instead of starting anew.
    """

    folder: Path
    key: str
    every: int = 10
    resume: bool = False


def newest(checkpoints: Checkpoints) -> Path | None:
    """The newest whole checkpoint to go on from; None where there is none. Raises :class:`TrainingError` when it
    belongs to another run."""
    steps = {
        int(match[1]): path
        for path in checkpoints.folder.glob("checkpoint-*")
        if (match := _STEP.fullmatch(path.name)) and all((path / name).is_file() for name in _WHOLE)
    }
    if not steps:
        return None
    path = steps[max(steps)]
    if (key := read_state(path)["key"]) != checkpoints.key:
        raise TrainingError(
            f"{path}: expected a checkpoint of this very run ({checkpoints.key[:19]}), got one of {key[:19]}: "
            "the rows, the recipe, the base or efface itself changed; start again without --resume"
        )
    return path


def clear(checkpoints: Checkpoints) -> None:
    """Remove the run's checkpoints: it starts anew, or is over.

    The mark of a whole one goes first: what a kill leaves of the rest is passed over.
    """
    for path in checkpoints.folder.glob("checkpoint-*"):
        (path / STATE).unlink(missing_ok=True)
        shutil.rmtree(path)


def forget_finished(checkpoints: Checkpoints) -> None:
    """Take away what `finish` left of an earlier run in this folder."""
    (checkpoints.folder / STATE).unlink(missing_ok=True)
    (checkpoints.folder / WEIGHTS).unlink(missing_ok=True)


def trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """The parameters of the adapter in training, by their names in the model, as they are."""
    return {name: p for name, p in model.named_parameters() if "lora_" in name and f".{TRAINED}." in name}


def write_weights(model: PeftModel, path: Path) -> None:
    """Write the adapter in training, and its anchor. Raises :class:`InvalidAdapter` for values that are not
    finite."""
    tensors = {name: value.detach().cpu() for name, value in _own_weights(model).items()}
    for name, value in tensors.items():
        require_finite(name, value)
    write_tensors(tensors, path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write ``tensors``, whole or not at all."""
    write_atomic(path, [safetensors_bytes({name: value.contiguous() for name, value in tensors.items()})])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrainingError(
            f"{path}: expected a whole checkpoint, got {error}; start without --resume"
        ) from error


@torch.no_grad()
def put_weights(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Give the adapter in training (and its anchor, if it is among them) the values of ``tensors``; raises
    :class:`TrainingError` unless they fit."""
    ours = _own_weights(model)
    fit = all(name in ours and ours[name].shape == value.shape for name, value in tensors.items())
    if not fit or not trained_weights(model).keys() <= tensors.keys():
        raise TrainingError("the checkpoint is of an adapter of another shape: start again without --resume")
    for name, value in tensors.items():
        ours[name].copy_(value)


def _own_weights(model: PeftModel) -> dict[str, Tensor]:
    names = (f".{TRAINED}.", f".{ANCHOR}.")
    return {
        name: p for name, p in model.named_parameters() if "lora_" in name and any(n in name for n in names)
    }


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Mark ``path`` as whole."""
    write_atomic(path / STATE, [json.dumps(state, sort_keys=True).encode()])


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote."""
    try:
        return json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path}: expected a whole checkpoint, got {error}; start without --resume"
        ) from error
