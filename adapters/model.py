"""Load a base model at a stated precision, and say exactly which base it is.

An audit and an adapter hold only for the base and the precision they were made at (quantizing can bring
forgotten text back, arXiv 2410.16454), so every loaded base carries a :class:`Fingerprint`.

Safetensors only, ``trust_remote_code=False``: a base is data, never code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .arithmetic import compute_dtype, widen
from .errors import ModelError, is_out_of_memory

Quantization = Literal["nf4", "int8", "bf16", "fp32"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# What transformers raises for files that are not a model of a kind it knows.
BROKEN = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
    *(ImportError, SafetensorError, StrictDataclassError),
)
_HUB_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a base is: SHA-256 over its config, tokenizer and weight files as they lie on disk.

    Quantization is not part of :attr:`digest`: it is done at load time, from the same files, and every
    record that names a base names the precision beside it.
    """

    config: str
    tokenizer: str
    weights: str

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` over the three parts; the identity of the base everywhere in efface."""
        parts = {"config": self.config, "tokenizer": self.tokenizer, "weights": self.weights}
        return _digest(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Base:
    """A loaded base: frozen weights in ``eval`` mode, its tokenizer, and what it is."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: Fingerprint
    quantization: Quantization
    path: Path


def load_base(source: str | Path, quantization: str = "nf4", *, device: str | None = None) -> Base:
    """Load ``source`` (a folder or a Hub id) for training adapters on it or auditing it.

    ``nf4``: 4-bit NormalFloat with double quantization (QLoRA, arXiv 2305.14314); ``int8``: LLM.int8() (arXiv
    2208.07339); ``bf16``; all computed in bf16, or in float32 on a CPU without bf16 (`arithmetic`); ``fp32``. The
    model's parameters do not require gradients. ``device`` defaults to CUDA where there is one.

    Raises :class:`ModelError` for an unknown precision, an absent folder, or files that are not a model.
    """
    if quantization not in QUANTIZATIONS:
        raise ModelError(f"unknown quantization {quantization!r}: expected one of {', '.join(QUANTIZATIONS)}")
    path = resolve(source)
    marks = fingerprint(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    compute = compute_dtype(device)
    stored = stored_quantization(path)
    if stored not in (None, quantization):
        raise ModelError(
            f"{path} is quantized on disk to {stored}: expected that precision, got {quantization}"
        )
    arguments = _load_arguments(quantization, device)
    if stored is not None:
        del arguments["quantization_config"]  # its own, which is the same
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, **arguments)
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (*BROKEN, MemoryError) as error:
        if is_out_of_memory(error):
            smaller = "" if quantization == "nf4" else "take quantization nf4, or "
            raise ModelError(
                f"out of memory loading {path} at {quantization}: {smaller}close what else uses memory"
            ) from error
        raise ModelError(f"{path} does not load as a causal language model: {error}") from error
    if missing := sorted(info["missing_keys"]):
        # transformers fills them with random numbers and goes on.
        raise ModelError(f"{path} lacks {len(missing)} tensors, such as {missing[0]}: fetch the model again")
    # It decides answers (a repetition penalty, say) and is not in the fingerprint.
    model.generation_config = GenerationConfig()
    keep_nf4_unpacked(model)
    if quantization in ("nf4", "int8"):
        release_file(model)
    if compute == torch.float32:
        widen(model)
    model.requires_grad_(False).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model, tokenizer, marks, quantization, path)  # type: ignore[arg-type]


def stored_quantization(path: Path) -> str | None:
    """`nf4` or `int8` for a checkpoint that bitsandbytes quantized on disk, None for a plain one.

    Raises :class:`ModelError` for any other quantization, and for a config that is no JSON object.
    """
    try:
        config = json.loads((path / "config.json").read_bytes())
        stored = config.get("quantization_config")
        if stored is None:
            return None
        if stored.get("load_in_8bit"):
            return "int8"
        if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
            return "nf4"
        method = stored.get("quant_method", "another method")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path / 'config.json'}: expected a JSON object, got {error}; fetch the model again"
        ) from error
    raise ModelError(
        f"{path}: expected plain weights, or nf4 or int8 of bitsandbytes, got {str(method)[:40]!r}; use its original"
    )


def keep_nf4_unpacked(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking NF4 weights for AVX512-BF16 processors.

    In eval mode bitsandbytes 0.50.2 repacks each weight at its first forward and cannot undo it exactly:
    ``state_dict()``, hot-swapping or loading a second adapter then leave a wrong base (logits off by up to
    44). Without the repacking everything is bit-exact. `tests/unit/adapters/test_model.py` says when the
    library no longer needs this.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def release_file(model: torch.nn.Module) -> None:
    """Copy what was not quantized out of the memory-mapped file: one view of it keeps all its pages resident."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def resolve(source: str | Path) -> Path:
    """The folder that holds ``source``: itself when it is one, else the Hub snapshot of that id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists() or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1:
        raise ModelError(
            f"no model at {source!r}: expected a folder with config.json and safetensors weights, or a Hub id "
            "such as org/name; `efface model fetch smollm2-135m` brings the demo model"
        )
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_HUB_PATTERNS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(f"no folder {source!r}, and the Hub gave no model of that id: {error}") from error


def fingerprint(path: Path) -> Fingerprint:
    """Hash the files of the model folder ``path`` (0.3 s per GB or so).

    Raises :class:`ModelError` when config, tokenizer or safetensors weights are missing.
    """
    return fingerprint_of(model_files(path), _file_digest)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model folder that say what it is."""

    config: Path
    tokenizer: tuple[Path, ...]
    weights: tuple[Path, ...]


def model_files(path: Path) -> ModelFiles:
    """What `fingerprint` hashes. Raises :class:`ModelError` when config, tokenizer or weights are missing."""
    weights = sorted(path.glob("*.safetensors"))
    tokenizer = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    config = path / "config.json"
    missing = [
        what
        for what, there in (
            ("config.json", config.is_file()),
            ("*.safetensors", weights),
            ("tokenizer", tokenizer),
        )
        if not there
    ]
    if missing:
        raise ModelError(f"{path} is not a model folder: it lacks {', '.join(missing)}")
    return ModelFiles(config, tuple(tokenizer), tuple(weights))


def fingerprint_of(files: ModelFiles, digest: Callable[[Path], str]) -> Fingerprint:
    """The fingerprint of ``files`` whose SHA-256 ``digest`` says (``sha256:<hex>``)."""
    parts = [
        _listing_digest({f.name: digest(f) for f in some})
        for some in ([files.config], files.tokenizer, files.weights)
    ]
    return Fingerprint(*parts)


def state_digest(model: torch.nn.Module) -> str:
    """``sha256:<hex>`` of every base parameter and buffer in memory, LoRA tensors left out.

    Two calls around any sequence of attach, swap and detach must agree: that is the proof that the base
    was not touched. Reads raw bytes, the scales of 4-bit and 8-bit weights too: those are what bitsandbytes
    spoils when it repacks.
    """
    running = hashlib.sha256()
    for name, tensor in sorted(_base_tensors(model)):
        running.update(name.encode())
        running.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{running.hexdigest()}"


def _base_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers(), *_scales(model)):
        if "lora_" not in name:
            yield name.replace("base_model.model.", "").replace(".base_layer", ""), tensor


def _scales(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a quantized weight needs besides its packed bytes; neither a parameter nor a buffer."""
    for name, module in model.named_modules():
        quantized: Any = module
        if isinstance(module, Linear4bit) and quantized.weight.quant_state is not None:
            for key, value in quantized.weight.quant_state.as_dict(packed=True).items():
                yield f"{name}.weight.{key}", value
        if isinstance(module, Linear8bitLt):
            # The first forward moves them from the weight to the module.
            scales = quantized.weight.SCB
            yield f"{name}.SCB", quantized.state.SCB if scales is None else scales


def _load_arguments(quantization: str, device: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": torch.float32 if quantization == "fp32" else torch.bfloat16,
        "device_map": {"": device},
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    if quantization == "nf4":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if quantization == "int8":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return arguments


def _listing_digest(listing: Mapping[str, str]) -> str:
    return _digest(json.dumps(listing, sort_keys=True, separators=(",", ":")).encode())


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
