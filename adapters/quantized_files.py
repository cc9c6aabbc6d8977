"""Matrices as bitsandbytes quantizes them, from files: what a quantized base computes with, and how it is stored.

As `efface.adapters.load_base` quantizes: NF4 in blocks of 64 with double quantization (arXiv 2305.14314); LLM.int8()
by row (arXiv 2208.07339), without its outlier columns, which depend on the input. What is written is what
`transformers` saves of such a model and loads again, bit for bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import ModelError

FORMS = ("nf4", "int8")
_KEPT = re.compile(r"wte|wpe|\w*embed(s|ding|dings)?(_tokens|_positions|_in|_out)?|lm_head")
"""Modules with a matrix that bitsandbytes leaves as it is: embeddings, and the head."""
KNOWN_TYPES = frozenset(
    {
        *("apertus", "arcee", "bloom", "codegen", "cohere", "cohere2", "exaone4"),
        *("gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode"),
        *("gpt_neo", "gpt_neox", "gptj", "granite", "helium", "llama", "ministral3"),
        *("mistral", "mpt", "olmo", "olmo2", "olmo3", "openai-gpt", "opt"),
        *("persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3"),
        *("stablelm", "starcoder2", "xglm"),
    }
)
"""Values of ``model_type`` whose quantized matrices `is_quantized` knows from their names: a test asks `transformers`.

The routers and experts of a mixture, say, look like the linear layers that they are not.
"""
_TURNED = ("gpt2", "openai-gpt")
"""Those of Conv1D layers, whose matrices lie as (in, out)."""
_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int8: "I8",
}

_ENTRY = 200
"""Bytes of a tensor's entry in a header, at most or so."""
_TABLES = 2500
"""Bytes of the tables and entries of a matrix in NF4."""


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """True for the stored matrix of a linear layer that a quantized base of one of `KNOWN_TYPES` quantizes."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    return name.endswith(".weight") and len(shape) == 2 and _KEPT.fullmatch(module) is None


def is_turned(name: str, model_type: str) -> bool:
    """True where the matrix ``name`` lies as (in, out): in a Conv1D, which the head is not."""
    return model_type in _TURNED and _KEPT.fullmatch(name.removesuffix(".weight").rpartition(".")[2]) is None


def require_orientation(model_type: str) -> None:
    """Raise `ModelError` unless ``model_type`` is one of `KNOWN_TYPES`: an adapter says that its base is turned."""
    if model_type not in KNOWN_TYPES:
        raise ModelError(
            f"expected a model type of which efface knows how its matrices lie ({', '.join(sorted(KNOWN_TYPES))}), got "
            f"{model_type[:80]!r} and an adapter with fan_in_fan_out; where its base stores no Conv1D, correct that"
        )


def require_known(model_type: str) -> None:
    """Raise `ModelError` unless ``model_type`` is one of `KNOWN_TYPES`."""
    if model_type not in KNOWN_TYPES:
        raise ModelError(
            f"expected a model type whose quantized layers efface knows ({', '.join(sorted(KNOWN_TYPES))}), got "
            f"{model_type[:80]!r}: merge onto its original weights, without requantizing"
        )


def as_computed(weight: Tensor, precision: str, *, turned: bool = False) -> Tensor:
    """The matrix that a layer quantized to ``precision`` computes with, in the dtype and layout of ``weight``.

    ``turned``: it is stored as (in, out), as GPT-2 does; bitsandbytes quantizes it as (out, in).
    """
    from bitsandbytes import functional as bnb

    half = (weight.T.contiguous() if turned else weight).to(torch.bfloat16)
    if precision == "nf4":
        exact = bnb.dequantize_4bit(*bnb.quantize_4bit(half, quant_type="nf4", compress_statistics=True))
    else:
        rows, scale, _ = bnb.int8_vectorwise_quant(half.to(torch.float16))
        exact = rows.float() * scale[:, None] / 127.0
    return (exact.T if turned else exact).to(weight.dtype)


def as_stored(name: str, weight: Tensor, precision: str, *, turned: bool = False) -> dict[str, Tensor]:
    """The tensors that stand for the matrix ``name`` in a checkpoint quantized to ``precision``, by name."""
    from bitsandbytes import functional as bnb

    half = (weight.T.contiguous() if turned else weight).to(torch.bfloat16)
    if precision == "nf4":
        packed, state = bnb.quantize_4bit(half, quant_type="nf4", compress_statistics=True)
        return {name: packed, **{f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}}
    rows, scale, _ = bnb.int8_vectorwise_quant(half.to(torch.float16))
    module = name.removesuffix("weight")
    return {name: rows, f"{module}SCB": scale, f"{module}weight_format": torch.tensor(0, dtype=torch.uint8)}


def stored_bytes(name: str, shape: tuple[int, ...], precision: str) -> int:
    """About how many bytes `as_stored` makes of the tensor ``name``, headers included; a little more than it does."""
    values = math.prod(shape)
    if not is_quantized(name, shape):
        return 2 * values + _ENTRY
    if precision == "nf4":
        blocks = -(-values // 64)
        return -(-values // 2) + blocks + 4 * -(-blocks // 256) + _TABLES
    return values + 4 * max(shape) + 3 * _ENTRY


def config_of(precision: str) -> dict[str, Any]:
    """The ``quantization_config`` of a checkpoint quantized to ``precision``, for its ``config.json``."""
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True).to_dict()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    ).to_dict()


def shard_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """``tensors`` as a safetensors file, in pieces: widest dtypes first, so that each lies aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.dtype.itemsize * math.prod(tensor.shape)
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = text + b" " * (-len(text) % 8)
    yield len(padded).to_bytes(8, "little") + padded
    for name in names:
        yield raw_bytes(tensors[name])


def raw_bytes(tensor: Tensor) -> memoryview:
    """The values of ``tensor`` in its own order, without a copy where they lie so: do not change it meanwhile."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
