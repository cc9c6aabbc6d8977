"""Exact composition of LoRA adapters on files, by rank concatenation; no model is loaded.

    Σ wᵢ·sᵢ·Bᵢ·Aᵢ  =  B'·A'      A' = rows wᵢ·sᵢ·Aᵢ,  B' = columns Bᵢ,  alpha' = r' so that the scaling is 1

This is what PEFT's ``add_weighted_adapter(combination_type="cat")`` computes (its other types do not sum),
but right for rsLoRA too, and independent of order: parts are sorted by digest first, so the same set gives
the same bytes. A module's rank is the sum over the adapters that have it; where that is less than r', the
largest, ``rank_pattern`` and ``alpha_pattern`` say so. Padding with zeros instead would cost memory in every
server slot. Scalings stay 1 even for a reader that ignores the patterns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import BaseMismatch, CompositionError, InvalidAdapter
from .folder import (
    AdapterFolder,
    LoraModule,
    a_key,
    b_key,
    canonical_config,
    digest_files,
    read_adapter,
    tensor_specs,
)
from .lora_files import CONFIG_NAME, WEIGHTS_NAME, open_tensors, unchanged
from .peft_config import AdapterConfig, config_bytes
from .staging import new_folder, require_free
from .tensors import TensorSpec, require_spec, safetensors_chunks, write_atomic

_WEIGHTS = (Decimal("1e-6"), Decimal("1e6"))
_READERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter in a composition; its weight is decimal text ("0.5"): digests see no binary rounding.

    ``base``: digest of the base that it is known to fit, as a registry records it. That decides then, whatever name its
    author gave that base (unless that is the digest of another one); None leaves the name and revision in its config to
    decide.
    """

    folder: Path
    weight: Decimal | str = Decimal(1)
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Weighted:
    """A checked part: ``weight`` is finite and not 0."""

    adapter: AdapterFolder
    weight: Decimal


@dataclass(frozen=True, slots=True)
class Stack:
    """A composition that has been checked and can be written: at least one part, sorted by digest.

    ``config`` names what the parts have in common, their base above all; ranks and scalings are the modules' own.
    """

    parts: tuple[Weighted, ...]
    modules: Mapping[str, LoraModule]
    config: AdapterConfig

    @property
    def rank(self) -> int:
        """The largest rank of any module in the result."""
        return max(module.rank for module in self.modules.values())

    @property
    def is_identity(self) -> bool:
        """One adapter with weight 1: written verbatim, in its own dtype and scaling."""
        return len(self.parts) == 1 and self.parts[0].weight == 1


@dataclass(frozen=True, slots=True)
class Composed:
    """A composition on disk. ``files`` maps names to digests; ``digest`` covers both."""

    path: Path
    rank: int
    digest: str
    files: Mapping[str, str]


def compose(parts: Sequence[Part], out: Path) -> Composed:
    """Write the weighted sum of ``parts`` as one PEFT LoRA folder ``out``, whole or not at all.

    The result depends on the set of (adapter, weight) alone. One part with weight 1 keeps its values
    verbatim; a part with weight 0 is left out. Everything is checked before anything is written.

    Raises `InvalidAdapter` for a broken folder, `BaseMismatch` for different bases, and `CompositionError`
    for nothing to compose, the same adapter twice, a bad weight, or an ``out`` that exists.
    """
    require_free(out)
    stack = plan(parts)
    with new_folder(out) as staging:
        files = write(stack, staging)
    return Composed(out, stack.rank, digest_files(files), files)


def plan(parts: Sequence[Part]) -> Stack:
    """Read and check ``parts`` without writing; raises as `compose` does."""
    weights = [parse_weight(part.weight) for part in parts]
    with ThreadPoolExecutor(_READERS) as pool:  # hashing releases the interpreter's lock
        adapters = list(pool.map(read_adapter, [part.folder for part in parts]))
    _require_distinct(adapters)
    bases = [_base(part, adapter) for part, adapter in zip(parts, adapters, strict=True)]
    _require_one_base(adapters, bases)
    _require_one_task(adapters)
    _require_one_shape(adapters)
    kept = [Weighted(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight]
    if not kept:
        raise CompositionError(
            "expected at least one adapter with a weight other than 0, got none; "
            "the base alone has nothing to compose: serve it without an adapter"
        )
    ordered = tuple(sorted(kept, key=lambda part: part.adapter.digest))
    stack = Stack(ordered, ordered[0].adapter.modules, _common(ordered, bases[0]))
    return stack if stack.is_identity else replace(stack, modules=_stacked_modules(ordered))


def write(stack: Stack, folder: Path) -> dict[str, str]:
    """Write ``stack`` into the empty ``folder`` (bytes fixed by ``stack`` alone) and return name → digest.

    Raises `InvalidAdapter` when scaled values overflow float32, or a part's files changed since `plan`.
    """
    config = (
        stack.parts[0].adapter.config
        if stack.is_identity
        else replace(stack.config, lora_alpha=float(stack.rank), use_rslora=False)
    )
    text = config_bytes(canonical_config(config, stack.modules))
    with ExitStack() as files:
        readers = [files.enter_context(open_tensors(part.adapter.path)) for part in stack.parts]
        read = readers[0] if stack.is_identity else stacked_reader(stack, readers)
        chunks = safetensors_chunks(tensor_specs(stack.modules), read, own=not stack.is_identity)
        weights = write_atomic(folder / WEIGHTS_NAME, chunks)
    require_unchanged(stack)
    return {CONFIG_NAME: write_atomic(folder / CONFIG_NAME, [text]), WEIGHTS_NAME: weights}


def parse_weight(weight: Decimal | str) -> Decimal:
    """A weight as an exact number: 0, or between 1e-6 and 1e6 in size; raises `CompositionError`."""
    expected = 'expected a weight as decimal text such as "1" or "0.5" (0, or 1e-6 to 1e6 in size)'
    if not isinstance(weight, (str, Decimal)):  # pyright: ignore[reportUnnecessaryIsInstance] - callers' mistakes
        raise CompositionError(f"{expected}, got {type(weight).__name__} {weight!r}; write it as text")
    try:
        value = Decimal(weight)
    except InvalidOperation as error:
        raise CompositionError(f"{expected}, got {str(weight)[:40]!r}; correct it") from error
    if not value.is_finite() or (value and not _WEIGHTS[0] <= abs(value) <= _WEIGHTS[1]):
        raise CompositionError(f"{expected}, got {str(weight)[:40]}; correct it")
    return value


def _require_distinct(adapters: Sequence[AdapterFolder]) -> None:
    seen: dict[str, AdapterFolder] = {}
    for adapter in adapters:
        other = seen.setdefault(adapter.digest, adapter)
        if other is not adapter:
            raise CompositionError(
                f"expected each adapter once, got {adapter.digest} as {other.path} and {adapter.path}; "
                "list it once, with the weight you want"
            )


def require_unchanged(stack: Stack) -> None:
    """Raise `InvalidAdapter` when a part is not on disk what `plan` read."""
    for part in stack.parts:
        if unchanged(part.adapter.path / WEIGHTS_NAME, part.adapter.mark):
            continue  # the config was read into the plan whole
        came = read_adapter(part.adapter.path).digest
        if came != part.adapter.digest:
            raise InvalidAdapter(
                f"{part.adapter.path}: expected {part.adapter.digest}, got {came}: the adapter was "
                "rewritten while it was composed; do it again, and keep adapters where nothing rewrites them"
            )


_Base = tuple[str | None, str | None]
"""A base's digest, or its name and revision where nobody knows that."""


def _base(part: Part, adapter: AdapterFolder) -> _Base:
    name = adapter.config.base_model_name_or_path
    if part.base is None:
        return name, adapter.config.revision
    if name is not None and name.startswith("sha256:") and name != part.base:
        raise BaseMismatch(
            f"{adapter.path}: expected an adapter for base {part.base}, got one for {name}; "
            "an adapter means nothing on another base: train it again there"
        )
    return part.base, None


def _require_one_base(adapters: Sequence[AdapterFolder], bases: Sequence[_Base]) -> None:
    for adapter, base in zip(adapters[1:], bases[1:], strict=True):
        if base != bases[0]:
            raise BaseMismatch(
                f"expected adapters of one base, got {_said(adapters[0], bases[0])} and {_said(adapter, base)}; "
                "an adapter means nothing on another base: train it again there"
            )


def _require_one_task(adapters: Sequence[AdapterFolder]) -> None:
    """One that says nothing (None) goes with any."""
    said = [adapter for adapter in adapters if adapter.config.task_type is not None]
    for adapter in said[1:]:
        if adapter.config.task_type != said[0].config.task_type:
            raise InvalidAdapter(
                f"expected one task_type, got {said[0].config.task_type} in {said[0].path}, "
                f"{adapter.config.task_type} in {adapter.path}; correct one of them"
            )


def _common(parts: Sequence[Weighted], base: _Base) -> AdapterConfig:
    """What configs of one base say together: names that differ give way to the digest that is known.

    ``fan_in_fan_out`` changes nothing in an adapter: how a base stores its matrices is the base's.
    """
    configs = [part.adapter.config for part in parts]
    named = {(config.base_model_name_or_path, config.revision) for config in configs}
    name, revision = base if len(named) > 1 else named.pop()
    return replace(
        configs[0],
        base_model_name_or_path=name,
        revision=revision,
        task_type=next((config.task_type for config in configs if config.task_type is not None), None),
        fan_in_fan_out=any(config.fan_in_fan_out for config in configs),
    )


def _said(adapter: AdapterFolder, base: _Base) -> str:
    name, revision = base
    return f"{name!r}{f' at revision {revision}' if revision else ''} ({adapter.path})"


def _require_one_shape(adapters: Sequence[AdapterFolder]) -> None:
    seen: dict[str, tuple[AdapterFolder, tuple[int, int]]] = {}
    for adapter in adapters:
        for name, module in adapter.modules.items():
            size = (module.b.shape[0], module.a.shape[1])
            other, expected = seen.setdefault(name, (adapter, size))
            if size != expected:
                raise BaseMismatch(
                    f"expected {name} to be {expected} (out, in) as in {other.path}, "
                    f"got {size} in {adapter.path}; "
                    "they are adapters of different bases"
                )


def _stacked_modules(parts: Sequence[Weighted]) -> dict[str, LoraModule]:
    modules: dict[str, LoraModule] = {}
    for name in sorted({name for part in parts for name in part.adapter.modules}):
        layers = [part.adapter.modules[name] for part in parts if name in part.adapter.modules]
        rank = sum(layer.rank for layer in layers)
        a = TensorSpec("F32", (rank, layers[0].a.shape[1]))
        b = TensorSpec("F32", (layers[0].b.shape[0], rank))
        modules[name] = LoraModule(a, b, alpha=float(rank), scaling=1.0)
    return modules


def stacked_reader(stack: Stack, readers: Sequence[Callable[[str], Tensor]]) -> Callable[[str], Tensor]:
    """The tensors of the stack, each made when asked for from the parts' own (`open_tensors`, in their order).

    The factor wᵢ·sᵢ goes into A, in float64 and rounded once to float32, and the result stays float32: a
    bfloat16 product would lose 16 of 24 bits, and PEFT holds LoRA weights in float32 anyway.
    """
    parts = stack.parts
    tables = {
        **{a_key(name): (name, True) for part in parts for name in part.adapter.modules},
        **{b_key(name): (name, False) for part in parts for name in part.adapter.modules},
    }

    def read(key: str) -> Tensor:
        name, is_a = tables[key]
        having = [
            (part, reader)
            for part, reader in zip(parts, readers, strict=True)
            if name in part.adapter.modules
        ]
        made = stack.modules[name]
        whole = torch.empty((made.a if is_a else made.b).shape, dtype=torch.float32)
        sizes = [part.adapter.modules[name].rank for part, _ in having]
        # One by one: `torch.cat` of the whole wakes all cores, which then spin beside the thread that hashes.
        for (part, reader), place in zip(having, whole.split(sizes, 0 if is_a else 1), strict=True):
            factor, module = reader(key), part.adapter.modules[name]
            require_spec(key, factor, module.a if is_a else module.b)
            if is_a:
                _scale(factor, float(part.weight) * module.scaling, place)
            else:
                place.copy_(factor)
        return whole

    return read


def _scale(a: Tensor, factor: float, out: Tensor) -> None:
    """``a`` times ``factor`` into ``out``, each value rounded once to float32."""
    if a.dtype == torch.float32 and float(np.float32(factor)) == factor:
        torch.mul(a, factor, out=out)  # the product of two float32 is rounded once either way
    else:
        out.copy_(a.double() * factor)
