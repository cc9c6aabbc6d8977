"""The files of a checkpoint as Hugging Face lays them out: shards, index, and everything that is not weights."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .errors import ModelError

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".msgpack", ".h5", ".ot", ".gguf")
_HEADER_LIMIT = 1 << 28


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a shard: its safetensors dtype, shape, and place after the header, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its header as it is on disk, length included, and its tensors in file order."""

    path: Path
    header: bytes
    tensors: tuple[Stored, ...]


def shards(folder: Path) -> list[Shard]:
    """The weight files of a checkpoint, headers read. Raises `ModelError` for one that is missing or broken."""
    index = folder / INDEX
    if not index.exists():
        return [read_shard(folder / _SINGLE)]
    listed = _weight_map(index)
    found = [read_shard(folder / name) for name in sorted(set(listed.values()))]
    there = {tensor.name for shard in found for tensor in shard.tensors}
    if set(listed) != there:
        example = sorted(set(listed) ^ there)[0]
        raise ModelError(
            f"{index}: expected the tensors of its shards, got another list ({example}); fetch it again"
        )
    return found


def read_shard(path: Path) -> Shard:
    """A safetensors file's header. Raises `ModelError` unless its tensors fill it from end to end."""
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not stat.S_ISREG(mode) or not 2 <= length <= _HEADER_LIMIT:
                raise ModelError(f"{path}: expected a safetensors file, got something else; fetch it again")
            text = file.read(length)
        entries = cast("dict[str, Any]", json.loads(text))
        tensors = [
            Stored(name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
            for name, entry in entries.items()
            if name != "__metadata__"
        ]
    except FileNotFoundError:
        raise ModelError(
            f"{path}: expected a shard of the checkpoint, got no file; fetch the model again"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: expected a whole safetensors file, got {error}; fetch it again") from error
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _require_contiguous(path, tensors, path.stat().st_size - 8 - length)
    return Shard(path, length.to_bytes(8, "little") + text, tuple(tensors))


def others(folder: Path) -> list[Path]:
    """Config, tokenizer, generation config and the like: plain files that are neither weights nor a card.

    Pickles, hidden files and links are left behind, but for those into the Hub cache that the folder is part of.
    """
    return [
        file
        for file in sorted(folder.iterdir())
        if (stat.S_ISREG(file.lstat().st_mode) or _in_hub_cache(file))
        and not file.name.startswith(".")
        and file.suffix not in (".safetensors", *_PICKLES)
        and file.name not in ("README.md", INDEX)
    ]


def _in_hub_cache(file: Path) -> bool:
    """True for a link as `huggingface_hub` makes them: from snapshots/<revision> to a file in blobs."""
    target = file.resolve()
    return target.is_file() and target.parent == file.parent.resolve().parent.parent / "blobs"


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        names = cast("dict[str, Any]", json.loads(index.read_bytes()))["weight_map"]
        plain = {str(name): str(file) for name, file in names.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index}: expected an index with a weight_map, got {error}; fetch it again"
        ) from error
    for file in plain.values():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{index}: expected names of safetensors files beside it, got {file[:80]!r}")
    return plain


def _require_contiguous(path: Path, tensors: list[Stored], size: int) -> None:
    end = 0
    for tensor in tensors:
        if tensor.start != end or tensor.end < tensor.start:
            raise ModelError(f"{path}: expected tensors one after the other, got a gap at {tensor.name}")
        end = tensor.end
    if end != size:
        raise ModelError(f"{path}: expected {end} bytes of tensors, got {size}; fetch it again")
