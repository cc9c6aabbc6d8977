"""A LoRA folder as PEFT saves it (config and safetensors), read as hostile input.

Everything is checked here, before anything is composed, loaded or served: servers load wrong shapes, lying
configs and NaN weights without complaint (one NaN request ruins a vLLM process for all later requests).
Tensors are read one at a time; pickles are never opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from .errors import InvalidAdapter
from .lora_files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    FileMark,
    file_mark,
    open_tensors,
    read_config_text,
    read_specs,
    weights_file,
)
from .patterns import exceptions, resolve
from .peft_config import AdapterConfig, config_bytes, parse_config
from .tensors import (
    DTYPES,
    Chunk,
    TensorSpec,
    canonical_digest,
    digest_bytes,
    digest_chunks,
    safetensors_chunks,
)

_LONGEST_NAME = 256
_KEY = re.compile(r"base_model\.model\.([\w-]+(?:\.[\w-]+)*)\.lora_([AB])\.weight", re.ASCII)
_KINDS = {
    "lora_embedding_": "LoRA on an embedding",
    "lora_magnitude_vector": "DoRA",
    ".bias": "a bias",
    "modules_to_save": "a whole trained module",
    "base_layer": "a weight of the base",
}


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapted linear layer: A is (rank, in_features), B is (out_features, rank)."""

    a: TensorSpec
    b: TensorSpec
    alpha: float
    scaling: float

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """A checked LoRA folder. ``modules`` is by module name in the base, e.g. ``model.layers.0.mlp.up_proj``.

    ``files`` has the digest of each file in canonical form, and ``digest`` covers names and contents: two
    folders that differ only in layout (metadata, key order, pattern spelling) have the same digest.
    """

    path: Path
    config: AdapterConfig
    modules: Mapping[str, LoraModule]
    files: Mapping[str, str]
    digest: str
    mark: FileMark
    """Of the weights file before it was read: see `efface.adapters.lora_files.unchanged`."""

    @property
    def rank(self) -> int:
        """The largest rank of any module: what a server's slot must hold."""
        return max(module.rank for module in self.modules.values())


def read_adapter(path: Path) -> AdapterFolder:
    """Check the LoRA folder at ``path`` completely, values included, and describe it.

    Raises `InvalidAdapter`, naming the file, for anything but a plain LoRA on linear layers in safetensors.
    """
    config = parse_config(read_config_text(path), str(path / CONFIG_NAME))
    weights = weights_file(path)
    seen = file_mark(weights)
    modules = _modules(config, read_specs(path), weights)
    files = {
        CONFIG_NAME: digest_bytes(config_bytes(canonical_config(config, modules))),
        WEIGHTS_NAME: _weights_digest(path, weights, tensor_specs(modules)),
    }
    return AdapterFolder(path, config, modules, MappingProxyType(files), digest_files(files), seen)


def _weights_digest(path: Path, weights: Path, specs: Mapping[str, TensorSpec]) -> str:
    """The digest of the weights in canonical form, values checked; in one pass where the file has that form already."""
    if (digest := canonical_digest(weights, specs)) is not None:
        return digest
    with open_tensors(path) as read:
        return digest_chunks(_named(safetensors_chunks(specs, read), weights))


def delta(folder: AdapterFolder, module: str, weight: float = 1.0) -> Tensor:
    """``weight``·scaling·B·A of one module, (out_features, in_features) float32 on CPU, computed in float64.

    An oracle for tests and audits; composition never forms this matrix. Raises `InvalidAdapter` when the
    folder does not adapt ``module``.
    """
    if module not in folder.modules:
        raise InvalidAdapter(
            f"{folder.path}: expected LoRA on {module}, which is not in {sorted(folder.modules)[:5]}…"
        )
    with open_tensors(folder.path) as read:
        a, b = read(a_key(module)).double(), read(b_key(module)).double()
    return (weight * folder.modules[module].scaling * (b @ a)).float()


def canonical_config(config: AdapterConfig, modules: Mapping[str, LoraModule]) -> AdapterConfig:
    """``config`` with targets and patterns resolved to the modules there are; ``r`` is the largest rank."""
    ranks = {name: module.rank for name, module in modules.items()}
    alphas = {name: module.alpha for name, module in modules.items()}
    return replace(
        config,
        r=max(ranks.values()),
        rank_pattern=exceptions(ranks, max(ranks.values())),
        alpha_pattern=exceptions(alphas, config.lora_alpha),
        target_modules=tuple(sorted(modules)),
    )


def tensor_specs(modules: Mapping[str, LoraModule]) -> dict[str, TensorSpec]:
    """The spec of each tensor of ``modules`` by its name in the file."""
    return {a_key(name): module.a for name, module in modules.items()} | {
        b_key(name): module.b for name, module in modules.items()
    }


def a_key(module: str) -> str:
    """The name in the file of ``module``'s A."""
    return f"base_model.model.{module}.lora_A.weight"


def b_key(module: str) -> str:
    """The name in the file of ``module``'s B."""
    return f"base_model.model.{module}.lora_B.weight"


def digest_files(files: Mapping[str, str]) -> str:
    """The digest of a folder: of the canonical JSON object of file names and digests."""
    return digest_bytes(json.dumps(dict(files), sort_keys=True, separators=(",", ":")).encode())


def _modules(
    config: AdapterConfig, specs: Mapping[str, TensorSpec], weights: Path
) -> Mapping[str, LoraModule]:
    pairs = _pairs(specs, weights)
    ranks = resolve(config.rank_pattern, pairs, config.r)
    alphas = resolve(config.alpha_pattern, pairs, config.lora_alpha)
    modules: dict[str, LoraModule] = {}
    for name, (a, b) in sorted(pairs.items()):
        _require_shapes(weights, name, a, b, ranks[name])
        if not config.targets(name):
            raise InvalidAdapter(
                f"{weights}: expected only modules in target_modules, got {name}; PEFT would drop its weights"
            )
        modules[name] = LoraModule(a, b, alphas[name], config.scaling(ranks[name], alphas[name]))
    return MappingProxyType(modules)


def _pairs(specs: Mapping[str, TensorSpec], weights: Path) -> dict[str, tuple[TensorSpec, TensorSpec]]:
    sides: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in specs.items():
        module, side = _parsed_key(key, weights)
        sides.setdefault(module, {})[side] = spec
    for module, found in sides.items():
        if len(found) != 2:
            raise InvalidAdapter(
                f"{weights}: expected lora_A and lora_B of {module}, got lora_{next(iter(found))} alone; "
                "save the adapter again with PEFT"
            )
    if not sides:
        raise InvalidAdapter(f"{weights}: expected LoRA tensors, got none; save the adapter again with PEFT")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _parsed_key(key: str, weights: Path) -> tuple[str, str]:
    match = _KEY.fullmatch(key) if len(key) <= _LONGEST_NAME else None
    if match is None:
        kind = next((kind for part, kind in _KINDS.items() if part in key), "an unknown tensor")
        raise InvalidAdapter(
            f"{weights}: expected base_model.model.<module>.lora_A|lora_B.weight, got {key[:80]!r} "
            f"({kind}); "
            "efface composes plain LoRA on linear layers only"
        )
    return match.group(1), match.group(2)


def _require_shapes(weights: Path, module: str, a: TensorSpec, b: TensorSpec, rank: int) -> None:
    right = (
        len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] == rank and min(*a.shape, *b.shape) > 0
    )
    if not right:
        raise InvalidAdapter(
            f"{weights}: expected {module} with A ({rank}, in) and B (out, {rank}) as {CONFIG_NAME} says, "
            f"got A {a.shape} and B {b.shape}; the two files are not of one adapter"
        )
    if {a.dtype, b.dtype} - set(DTYPES):
        raise InvalidAdapter(
            f"{weights}: expected {module} in {', '.join(DTYPES)}, got {a.dtype} and {b.dtype}; cast it"
        )


def _named(chunks: Iterator[Chunk], weights: Path) -> Iterator[Chunk]:
    """Pass ``chunks`` on, with the file's name in front of what a bad tensor raises."""
    try:
        yield from chunks
    except InvalidAdapter as error:
        raise InvalidAdapter(f"{weights}: {error}") from error
