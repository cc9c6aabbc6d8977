"""Errors of `efface.adapters`.

AdapterError
├── InvalidAdapter   a LoRA folder that is broken, unsafe or of a kind efface does not compose
├── CompositionError parts, weights or an output place from which no composition can be made
├── BaseMismatch     adapters, or an adapter and a model, that belong to different bases
├── ModelError       a base model or tokenizer that is absent, broken or unsuitable
├── TrainingError    a run that cannot start or must not go on
└── ObjectiveError   a loss called with arguments that make no sense

`Interrupted` is a KeyboardInterrupt: Ctrl-C, with a checkpoint to go on from.
"""

from pathlib import Path

import torch


class AdapterError(Exception):
    """Something about models or adapters that the caller can put right; the message says how."""


class InvalidAdapter(AdapterError):
    """A LoRA folder that is broken, unsafe or of a kind efface does not compose."""


class CompositionError(AdapterError):
    """Parts, weights or an output place from which no composition can be made."""


class BaseMismatch(AdapterError):
    """Adapters, or an adapter and a model, that belong to different bases."""


class ModelError(AdapterError):
    """A base model or tokenizer that is absent, broken or unsuitable."""


class TrainingError(AdapterError):
    """A training run that cannot start or must not go on."""


class ObjectiveError(AdapterError):
    """A loss called with arguments that make no sense."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a training run after a whole step; its checkpoint is in ``folder``."""

    def __init__(self, step: int, folder: Path) -> None:
        super().__init__(f"interrupted after step {step}; go on with --resume")
        self.step, self.folder = step, folder


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is torch's or Python's way to say so; torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
