"""What becomes of a tensor in a merge: read and hashed in one pass, left as it is, or changed in float32.

Matrices are changed some rows at a time, so what is computed stays in the processor's cache and needs no memory that
grows with the model. The passes over a matrix are then few: read, product, sum, rounding, check, hash, write.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

from .checkpoint_files import Shard, Stored
from .compose import Stack, stacked_reader
from .errors import InvalidAdapter, ModelError
from .folder import a_key, b_key
from .lora_files import open_tensors
from .quantized_files import as_computed, is_quantized, is_turned
from .tensors import DTYPES, Hashing, fill, require_finite

_PIECE = 4 << 20
"""Bytes read at once of a tensor to which nothing happens."""
_MASK = ".masked_bias"
"""Old checkpoints of GPT-J and its kin hold one per layer, which nobody loads."""
_BLOCK = 1 << 18
"""Values changed at once: with their product, in float32, as much as a second-level cache holds."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to every tensor of a ``model_type``: ``targets`` maps those that change to modules of ``stack``."""

    stack: Stack
    targets: Mapping[str, str]
    model_type: str
    onto: str
    requantize: str | None

    def turned(self, tensor: Stored) -> bool:
        """True where the matrix is stored as (in, out)."""
        return is_turned(tensor.name, self.model_type)

    def keeps(self, tensor: Stored) -> bool:
        """True for a tensor whose bytes stay what they are, as long as nothing is quantized again."""
        dequantized = self.onto != "original" and is_linear(tensor)
        return tensor.name not in self.targets and not dequantized


def is_linear(tensor: Stored) -> bool:
    """True for a matrix of floats that a quantized base quantizes."""
    return tensor.dtype in DTYPES and is_quantized(tensor.name, tensor.shape)


@dataclass(frozen=True, slots=True)
class Source:
    """A shard that is read once, its tensors in file order, and hashed with the header as it is read."""

    shard: Shard
    file: BinaryIO
    running: Hashing

    def pieces(self, tensor: Stored) -> Iterator[memoryview]:
        """The bytes of ``tensor``, each piece in memory of its own.

        Raises `ModelError` when the file ends early, and for weights of a dtype in `DTYPES` that are not finite.
        """
        for start in range(tensor.start, tensor.end, _PIECE):
            raw = self._read(tensor, min(_PIECE, tensor.end - start))
            if tensor.dtype in DTYPES:
                _require_sound(tensor.name, raw.view(DTYPES[tensor.dtype]))
            yield raw.numpy().data

    def whole(self, tensor: Stored) -> Tensor:
        """``tensor``, of a dtype in `DTYPES`, whatever its values. Do not change it: it may still be in hashing.

        Raises `ModelError` when the file ends early.
        """
        raw = self._read(tensor, tensor.end - tensor.start)
        return raw.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def _read(self, tensor: Stored, size: int) -> Tensor:
        raw = torch.empty(size, dtype=torch.uint8)
        piece = raw.numpy().data
        if not fill(self.file, piece):
            raise ModelError(
                f"{self.shard.path}: expected {tensor.name} whole, got a shorter file; fetch it again"
            )
        self.running.update(piece)
        return raw


@contextmanager
def source(shard: Shard, running: Hashing) -> Generator[Source]:
    """Open ``shard`` behind its header, which ``running`` is given first."""
    running.update(shard.header)
    with shard.path.open("rb", buffering=0) as file:
        file.seek(len(shard.header))
        yield Source(shard, file, running)


@dataclass(frozen=True, slots=True)
class Changes:
    """What `Job` makes of single tensors; ``read`` gives the factors of its stack."""

    job: Job
    read: Callable[[str], Tensor]

    def __call__(self, tensor: Stored, weight: Tensor) -> Tensor:
        """``weight`` as the base computes with it, with its delta. Raises `InvalidAdapter` for one not finite.

        And `ModelError` where that is so in the base already.
        """
        if self.job.keeps(tensor) and not is_linear(tensor):
            _require_sound(tensor.name, weight)
            return weight
        made = weight
        if self.job.onto != "original" and is_linear(tensor):
            _require_sound(tensor.name, weight)  # quantizing turns NaN into numbers
            made = weight = as_computed(weight, self.job.onto, turned=self.job.turned(tensor))
        if (module := self.job.targets.get(tensor.name)) is not None:
            a, b = self.read(a_key(module)), self.read(b_key(module))
            made = added(weight, *((a.T, b.T) if self.job.turned(tensor) else (b, a)))
        try:
            require_finite(tensor.name, made)
        except InvalidAdapter:
            _require_sound(tensor.name, weight)
            raise
        return made


def _require_sound(name: str, weight: Tensor) -> None:
    """Raise `ModelError` where the base itself is not finite, but for a mask: -1e9 is infinite in float16."""
    if name.endswith(_MASK):
        return
    try:
        require_finite(name, weight)
    except InvalidAdapter as error:
        bad = int((~torch.isfinite(weight)).sum())
        raise ModelError(
            f"{name}: expected finite weights in the base, got {bad} NaN or infinite of {weight.numel()} read; "
            "fetch it again"
        ) from error


@contextmanager
def changes(job: Job) -> Generator[Changes]:
    """Open the adapters of ``job``."""
    with ExitStack() as files:
        parts = job.stack.parts
        readers = [files.enter_context(open_tensors(part.adapter.path)) for part in parts]
        yield Changes(job, stacked_reader(job.stack, readers))


def added(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``weight + left @ right`` in float32, rounded once to the dtype of ``weight``: (n, m), (n, r), (r, m)."""
    out = torch.empty_like(weight)
    rows = max(1, _BLOCK // max(1, weight.shape[1]))
    product, total = torch.empty(2, min(rows, weight.shape[0]), weight.shape[1], dtype=torch.float32)
    for start in range(0, weight.shape[0], rows):
        here = slice(start, min(start + rows, weight.shape[0]))
        size = here.stop - here.start
        torch.mm(left[here], right, out=product[:size])
        out[here] = total[:size].copy_(weight[here]).add_(product[:size])
    return out
