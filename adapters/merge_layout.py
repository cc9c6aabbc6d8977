"""How a merged checkpoint lies on disk: shards of the same layout or quantized ones, and the files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from . import checkpoint_files, quantized_files
from .checkpoint_files import INDEX
from .errors import ModelError
from .merge_values import Changes, Source
from .model import BROKEN, ModelFiles
from .quantized_files import as_stored, is_quantized, raw_bytes, shard_chunks
from .tensors import DTYPES, digest_bytes, write_atomic

Digests = dict[str, str]
"""File name → ``sha256:<hex>``."""


def same_layout(source: Source, change: Changes) -> Iterator[bytes | memoryview]:
    """The shard again, header and all: every tensor has the size it had."""
    yield source.shard.header
    for tensor in source.shard.tensors:
        if change.job.keeps(tensor):
            yield from source.pieces(tensor)
        else:
            yield raw_bytes(change(tensor, source.whole(tensor)))


def new_layout(
    source: Source, change: Changes, form: str, listed: dict[str, str]
) -> Iterator[bytes | memoryview]:
    """The shard with its linear layers quantized: other tensors, so a header that is known at the end.

    What is not quantized becomes bfloat16, as `load_base` computes: `transformers` casts nothing in such a checkpoint.
    ``listed``: tensor → file, added to.
    """
    kept: dict[str, Tensor] = {}
    for tensor in source.shard.tensors:
        if tensor.dtype not in DTYPES:
            raise ModelError(
                f"{source.shard.path}: expected floats, got {tensor.name} as {tensor.dtype}; merge it unquantized"
            )
        value = change(tensor, source.whole(tensor))
        if is_quantized(tensor.name, tensor.shape):
            kept |= as_stored(tensor.name, value, form, turned=change.job.turned(tensor))
        else:
            kept[tensor.name] = value.to(torch.bfloat16)
    listed |= dict.fromkeys(kept, source.shard.path.name)
    yield from shard_chunks(kept)


def carry(base: Path, files: ModelFiles, folder: Path, read: Digests, wrote: Digests) -> None:
    """Copy what is not weights, and add its digests: of the very bytes that were read."""
    index = [base / INDEX] if (base / INDEX).exists() else []
    for file in (*checkpoint_files.others(base, files), *index):
        data = file.read_bytes()
        name = file.relative_to(base)
        read[str(name)] = wrote[str(name)] = digest_bytes(data)
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomic(folder / name, [data])


def plain_config(base: Path) -> tuple[dict[str, Any], str]:
    """The ``config.json`` of ``base`` and its digest.

    Raises `ModelError` when it is none, or of a checkpoint quantized on disk.
    """
    file = base / "config.json"
    try:
        data = file.read_bytes()
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: expected JSON, got {error}; fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: expected a JSON object, got another value; fetch the model again")
    if config.get("quantization_config"):
        raise ModelError(
            f"{base}: expected full-precision weights, got a checkpoint quantized on disk; use its original"
        )
    return cast("dict[str, Any]", config), digest_bytes(data)


def ties_head(base: Path) -> bool:
    """True where the output head of ``base`` is its embedding, by the config of the whole or of its text model.

    Raises `ModelError` for a config of no known kind.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
        levels = (config, config.get_text_config(decoder=True))
    except BROKEN as error:
        raise ModelError(
            f"{base / 'config.json'}: expected the config of a model that transformers knows, got {error}; fetch the "
            "model again, or leave its head out of the adapter"
        ) from error
    return any(bool(getattr(level, "tie_word_embeddings", False)) for level in levels)


def write_config(folder: Path, config: Mapping[str, Any], form: str) -> str:
    """Write ``config`` as that of a checkpoint quantized to ``form``; returns the digest."""
    plain = {name: value for name, value in config.items() if name != "torch_dtype"}
    stored = {**plain, "dtype": "bfloat16", "quantization_config": quantized_files.config_of(form)}
    text = json.dumps(stored, indent=2) + "\n"
    return write_atomic(folder / "config.json", [text.encode()])


def write_index(folder: Path, listed: Mapping[str, str]) -> str:
    """Write the index of the shards in ``folder``, ``listed`` by tensor; returns the digest."""
    size = sum((folder / name).stat().st_size for name in sorted(set(listed.values())))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(listed.items()))}
    return write_atomic(folder / INDEX, [json.dumps(index, indent=2).encode() + b"\n"])
