"""Merge a composition into a checkpoint, shard by shard, on files: the base is read once, never changed.

    W' = W + Σ wᵢ·sᵢ·Bᵢ·Aᵢ   in float32, rounded once to the dtype of W

No model class is instantiated: memory is one tensor with its delta, or one shard quantized. Onto the weights as they
are, or onto what a quantized base computes with (``nf4``, ``int8``): an adapter that was trained and audited on a
quantized base belongs to those. What comes of it is written as it is, or quantized again as `transformers` stores it
(``requantize``). Either way the result is another model: audit it, at the precision it will be served in. Quantizing it
can bring back what was forgotten (arXiv 2410.16454).

What is hashed as the base is what was read to be merged, in the same pass: there is no moment at which the files could
be others. Words: the merged checkpoint *consolidates* only once the base is withdrawn. Whoever has both can subtract
them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from . import checkpoint_files, quantized_files
from .checkpoint_files import INDEX, Shard, Stored
from .compose import Part, Stack, plan, require_unchanged, stacked_reader
from .errors import BaseMismatch, CompositionError, ModelError
from .folder import a_key, b_key
from .lora_files import open_tensors
from .merge_card import RECORD, describe
from .model import Fingerprint, ModelFiles, fingerprint_of, model_files
from .quantized_files import as_computed, as_stored, is_quantized, raw_bytes, shard_chunks
from .staging import new_folder, require_free
from .tensors import Hashing, digest_bytes, digest_file, fill, require_finite, write_atomic

__all__ = ["ONTO", "RECORD", "Merged", "Onto", "as_computed", "merge"]

Onto = Literal["original", "nf4", "int8"]
ONTO: tuple[str, ...] = get_args(Onto)
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
OnTensor = Callable[[int], None]
Digests = dict[str, str]
"""File name → ``sha256:<hex>``."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged checkpoint on disk. ``fingerprint`` is what it is as a base; ``base`` what it was made of.

    ``bytes`` are those of its weights, ``quantized`` the precision they are stored at: None as the base's.
    """

    path: Path
    base: Fingerprint
    fingerprint: Fingerprint
    modules: int
    bytes: int
    quantized: str | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """What is done to every tensor: ``targets`` maps those that change to modules of ``stack``."""

    stack: Stack
    targets: Mapping[str, str]
    onto: str
    requantize: str | None

    @property
    def turned(self) -> bool:
        """True where matrices are stored as (in, out)."""
        return self.stack.parts[0].adapter.config.fan_in_fan_out


def merge(
    base: Path,
    parts: Sequence[Part],
    out: Path,
    *,
    onto: str = "original",
    requantize: str | None = None,
    expect: str | None = None,
    on_bytes: OnTensor = lambda _bytes: None,
) -> Merged:
    """Write ``base`` with ``parts`` merged into it as the new folder ``out``, whole or not at all.

    Config, generation config, tokenizer and chat template are carried over; a README and ``efface_merge.json`` say
    what was merged into what. ``requantize``: `nf4` or `int8`, as bitsandbytes stores it. ``expect``: the digest that
    ``base`` must turn out to have. ``on_bytes(n)`` is called as bytes are written. Everything else is checked first.

    Raises what `efface.adapters.compose.plan` raises; `ModelError` for a checkpoint with a missing or broken shard or
    one that is quantized on disk; `BaseMismatch` for modules or shapes that it does not have, tied heads included, and
    another base than expected; `CompositionError` for an unknown ``onto`` or ``requantize`` or a disk that is too full.
    Nothing is left behind then.
    """
    _check(onto, requantize)
    require_free(out)
    stack = plan(parts)
    files = model_files(base)
    config = _plain_config(base)
    shards = checkpoint_files.shards(base)
    job = _Job(stack, _targets(stack, shards), onto, requantize)
    _require_space(out, shards)
    with new_folder(out) as staging:
        read, wrote, listed, written = _write(job, shards, staging, on_bytes)
        _carry(base, staging, read, wrote)
        if requantize is not None:
            wrote["config.json"] = _write_config(staging, config, requantize)
            _write_index(base, staging, listed, wrote)
        require_unchanged(stack)
        marks = _marks(files, read)
        if expect not in (None, marks.digest):
            raise BaseMismatch(
                f"expected base {expect}, got {marks.digest} at {base}: give the base of the adapters"
            )
        describe(staging, marks, stack, onto, requantize)
        made = _marks(model_files(staging), wrote)
    return Merged(out, marks, made, len(job.targets), written, requantize)


def _check(onto: str, requantize: str | None) -> None:
    if onto not in ONTO:
        raise CompositionError(f"expected onto to be one of {', '.join(ONTO)}, got {onto!r}; correct it")
    if requantize not in (None, *quantized_files.FORMS):
        forms = ", ".join(quantized_files.FORMS)
        raise CompositionError(f"expected requantize to be one of {forms}, got {requantize!r}; correct it")


def _marks(files: ModelFiles, digests: Mapping[str, str]) -> Fingerprint:
    """Of the bytes that went through our hands; what lies beside them unused is hashed as it is."""
    return fingerprint_of(files, lambda file: digests.get(file.name) or digest_file(file))


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
    job: _Job, shards: Sequence[Shard], folder: Path, on_bytes: OnTensor
) -> tuple[Digests, Digests, dict[str, str], int]:
    """Digests of the shards as they were read and as they were written, tensor → file, and the bytes written."""
    read, wrote, listed = Digests(), Digests(), dict[str, str]()
    written = 0

    def counted(count: int) -> None:
        nonlocal written
        written += count
        on_bytes(count)

    with ExitStack() as files:
        delta = _deltas(job, files)
        for shard in shards:
            with Hashing() as running:
                tensors = _merged(job, shard, delta, running)
                chunks = (
                    _same_layout(shard, tensors)
                    if job.requantize is None
                    else _new_layout(job, tensors, listed, shard)
                )
                wrote[shard.path.name] = write_atomic(folder / shard.path.name, _counted(chunks, counted))
                read[shard.path.name] = running.digest()
    return read, wrote, listed, written


def _deltas(job: _Job, files: ExitStack) -> Callable[[str], Tensor]:
    parts = job.stack.parts
    read = stacked_reader(job.stack, [files.enter_context(open_tensors(p.adapter.path)) for p in parts])

    def delta(module: str) -> Tensor:
        found = read(b_key(module)) @ read(a_key(module))
        return found.T if job.turned else found

    return delta


def _merged(
    job: _Job, shard: Shard, delta: Callable[[str], Tensor], running: Hashing
) -> Iterator[tuple[Stored, Tensor | bytearray]]:
    """Each tensor of ``shard`` in file order: its bytes where nothing happens to it, else what it becomes."""
    running.update(shard.header)
    with shard.path.open("rb", buffering=0) as file:
        file.seek(len(shard.header))
        for tensor in shard.tensors:
            raw = bytearray(tensor.end - tensor.start)
            if not fill(file, memoryview(raw)):
                raise ModelError(
                    f"{shard.path}: expected {tensor.name} whole, got a shorter file; fetch it again"
                )
            running.update(memoryview(raw))
            yield tensor, _changed(job, tensor, raw, delta)


def _changed(job: _Job, tensor: Stored, raw: bytearray, delta: Callable[[str], Tensor]) -> Tensor | bytearray:
    module = job.targets.get(tensor.name)
    linear = tensor.dtype in _DTYPES and is_quantized(tensor.name, tensor.shape)
    if module is None and not (linear and (job.onto != "original" or job.requantize)):
        return raw
    weight = torch.frombuffer(raw, dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)
    if linear and job.onto != "original":
        weight = as_computed(weight, job.onto, turned=job.turned)
    if module is not None:
        weight = (weight.float() + delta(module)).to(weight.dtype)
    require_finite(tensor.name, weight)
    return weight


def _same_layout(shard: Shard, tensors: Iterator[tuple[Stored, Tensor | bytearray]]) -> Iterator[bytes]:
    """The shard again, header and all: every tensor has the size it had."""
    yield shard.header
    for _, value in tensors:
        yield raw_bytes(value) if isinstance(value, Tensor) else bytes(value)


def _new_layout(
    job: _Job, tensors: Iterator[tuple[Stored, Tensor | bytearray]], listed: dict[str, str], shard: Shard
) -> Iterator[bytes]:
    """The shard with its linear layers quantized: other tensors, so a header that is known at the end.

    What is not quantized becomes bfloat16, as `load_base` computes: `transformers` casts nothing in such a checkpoint.
    """
    form = cast("str", job.requantize)
    kept: dict[str, Tensor] = {}
    for tensor, value in tensors:
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{shard.path}: expected floats, got {tensor.name} as {tensor.dtype}; merge it unquantized"
            )
        if isinstance(value, bytearray):
            stored = torch.frombuffer(value, dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)
            kept[tensor.name] = stored.to(torch.bfloat16)
        elif is_quantized(tensor.name, tensor.shape):
            kept |= as_stored(tensor.name, value, form, turned=job.turned)
        else:
            kept[tensor.name] = value.to(torch.bfloat16)
    listed |= dict.fromkeys(kept, shard.path.name)
    yield from shard_chunks(kept)


def _counted(chunks: Iterator[bytes], on_bytes: OnTensor) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        on_bytes(len(chunk))


def _plain_config(base: Path) -> dict[str, Any]:
    try:
        config = json.loads((base / "config.json").read_bytes())
    except ValueError as error:
        raise ModelError(
            f"{base / 'config.json'}: expected JSON, got {error}; fetch the model again"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{base / 'config.json'}: expected a JSON object, got another value; fetch the model again"
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{base}: expected full-precision weights, got a checkpoint quantized on disk; use its original"
        )
    return cast("dict[str, Any]", config)


def _require_space(out: Path, shards: Sequence[Shard]) -> None:
    needed = sum(shard.path.stat().st_size for shard in shards)
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise CompositionError(
            f"expected {needed:,} free bytes at {place}, got {free:,}; free some, or name another disk"
        )


def _carry(base: Path, folder: Path, read: Digests, wrote: Digests) -> None:
    """Copy what is not weights, and add its digests: of the very bytes that were read."""
    for file in (*checkpoint_files.others(base), *([base / INDEX] if (base / INDEX).exists() else [])):
        data = file.read_bytes()
        read[file.name] = wrote[file.name] = digest_bytes(data)
        write_atomic(folder / file.name, [data])


def _write_config(folder: Path, config: Mapping[str, Any], form: str) -> str:
    plain = {name: value for name, value in config.items() if name != "torch_dtype"}
    stored = {**plain, "dtype": "bfloat16", "quantization_config": quantized_files.config_of(form)}
    text = json.dumps(stored, indent=2) + "\n"
    return write_atomic(folder / "config.json", [text.encode()])


def _write_index(base: Path, folder: Path, listed: Mapping[str, str], wrote: Digests) -> None:
    if not (base / INDEX).exists():
        return
    size = sum((folder / name).stat().st_size for name in sorted(set(listed.values())))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(listed.items()))}
    wrote[INDEX] = write_atomic(folder / INDEX, [json.dumps(index, indent=2).encode() + b"\n"])
