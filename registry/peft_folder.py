"""Reading a PEFT LoRA folder that may come from anyone: all of it is checked before any of it is used.

Taken are exactly `adapter_config.json` and `adapter_model.safetensors`, each read once, as they are. Other plain
files (README.md) and subfolders are left alone; links, pipes, sockets and pickles make the whole folder suspect
and are refused, and so is a folder that is a link itself.

`read` checks what the two files say by themselves and of each other: a plain LoRA (`peft_config`) whose tensors
are finite pairs of the ranks that the config says, on modules that PEFT would adapt: it drops the weights of
others with no more than a warning. `check_against` holds the pairs against a base (`base_shapes`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import peft_patterns, plain_files, safetensors_file
from .errors import InvalidInput
from .peft_config import LoraConfig, parse_config
from .plain_files import Source
from .safetensors_file import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LIMITS = {CONFIG: 2**20, WEIGHTS: 2**33}
"""The most bytes that are read of each file."""

_THEN = "Save the adapter again with PEFT's save_pretrained."
_SOURCE = Source(WEIGHTS, _THEN)
_HEADER_LIMIT = 2**25
_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>[\w-]+(?:\.[\w-]+)*)\.lora_(?P<side>[AB])\.weight", re.ASCII
)
_LONGEST_NAME = 512
_KINDS = {
    "lora_embedding_": "LoRA on an embedding",
    "lora_magnitude_vector": "DoRA",
    "base_layer": "a weight of the base: save with save_embedding_layers=False",
    ".bias": "a bias",
}
_EMBEDDINGS = frozenset({"embed_tokens", "embed_in", "word_embeddings", "wte", "wpe", "shared"})


@dataclass(frozen=True, slots=True)
class Pair:
    """The matrices of one module: A is (rank, in_features), B is (out_features, rank)."""

    rank: int
    in_features: int
    out_features: int


def read(folder: Path) -> dict[str, bytes]:
    """The two files of the adapter, checked. Raises InvalidInput."""
    with plain_files.opened(Path(folder), Source("a PEFT adapter", "Pass the folder PEFT saved.")) as opened:
        plain_files.check_entries(opened, _THEN)
        files = {
            name: plain_files.read_file(opened, Source(name, _THEN), LIMITS[name])
            for name in (CONFIG, WEIGHTS)
        }
    check(files)
    return files


def check(files: Mapping[str, bytes]) -> dict[str, Pair]:
    """The pairs of an adapter by module name, e.g. `model.layers.0.mlp.up_proj`. Raises InvalidInput.

    `files` has the bytes of exactly the two files.
    """
    if set(files) != {CONFIG, WEIGHTS}:
        raise InvalidInput(f"exactly {CONFIG} and {WEIGHTS}", "other files", _THEN)
    config, pairs = check_config(files[CONFIG]), check_weights(files[WEIGHTS])
    _check_ranks(config, pairs)
    _check_targets(config, pairs)
    return pairs


def check_config(data: bytes) -> LoraConfig:
    """What a config says. Raises InvalidInput unless it is the configuration of a plain LoRA."""
    if len(data) > LIMITS[CONFIG]:
        raise Source(CONFIG, _THEN).bad(f"at most {LIMITS[CONFIG]} bytes", "more")
    return parse_config(data)


def check_weights(data: bytes) -> dict[str, Pair]:
    """The pairs in a safetensors file. Raises InvalidInput unless it is pairs of finite matrices alone."""
    tensors, begin = safetensors_file.split(data, _SOURCE, _HEADER_LIMIT)
    sides = {_key(name): tensor for name, tensor in tensors.items() if _check_matrix(tensor)}
    pairs = _pairs(sides)
    if not all(safetensors_file.is_finite(data, begin, tensor) for tensor in tensors.values()):
        raise _SOURCE.bad("finite values", "NaN or infinity")
    return pairs


def check_against(files: Mapping[str, bytes], shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise InvalidInput unless each module is a matrix of the base of the right shape.

    `files` are those that `read` gave; `shapes` are the base's weights by module name as `base_shapes` reads
    them: (out, in) of a linear layer. An adapter's `fan_in_fan_out` says nothing of it: trained on 4-bit layers it is
    false for a GPT-2 too, and PEFT goes by the layer. A checkpoint saved without its head
    has names one level shorter (`h.0.attn.c_attn` for `transformer.h.0.attn.c_attn`): both are found.
    """
    for module, pair in check(files).items():
        shape = shapes.get(module) or shapes.get(module.partition(".")[2])
        then = "Pass the base that this adapter was trained on."
        if shape is None or module.rpartition(".")[2] in _EMBEDDINGS:
            raise InvalidInput(f"a linear layer {module} in the base", "none", then)
        wanted = (pair.out_features, pair.in_features)
        if shape != wanted:
            raise InvalidInput(f"{module} of shape {wanted} in the base", f"{shape}", then)


def _key(name: str) -> tuple[str, str]:
    match = _TENSOR.fullmatch(name) if len(name) <= _LONGEST_NAME else None
    if match is None:
        expected = "only tensors named base_model.model.<module>.lora_A.weight or ….lora_B.weight"
        raise _SOURCE.bad(
            expected, next((kind for part, kind in _KINDS.items() if part in name), "another tensor")
        )
    return match["module"], match["side"]


def _check_matrix(tensor: Tensor) -> bool:
    if tensor.dtype not in ("F64", "F32", "F16", "BF16") or len(tensor.shape) != 2 or min(tensor.shape) < 1:
        raise _SOURCE.bad("matrices of F64, F32, F16 or BF16", "another tensor")
    return True


def _pairs(sides: Mapping[tuple[str, str], Tensor]) -> dict[str, Pair]:
    if not sides:
        raise _SOURCE.bad("at least one LoRA pair", "no tensor")
    found: dict[str, Pair] = {}
    for module, _ in sides:
        a, b = sides.get((module, "A")), sides.get((module, "B"))
        if a is None or b is None or a.shape[0] != b.shape[1]:
            raise _SOURCE.bad("lora_A (r, in) and lora_B (out, r) for every module", "a pair that differs")
        found[module] = Pair(a.shape[0], a.shape[1], b.shape[0])
    return found


def _check_ranks(config: LoraConfig, pairs: Mapping[str, Pair]) -> None:
    if max(len(config.rank_pattern), len(config.alpha_pattern)) * len(pairs) > peft_patterns.COMPARISONS:
        raise Source(CONFIG, _THEN).bad(
            "fewer patterns", f"more than {peft_patterns.COMPARISONS} comparisons"
        )
    ranks = peft_patterns.resolve(config.rank_pattern, pairs, config.r)
    for module, pair in pairs.items():
        if pair.rank != ranks[module]:
            raise _SOURCE.bad(f"rank {ranks[module]}, which {CONFIG} says, for {module}", f"{pair.rank}")


def _check_targets(config: LoraConfig, pairs: Mapping[str, Pair]) -> None:
    for module in pairs:
        if not _is_target(config, module):
            raise _SOURCE.bad(f"only modules that {CONFIG} targets", "another, whose weights PEFT would drop")


def _is_target(config: LoraConfig, module: str) -> bool:
    """Whether PEFT's `check_target_module_exists` would adapt the module."""
    if peft_patterns.ends_with_any(module, config.exclude_modules):
        return False
    if config.target_modules is None:
        return True
    if config.layers is None or module in config.target_modules:
        return peft_patterns.ends_with_any(module, config.target_modules)
    return (
        peft_patterns.ends_with_any(module, config.target_modules)
        and peft_patterns.layer_of(module) in config.layers
    )
