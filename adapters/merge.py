"""Merge a composition into a checkpoint, shard by shard, on files: the base is read, never changed.

    W' = W + Σ wᵢ·sᵢ·Bᵢ·Aᵢ   in float32, rounded once to the dtype of W

No model class is instantiated: memory is one tensor with its delta. Onto the weights as they are, or onto what a
quantized base computes with (``nf4``, ``int8``): an adapter that was trained and audited on a quantized base belongs to
those. Either way the result is another model: audit it, at the precision it will be served in. Quantizing it can bring
back what was forgotten (arXiv 2410.16454).

Words: the merged checkpoint *consolidates* only once the base is withdrawn. Whoever has both can subtract them.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from . import checkpoint_files
from .checkpoint_files import INDEX, Shard, Stored
from .compose import Part, Stack, plan, require_unchanged, stacked_reader
from .errors import BaseMismatch, CompositionError, ModelError
from .folder import a_key, b_key
from .lora_files import open_tensors
from .model import Fingerprint, fingerprint
from .staging import new_folder, require_free
from .tensors import require_finite, write_atomic

Onto = Literal["original", "nf4", "int8"]
ONTO: tuple[str, ...] = get_args(Onto)
RECORD = "efface_merge.json"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NOT_QUANTIZED = (
    "embed_tokens",
    "wte",
    "wpe",
    "word_embeddings",
    "embed_in",
    "embed_out",
    "shared",
    "lm_head",
)
"""Modules with a matrix that bitsandbytes leaves as it is: embeddings, and the head."""
OnTensor = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged checkpoint on disk. ``fingerprint`` is what it is as a base; ``base`` what it was made of."""

    path: Path
    base: Fingerprint
    fingerprint: Fingerprint
    modules: int
    bytes: int


def merge(
    base: Path,
    parts: Sequence[Part],
    out: Path,
    *,
    onto: str = "original",
    on_bytes: OnTensor = lambda _bytes: None,
) -> Merged:
    """Write ``base`` with ``parts`` merged into it as the new folder ``out``, whole or not at all.

    Config, generation config, tokenizer and chat template are carried over; a README and ``efface_merge.json`` say
    what was merged into what. ``on_bytes(n)`` is called as bytes are written. Everything is checked first.

    Raises what `efface.adapters.compose.plan` raises; `ModelError` for a checkpoint with a missing or broken shard or
    one that is quantized on disk; `BaseMismatch` for modules or shapes that it does not have, tied heads included;
    `CompositionError` for an unknown ``onto`` or a disk that is too full. Nothing is left behind then.
    """
    if onto not in ONTO:
        raise CompositionError(f"expected onto to be one of {', '.join(ONTO)}, got {onto!r}; correct it")
    require_free(out)
    stack = plan(parts)
    marks = fingerprint(base)
    _require_plain(base)
    shards = checkpoint_files.shards(base)
    targets = _targets(stack, shards)
    _require_space(out, shards)
    with new_folder(out) as staging:
        try:
            written = _write(stack, shards, targets, staging, onto, on_bytes)
            _carry(base, staging)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise CompositionError(
                    f"expected room for the checkpoint at {out}, got a full disk"
                ) from error
            raise
        require_unchanged(stack)
        if fingerprint(base) != marks:
            raise ModelError(f"{base}: expected the files it began with, got others; merge it again")
        _describe(staging, marks, stack, onto)
    return Merged(out, marks, fingerprint(out), len(targets), written)


def _targets(stack: Stack, shards: Sequence[Shard]) -> dict[str, str]:
    """Tensor in the checkpoint → module of the composition that changes it."""
    stored = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    turned = stack.parts[0].adapter.config.fan_in_fan_out
    targets: dict[str, str] = {}
    for name, module in stack.modules.items():
        tensor = stored.get(f"{name}.weight")
        if tensor is None:
            raise BaseMismatch(
                f"expected {name}.weight in the checkpoint, got none: it is another base, or {name} shares its weight "
                "with the embedding, which a merge would change too; leave that module out and train again"
            )
        size = (module.b.shape[0], module.a.shape[1])
        wanted = size[::-1] if turned else size
        if tensor.shape != wanted or tensor.dtype not in _DTYPES:
            raise BaseMismatch(
                f"expected {tensor.name} as a float matrix {wanted}, got {tensor.dtype} {tensor.shape}: "
                "the adapters are of another base"
            )
        targets[tensor.name] = name
    return targets


def _write(
    stack: Stack,
    shards: Sequence[Shard],
    targets: Mapping[str, str],
    folder: Path,
    onto: str,
    on_bytes: OnTensor,
) -> int:
    turned = stack.parts[0].adapter.config.fan_in_fan_out
    written = 0
    with ExitStack() as files:
        read = stacked_reader(stack, [files.enter_context(open_tensors(p.adapter.path)) for p in stack.parts])

        def changed(tensor: Stored, raw: bytes) -> bytes:
            module = targets.get(tensor.name)
            if module is None and not (onto != "original" and _quantized(tensor)):
                return raw
            weight = torch.frombuffer(bytearray(raw), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)
            if onto != "original" and _quantized(tensor):
                weight = as_computed(weight, onto)
            if module is not None:
                delta = read(b_key(module)) @ read(a_key(module))
                weight = (weight.float() + (delta.T if turned else delta)).to(weight.dtype)
            require_finite(tensor.name, weight)
            return weight.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

        for shard in shards:
            chunks = _counted(_chunks(shard, changed), on_bytes)
            write_atomic(folder / shard.path.name, chunks)
            written += len(shard.header) + shard.tensors[-1].end if shard.tensors else len(shard.header)
    return written


def as_computed(weight: Tensor, precision: str) -> Tensor:
    """The matrix that a layer quantized to ``precision`` computes with, in the dtype of ``weight``.

    As `efface.adapters.load_base` quantizes: NF4 in blocks of 64 with double quantization; LLM.int8() by row, without
    its outlier columns, which depend on the input.
    """
    from bitsandbytes import functional as bnb

    half = weight.to(torch.bfloat16)
    if precision == "nf4":
        packed, state = bnb.quantize_4bit(half, quant_type="nf4", compress_statistics=True)
        return bnb.dequantize_4bit(packed, state).to(weight.dtype)
    rows, scale, _ = bnb.int8_vectorwise_quant(half.to(torch.float16))
    return (rows.float() * scale[:, None] / 127.0).to(weight.dtype)


def _quantized(tensor: Stored) -> bool:
    module = tensor.name.removesuffix(".weight").rpartition(".")[2]
    return (
        tensor.name.endswith(".weight")
        and len(tensor.shape) == 2
        and tensor.dtype in _DTYPES
        and module not in _NOT_QUANTIZED
    )


def _chunks(shard: Shard, changed: Callable[[Stored, bytes], bytes]) -> Iterator[bytes]:
    """The shard again, header and all, with every tensor as ``changed`` gives it: of the same size."""
    yield shard.header
    with shard.path.open("rb") as file:
        file.seek(len(shard.header))
        for tensor in shard.tensors:
            raw = file.read(tensor.end - tensor.start)
            if len(raw) != tensor.end - tensor.start:
                raise ModelError(
                    f"{shard.path}: expected {tensor.name} whole, got a shorter file; fetch it again"
                )
            yield changed(tensor, raw)


def _counted(chunks: Iterator[bytes], on_bytes: OnTensor) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        on_bytes(len(chunk))


def _require_plain(base: Path) -> None:
    try:
        config = json.loads((base / "config.json").read_bytes())
    except ValueError as error:
        raise ModelError(
            f"{base / 'config.json'}: expected JSON, got {error}; fetch the model again"
        ) from error
    if isinstance(config, dict) and config.get("quantization_config"):
        raise ModelError(
            f"{base}: expected full-precision weights, got a checkpoint quantized on disk; use its original"
        )


def _require_space(out: Path, shards: Sequence[Shard]) -> None:
    needed = sum(shard.path.stat().st_size for shard in shards)
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise CompositionError(
            f"expected {needed:,} free bytes at {place}, got {free:,}; free some, or name another disk"
        )


def _carry(base: Path, folder: Path) -> None:
    for file in (*checkpoint_files.others(base), *([base / INDEX] if (base / INDEX).exists() else [])):
        shutil.copyfile(file, folder / file.name)


def _describe(folder: Path, base: Fingerprint, stack: Stack, onto: str) -> None:
    parts = [{"adapter": part.adapter.digest, "weight": format(part.weight, "f")} for part in stack.parts]
    record = {"v": 1, "base": base.digest, "onto": onto, "parts": parts}
    write_atomic(folder / RECORD, [json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"])
    listed = "\n".join(f"- {part['weight']} × `{part['adapter']}`" for part in parts)
    text = f"""---
library_name: transformers
tags: [unlearning, efface, merged]
---

# Merged by efface

Adapters that forget, merged into base `{base.digest}` ({onto} weights):

{listed}

The forgetting is in the weights. It is *consolidated* once the base is withdrawn, not before: whoever has both can
subtract them. It is not *erased*: the rows were in the training of the base. Serve it at a precision at which it was
audited.
"""
    write_atomic(folder / "README.md", [text.encode()])
