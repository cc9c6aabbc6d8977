"""Adapters of many forms on `tiny_llama`, and what a fresh load of each answers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from model_kit import logits
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from efface.adapters.lora import load

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Form:
    """An adapter to make. ``ranks``: rank and alpha by layer suffix, beside ``rank`` and ``alpha``."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] = (0, 1)
    rslora: bool = False
    dtype: torch.dtype = torch.float32
    ranks: tuple[tuple[str, int, float], ...] = ()
    head: bool = False


FORMS = (
    Form(4, 8, ATTENTION + MLP),
    Form(4, 4, ATTENTION + MLP),  # another alpha: what PEFT leaves stale
    Form(8, 16, ATTENTION + MLP, rslora=True),
    Form(2, 3, ("q_proj", "v_proj")),
    Form(1, 1, MLP, layers=(1,)),
    Form(4, 8, ATTENTION, dtype=torch.bfloat16),
    Form(3, 5, ("q_proj", "up_proj"), ranks=(("up_proj", 7, 2.5),)),
    Form(5, 5, ("v_proj",), head=True),
)


def write_form(base: Path, form: Form, seed: int, folder: Path) -> Path:
    """Random values in the shape of ``form``, as a PEFT folder written by hand."""
    model = AutoModelForCausalLM.from_pretrained(base)
    draw = torch.Generator().manual_seed(seed)
    own = {suffix: (rank, alpha) for suffix, rank, alpha in form.ranks}
    tensors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        suffix = name.rsplit(".", 1)[-1]
        wanted = suffix in form.targets and any(f".{layer}." in name for layer in form.layers)
        if not isinstance(module, torch.nn.Linear) or not (wanted or (form.head and name == "lm_head")):
            continue
        rank = own.get(suffix, (form.rank, 0))[0]
        for side, shape in (("A", (rank, module.in_features)), ("B", (module.out_features, rank))):
            values = 0.3 * torch.randn(shape, generator=draw)
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = values.to(form.dtype)
    names = sorted({key[17:].rsplit(".lora_", 1)[0] for key in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tests/tiny",
        "r": form.rank,
        "lora_alpha": form.alpha,
        "use_rslora": form.rslora,
        "rank_pattern": {name: own[s][0] for name in names if (s := name.rsplit(".", 1)[-1]) in own},
        "alpha_pattern": {name: own[s][1] for name in names if (s := name.rsplit(".", 1)[-1]) in own},
        "target_modules": names,
        "bias": "none",
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def write_forms(base: Path, out: Path, forms: Sequence[Form] = FORMS) -> list[Path]:
    return [write_form(base, form, seed, out / f"a{seed}") for seed, form in enumerate(forms)]


def fresh(base: Path, dtype: torch.dtype, adapter: Path) -> torch.Tensor:
    """Logits of a base loaded now with PEFT's own loading of ``adapter``."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    return logits(load(model, adapter))
