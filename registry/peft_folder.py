"""Reading a PEFT LoRA folder that may come from anyone: all of it is checked before any of it is used.

Taken are exactly `adapter_config.json` and `adapter_model.safetensors`. Other plain files (README.md) and
subfolders are left alone; links and pickles make the whole folder suspect and are refused.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from .canon import JSON, parse
from .errors import InvalidInput, RegistryError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_LIMITS = {CONFIG: 2**20, WEIGHTS: 2**33}
_HEADER_LIMIT = 2**26
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_MUST_BE_OFF = ("use_dora", "modules_to_save", "lora_bias", "layer_replication", "trainable_token_indices")
"""LoRA options that store or need more than a pair of matrices per module, so a stack cannot hold them."""


def read(folder: Path) -> dict[str, bytes]:
    """The two files of the adapter, checked. Raises InvalidInput."""
    if not folder.is_dir():
        raise InvalidInput("a PEFT adapter folder", "no such folder", "Pass the folder PEFT saved.")
    with os.scandir(folder) as entries:
        for entry in entries:
            _check_entry(entry)
    files = {name: _read_file(folder / name) for name in (CONFIG, WEIGHTS)}
    check_config(files[CONFIG])
    check_weights(files[WEIGHTS])
    return files


def check_config(data: bytes) -> None:
    """Raise InvalidInput unless `data` is the configuration of a plain LoRA."""
    try:
        config = parse(data)
    except RegistryError as error:
        raise _bad(CONFIG, "a JSON object", "no JSON") from error
    if not isinstance(config, Mapping):
        raise _bad(CONFIG, "a JSON object", "other JSON")
    if config.get("peft_type") != "LORA":
        raise _bad(CONFIG, 'peft_type "LORA"', "another type")
    rank = config.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise _bad(CONFIG, "a whole rank r of at least 1", "another value")
    on = [name for name in _MUST_BE_OFF if config.get(name)]
    if on or config.get("bias", "none") != "none":
        raise _bad(CONFIG, "a plain LoRA", f"{', '.join(on) or 'bias'} switched on")


def check_weights(data: bytes) -> None:
    """Raise InvalidInput unless `data` is a safetensors file of lora_A/lora_B pairs and nothing else."""
    header, body = _header(data)
    header.pop("__metadata__", None)
    shapes = {name: _check_tensor(name, entry) for name, entry in header.items()}
    _check_layout([entry["data_offsets"] for entry in header.values()], body)
    _check_pairs(shapes)


def _check_entry(entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        raise _bad(_shown(entry.name), "plain files", "a link")
    if entry.is_file() and Path(entry.name).suffix.lower() in _PICKLES:
        raise _bad(_shown(entry.name), "safetensors only", "a file that may hold a pickle")


def _read_file(path: Path) -> bytes:
    """No links, no pipes (O_NONBLOCK: opening one must not hang), no surprises in size."""
    limit = _LIMITS[path.name]
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise _bad(path.name, "a readable file", type(error).__name__) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= limit:
            raise _bad(path.name, f"a plain file of 1 to {limit} bytes", "something else")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(descriptor)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The parsed header and the size of the tensor bytes after it."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or not 2 <= length <= min(len(data) - 8, _HEADER_LIMIT):
        raise _bad(WEIGHTS, "a safetensors header within the file", "another length")
    try:
        header = parse(data[8 : 8 + length])
    except RegistryError as error:
        raise _bad(WEIGHTS, "a safetensors header in JSON", "no JSON") from error
    if not isinstance(header, dict):
        raise _bad(WEIGHTS, "a safetensors header in JSON", "other JSON")
    return header, len(data) - 8 - length


def _check_tensor(name: str, entry: JSON) -> tuple[int, int]:
    if not _TENSOR.fullmatch(name):
        raise _bad(WEIGHTS, "only tensors named ….lora_A.weight or ….lora_B.weight", "another tensor")
    fields = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
    dtype = fields.get("dtype")
    shape, offsets = _two(fields.get("shape"), 1), _two(fields.get("data_offsets"), 0)
    if dtype not in _DTYPE_BYTES or shape is None or offsets is None:
        raise _bad(WEIGHTS, "matrices of F64, F32, F16 or BF16", "another tensor")
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPE_BYTES[dtype]:
        raise _bad(WEIGHTS, "as many bytes as a tensor's shape needs", "another number")
    return shape


def _two(value: Any, least: int) -> tuple[int, int] | None:
    """The two whole numbers in `value`; None when it holds anything else."""
    if not isinstance(value, list) or len(cast(list[Any], value)) != 2:
        return None
    first, second = cast(list[Any], value)
    if type(first) is not int or type(second) is not int or min(first, second) < least:
        return None
    return first, second


def _check_layout(offsets: list[list[int]], size: int) -> None:
    """Tensors follow each other without overlap or hole: no byte of the file is left unexplained."""
    end = 0
    for first, last in sorted(offsets):
        if first != end:
            raise _bad(WEIGHTS, "tensors one after the other", "an overlap or a hole")
        end = last
    if end != size:
        raise _bad(WEIGHTS, f"{end} bytes of tensors", f"{size}")


def _check_pairs(shapes: Mapping[str, tuple[int, int]]) -> None:
    if not shapes:
        raise _bad(WEIGHTS, "at least one LoRA pair", "no tensor")
    for name, shape in shapes.items():
        module, _, side = name.removesuffix(".weight").rpartition(".lora_")
        other = shapes.get(f"{module}.lora_{'B' if side == 'A' else 'A'}.weight")
        if other is None or (side == "A" and shape[0] != other[1]):
            raise _bad(WEIGHTS, "lora_A (r, in) and lora_B (out, r) for every module", "a pair that differs")


def _bad(name: str, expected: str, came: str) -> InvalidInput:
    return InvalidInput(f"{expected} in {name}", came, "Save the adapter again with PEFT's save_pretrained.")


def _shown(name: str) -> str:
    """A file name that is safe in a message."""
    return ascii(name)[:80]
