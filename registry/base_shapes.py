"""The shapes of a base's linear layers, from the safetensors headers of its checkpoint: no torch, no values read.

Only shapes come out, so links are followed: a model in the Hugging Face cache is a folder of links. The folder is
still taken for hostile: names stay in it, sizes are limited, and every header is checked in full.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from . import safetensors_file
from .canon import parse
from .errors import InvalidInput, RegistryError
from .plain_files import Source
from .safetensors_file import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

_THEN = "Pass the folder of a whole model in safetensors, as save_pretrained writes it."
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors", re.ASCII)
_INDEX_LIMIT, _MOST_SHARDS = 2**26, 4096
_PACKED = (".qweight", ".weight_packed", ".quant_map", ".absmax")
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
_HEAD = "lm_head"
_CONFIG_LIMIT = 2**22
_TURNED = ("gpt2", "openai-gpt")
"""Model types whose layers are Conv1D, stored as (in, out)."""
_NOT_TURNED = (*_EMBEDDINGS, _HEAD, "wpe", "tokens_embed", "positions_embed")


def read_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """The shape of each matrix `X.weight` of the checkpoint by X: (out, in) of a linear layer, however it is stored.

    That GPT-2 stores its layers as (in, out) its config says, by the model's type. Embeddings are among them, as
    (vocabulary, width). A checkpoint without `lm_head.weight` has its head tied to the embedding: `lm_head` then has
    the embedding's shape. Raises InvalidInput for anything but a model in safetensors whose weights are not packed (a
    4-bit checkpoint has lost its shapes).
    """
    tensors = _tensors(Path(folder))
    if any(name.endswith(_PACKED) or ".quant_state." in name for name in tensors):
        raise InvalidInput(
            "a base with its shapes", "packed (quantized) weights", "Pass the base before that."
        )
    stored = {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }
    turned = _model_type(Path(folder)) in _TURNED
    shapes = {
        name: (inner, out) if turned and name.rpartition(".")[2] not in _NOT_TURNED else (out, inner)
        for name, (out, inner) in stored.items()
    }
    return _with_head(shapes)


def _model_type(folder: Path) -> str | None:
    """What `config.json` calls the model; None where there is no such file, or it does not say."""
    if not (folder / CONFIG).exists():
        return None
    source = Source(CONFIG, _THEN)
    with _open(folder, source) as file:
        text = file.read(_CONFIG_LIMIT + 1)
    try:
        value = json.loads(text) if len(text) <= _CONFIG_LIMIT else None
    except (ValueError, RecursionError) as error:
        raise source.bad("JSON", "no JSON") from error
    if not isinstance(value, dict):
        raise source.bad("a JSON object", "something else, or too large a file")
    kind = cast("dict[str, object]", value).get("model_type")
    return kind if isinstance(kind, str) else None


def _with_head(shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    tied = {shape for name, shape in shapes.items() if name.rpartition(".")[2] in _EMBEDDINGS}
    if _HEAD not in shapes and len(tied) == 1:
        return {**shapes, _HEAD: tied.pop()}
    return shapes


def _tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return _header(folder, WEIGHTS)
    return _sharded(folder, _index(folder))


def _index(folder: Path) -> Mapping[str, str]:
    """Which shard has which tensor."""
    source = Source(INDEX, _THEN)
    with _open(folder, source) as file:
        text = file.read(_INDEX_LIMIT + 1)
    try:
        value = parse(text.decode("utf-8")) if len(text) <= _INDEX_LIMIT else None
    except (UnicodeDecodeError, RegistryError) as error:
        raise source.bad("JSON", "no JSON") from error
    placed = value.get("weight_map") if isinstance(value, Mapping) else None
    if not isinstance(placed, Mapping):
        raise source.bad("a weight_map", "none")
    found = {
        name: shard for name, shard in placed.items() if isinstance(shard, str) and _SHARD.fullmatch(shard)
    }
    if len(found) != len(placed) or len(set(found.values())) > _MOST_SHARDS:
        raise source.bad("names of shards beside it", "other names")
    return found


def _sharded(folder: Path, placed: Mapping[str, str]) -> dict[str, Tensor]:
    shards = {shard: _header(folder, shard) for shard in sorted(set(placed.values()))}
    missing = [shard for name, shard in placed.items() if name not in shards[shard]]
    if missing:
        raise Source(missing[0], _THEN).bad("the tensors that the index places", "fewer")
    return {name: shards[shard][name] for name, shard in placed.items()}


def _header(folder: Path, name: str) -> dict[str, Tensor]:
    source = Source(name, _THEN)
    with _open(folder, source) as file:
        size = os.fstat(file.fileno()).st_size
        length = safetensors_file.header_length(file.read(8), size, source)
        tensors = safetensors_file.parse_header(file.read(length), source)
    safetensors_file.check_layout(tensors.values(), size - 8 - length, source)
    return tensors


def _open(folder: Path, source: Source) -> BinaryIO:
    """A plain file of the folder, or of where a link there leads. O_NONBLOCK: a pipe must not hang."""
    try:
        descriptor = os.open(folder / source.name, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise source.bad("a readable file", type(error).__name__) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise source.bad("a plain file", "something else")
    return os.fdopen(descriptor, "rb")
