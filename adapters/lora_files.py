"""The two files of a PEFT LoRA folder, opened as hostile input: what they must be, before what they say."""

from __future__ import annotations

import json
import math
import mmap
import stat
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import InvalidAdapter
from .tensors import DTYPES, TensorSpec

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_PICKLE_NAME = "adapter_model.bin"
_LARGEST_CONFIG = 4 << 20
_ARRAYS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}
"""What NumPy calls the bytes of a tensor of this type."""


@dataclass(frozen=True, slots=True)
class FileMark:
    """What a file system says of a file: its identity, size and times, and the clock when it was asked."""

    inode: int
    size: int
    modified: int
    changed: int
    asked: int


_TICK = 100_000_000
"""Nanoseconds: a file system's clock is coarser than a write, so a file this young could change without a mark."""


def file_mark(file: Path) -> FileMark:
    """The mark of ``file``. Raises `InvalidAdapter` when it cannot be asked."""
    asked = time.time_ns()
    try:
        status = file.stat()
    except OSError as error:
        raise _unreadable(file, error) from error
    return FileMark(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, asked)


def unchanged(file: Path, mark: FileMark) -> bool:
    """True when ``file`` is certainly what it was at ``mark``: nobody can set back the time of a change (ctime).

    False when it changed, or was so young then that a change could have gone unmarked: then read it again.
    """
    now = file_mark(file)
    same = (now.inode, now.size, now.modified, now.changed) == (
        mark.inode,
        mark.size,
        mark.modified,
        mark.changed,
    )
    return same and mark.asked - mark.changed > _TICK


def read_config_text(folder: Path) -> bytes:
    """The bytes of the folder's config; raises `InvalidAdapter` when it is no regular file or over 4 MiB."""
    file = _regular(folder / CONFIG_NAME)
    try:
        with file.open("rb") as handle:
            text = handle.read(_LARGEST_CONFIG + 1)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(text) > _LARGEST_CONFIG:
        raise InvalidAdapter(f"{file}: expected at most {_LARGEST_CONFIG} bytes, got more; this is no config")
    return text


def weights_file(folder: Path) -> Path:
    """The path of the folder's weights; raises `InvalidAdapter` for a pickle, a link, or none at all."""
    file = folder / WEIGHTS_NAME
    if not file.exists() and (folder / _PICKLE_NAME).exists():
        raise InvalidAdapter(
            f"{folder / _PICKLE_NAME}: expected {WEIGHTS_NAME}, got a pickle, which can run code; it is "
            "never opened: save the adapter with safe_serialization=True"
        )
    return _regular(file)


def read_specs(folder: Path) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes from the safetensors header; no tensor is read."""
    with _opened(weights_file(folder)) as file:
        slices = {str(name): file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return {name: TensorSpec(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


@contextmanager
def open_tensors(folder: Path) -> Generator[Callable[[str], Tensor]]:
    """Map the folder's weights and yield a reader by tensor name (on CPU, in the dtype stored).

    A tensor is a view of the file: copy what is to be changed. Where each lies is checked here, what they hold is not
    (`efface.adapters.folder.read_adapter` does): the library's own reader takes ten times as long per tensor.
    """
    weights = weights_file(folder)
    data, layout = _mapped(weights)

    def read(name: str) -> Tensor:
        if name not in layout:
            raise InvalidAdapter(f"{weights}: expected {name}, got a file without it; do it again")
        dtype, shape, start = layout[name]
        if start % dtype.itemsize:  # a header that nobody padded: views must be aligned
            piece = bytearray(data[start : start + math.prod(shape) * dtype.itemsize])
            return torch.frombuffer(piece, dtype=dtype).reshape(shape)
        # By way of NumPy: a third of the time that torch takes for a view of a buffer. It has no bfloat16.
        array = np.ndarray(shape, _ARRAYS[dtype], data, start)
        return torch.from_numpy(array).view(dtype)

    yield read


_Layout = dict[str, tuple[torch.dtype, tuple[int, ...], int]]


def _mapped(weights: Path) -> tuple[mmap.mmap, _Layout]:
    """The file as private memory, and dtype, shape and first byte of each tensor in it."""
    try:
        with weights.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(data[:8], "little")
        entries = cast("dict[str, Any]", json.loads(data[8 : 8 + length]))
        return data, {
            name: _placed(entry, 8 + length, len(data))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(weights, error) from error


def _placed(entry: Mapping[str, Any], header: int, size: int) -> tuple[torch.dtype, tuple[int, ...], int]:
    dtype, shape, (start, end) = (
        DTYPES[entry["dtype"]],
        tuple(map(int, entry["shape"])),
        entry["data_offsets"],
    )
    start, end = header + start, header + end
    if min(shape, default=1) < 1 or start < header or end > size:
        raise ValueError("a tensor outside of the file")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError("a tensor of another size than its place")
    return dtype, shape, start


def _opened(weights: Path) -> Any:
    try:
        return safe_open(str(weights), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(weights, error) from error


def _regular(file: Path) -> Path:
    try:
        mode = file.lstat().st_mode
    except (OSError, ValueError) as error:
        raise InvalidAdapter(
            f"{file}: expected a file, got {error}; give the folder that PEFT's save_pretrained wrote"
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "something that is not a regular file"
        raise InvalidAdapter(
            f"{file}: expected a regular file, got {kind}; copy the file itself into the folder"
        )
    return file


def _unreadable(file: Path, error: Exception) -> InvalidAdapter:
    return InvalidAdapter(f"{file}: expected a whole, readable file, got {error}; copy or save it again")
