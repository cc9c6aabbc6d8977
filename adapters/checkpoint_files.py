"""The files of a checkpoint as Hugging Face lays them out: shards, index, and what stands beside them."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from .errors import ModelError
from .model import ModelFiles

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
CHAT_TEMPLATES = "additional_chat_templates"
_CARRIED = re.compile(
    r"""generation_config\.json | (pre)?processor_config\.json | chat_template\.json | \w[\w.-]*\.jinja
    | (special_tokens_map|added_tokens|vocab|tekken|normalizer|tokenizer\w*)\.json
    | (vocab|merges)\.txt | [\w-]+\.tiktoken
    | (tokenizer|sentencepiece(\.bpe)?|spiece|spm)\.model | (source|target)\.spm
    | (?i:(licen[cs]e|notice|copying|copyright|authors|citation|(acceptable_)?use_policy|terms|readme)
      ([_-][\w-]+)?(\.(txt|md|rst))?)""",
    re.VERBOSE | re.ASCII,
)
"""Generation config, tokenizer, chat templates, licences. What is not named stays behind: any name may be weights."""
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of a value by dtype of safetensors."""
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
    """The weight files of a checkpoint, headers read. Raises `ModelError` for one that is missing or broken.

    It does so for a folder with both a single file and an index of others too: those could be two models.
    """
    index = folder / INDEX
    if not index.exists():
        return [read_shard(folder / _SINGLE)]
    listed = _weight_map(index)
    if (folder / _SINGLE).exists() and set(listed.values()) != {_SINGLE}:
        raise ModelError(
            f"{folder}: expected {_SINGLE} or {INDEX}, got both: transformers loads the first, and the second names "
            "other files. Move the index away if the single file is the model, else that file"
        )
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
        regular = stat.S_ISREG(path.stat().st_mode)  # opening a pipe would wait for ever
        with path.open("rb") if regular else nullcontext(BytesIO()) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                raise ModelError(f"{path}: expected a safetensors file, got something else; fetch it again")
            text = file.read(length)
        entries: object = json.loads(text)
    except FileNotFoundError:
        raise ModelError(
            f"{path}: expected a shard of the checkpoint, got no file; fetch the model again"
        ) from None
    except RecursionError:
        raise ModelError(
            f"{path}: expected a safetensors header, got one nested too deeply; fetch it again"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: expected a whole safetensors file, got {error}; fetch it again") from error
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: expected a safetensors header, got another value; fetch it again")
    named = cast("dict[str, Any]", entries).items()
    tensors = [_stored(path, name, entry) for name, entry in named if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _require_contiguous(path, tensors, path.stat().st_size - 8 - length)
    return Shard(path, length.to_bytes(8, "little") + text, tuple(tensors))


def _stored(path: Path, name: str, entry: object) -> Stored:
    """An entry of a header. Raises `ModelError` unless its shape and dtype are those of its bytes."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]} if all(
            type(number) is int and number >= 0 for number in (*shape, start, end)
        ):
            pass
        case _:
            raise ModelError(
                f"{path}: expected dtype, shape and byte range of {name[:80]}, got something else; fetch it again"
            )
    if dtype not in _BITS:
        raise ModelError(f"{path}: expected a dtype of safetensors for {name[:80]}, got {dtype[:20]!r}")
    bits = _BITS[dtype] * math.prod(shape)
    if bits != 8 * (end - start):
        raise ModelError(
            f"{path}: expected {-(-bits // 8)} bytes of {name[:80]} ({dtype} {list(shape)}), got {end - start}; "
            "fetch it again"
        )
    return Stored(name, dtype, tuple(shape), start, end)


def others(folder: Path, files: ModelFiles) -> list[Path]:
    """What is carried beside the weights: what says which model ``folder`` is, and what `_CARRIED` names.

    Everything else stays behind: weights of any format, adapters, code, hidden files. Config and tokenizer are read
    through links, as `load_base` does; of other links only those into the Hub cache that the folder is part of.
    """
    templates = folder / CHAT_TEMPLATES
    beside = [file for file in sorted(folder.iterdir()) if _CARRIED.fullmatch(file.name)]
    if templates.is_dir() and not templates.is_symlink():
        beside += [file for file in sorted(templates.iterdir()) if file.name.endswith(".jinja")]
    known = {files.config, *files.tokenizer}
    return sorted(known) + [
        file
        for file in beside
        if file not in known and file.name != "README.md" and (_is_plain(file) or _in_hub_cache(folder, file))
    ]


def _is_plain(file: Path) -> bool:
    return stat.S_ISREG(file.lstat().st_mode)


def _in_hub_cache(folder: Path, file: Path) -> bool:
    """True for a link as `huggingface_hub` makes them: from snapshots/<revision> to a file in blobs."""
    target = file.resolve()
    return target.is_file() and target.parent == folder.resolve().parent.parent / "blobs"


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        names = cast("dict[str, Any]", json.loads(index.read_bytes()))["weight_map"]
        plain = {str(name): str(file) for name, file in names.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
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
