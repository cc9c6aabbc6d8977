"""Merging where matrices lie as (in, out): the base says so, not the adapter. And which matrices are quantized."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_kit import logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from efface.adapters import attach, detach, load, load_base, save
from efface.adapters.compose import Part
from efface.adapters.errors import BaseMismatch, ModelError
from efface.adapters.merge import as_computed, merge
from efface.adapters.quantized_files import KNOWN_TYPES, is_quantized, is_turned

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to (True|False):UserWarning")


@pytest.fixture
def gpt2(tiny_llama: Path, tmp_path: Path) -> Path:
    """Random and tiny; 64 wide, so that NF4 has whole blocks."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2, vocab_size=64, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def by_peft(gpt2: Path, folder: Path, targets: str) -> Path:
    """A random adapter of the model as it is, which PEFT says to be turned."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=True, task_type="CAUSAL_LM")
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(gpt2), config)
    shake(wrapped)
    wrapped.save_pretrained(folder)
    return folder


def by_efface(gpt2: Path, folder: Path, targets: str) -> Path:
    """A random adapter of the model in NF4, whose linear layers are not turned."""
    base = load_base(gpt2, "nf4")
    wrapped = attach(base.model, rank=4, alpha=8, targets=targets, seed=3)
    shake(wrapped)
    save(wrapped, folder, base=base.fingerprint.digest)
    return folder


def shake(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def headless(gpt2: Path) -> None:
    """As `openai-community/gpt2` is stored."""
    tensors = load_file(gpt2 / "model.safetensors")
    short = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(short, gpt2 / "model.safetensors", metadata={"format": "pt"})


def in_memory(gpt2: Path, folder: Path) -> Any:
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), folder)
    return model.merge_and_unload()


@pytest.mark.parametrize("made", [by_peft, by_efface])
@pytest.mark.parametrize("targets", [r".*c_attn", r".*attn\.c_proj", r".*mlp\.c_(fc|proj)"])
@pytest.mark.parametrize("short", [False, True])
def test_matrices_stay_turned_whatever_the_adapter_says(
    gpt2: Path, tmp_path: Path, made: Callable[[Path, Path, str], Path], targets: str, short: bool
) -> None:
    """`attn.c_proj` is square: turned the wrong way it would fit, and change another function."""
    lora = made(gpt2, tmp_path / "lora", targets)
    expected = logits(in_memory(gpt2, lora))
    bare = logits(AutoModelForCausalLM.from_pretrained(gpt2))
    if short:
        headless(gpt2)
    merged = merge(gpt2, [Part(lora)], tmp_path / "out")
    found = logits(AutoModelForCausalLM.from_pretrained(merged.path))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - bare).abs().max() > 0.01


def test_two_names_for_one_matrix_are_refused(gpt2: Path, tmp_path: Path) -> None:
    """Else one of the two changes would be lost."""
    lora = by_efface(gpt2, tmp_path / "lora", r".*attn\.c_proj")
    other = by_efface(gpt2, tmp_path / "other", r".*attn\.c_proj")
    headless(gpt2)
    renamed(other, "transformer.", "")
    with pytest.raises(BaseMismatch, match=r"one module for h\.0\.attn\.c_proj\.weight, got"):
        merge(gpt2, [Part(lora), Part(other)], tmp_path / "out")
    renamed(lora, "transformer.", "decoder.")
    with pytest.raises(BaseMismatch, match=r"expected decoder\.h\.0\.attn\.c_proj\.weight in the checkpoint"):
        merge(gpt2, [Part(lora)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def renamed(folder: Path, prefix: str, to: str) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = {name.replace(f"model.{prefix}h", f"model.{to}h"): t for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(f'"{prefix}h', f'"{to}h'))


def test_a_type_whose_matrices_may_lie_either_way_is_refused(gpt2: Path, tmp_path: Path) -> None:
    lora = by_peft(gpt2, tmp_path / "lora", r".*attn\.c_proj")
    config = json.loads((gpt2 / "config.json").read_text())
    for said, kind in (("'imagegpt'", {"model_type": "imagegpt"}), ("'no model_type'", {"model_type": None})):
        (gpt2 / "config.json").write_text(json.dumps(config | kind))
        with pytest.raises(ModelError, match=f"got {said} and an adapter with fan_in_fan_out"):
            merge(gpt2, [Part(lora)], tmp_path / "out")


def test_an_adapter_of_the_quantized_base_fits_the_plain_one(gpt2: Path, tmp_path: Path) -> None:
    folder = by_efface(gpt2, tmp_path / "lora", r".*attn\.c_proj")
    base = load_base(gpt2, "fp32")
    bare = logits(base.model)
    model = load(base.model, folder)
    torch.testing.assert_close(logits(model), logits(in_memory(gpt2, folder)), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(detach(model)), bare)


def test_quantized_it_is_what_transformers_quantizes(gpt2: Path, tmp_path: Path) -> None:
    lora = Part(by_peft(gpt2, tmp_path / "lora", r".*c_attn"))
    plain = merge(gpt2, [lora], tmp_path / "plain")
    stored = merge(gpt2, [lora], tmp_path / "stored", requantize="nf4")
    assert torch.equal(logits(load_base(stored.path).model), logits(load_base(plain.path).model))
    from bitsandbytes import functional as bnb

    quantized: Any = load_base(gpt2).model.get_submodule("transformer.h.0.mlp.c_fc").weight
    exact = bnb.dequantize_4bit(quantized.data, quantized.quant_state).float()
    weight = load_file(gpt2 / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    assert torch.equal(as_computed(weight, "nf4", turned=True), exact.T)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(KNOWN_TYPES))
def test_names_say_what_transformers_quantizes(kind: str) -> None:
    """A model as its config makes it by default, without weights: what is stored against what bitsandbytes replaces."""
    config = CONFIG_MAPPING[kind]()
    for depth in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if isinstance(getattr(config, depth, None), int) and not getattr(config, "layer_types", None):
            setattr(config, depth, 2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kept = get_keys_to_not_convert(model)
    layers = {
        f"{name}.weight": type(module)
        for name, module in model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is torch.nn.Linear)
        and should_convert_module(name, kept)
    }
    stored = {name for name, tensor in model.state_dict().items() if is_quantized(name, tuple(tensor.shape))}
    assert stored == set(layers) != set()
    assert {name for name in stored if is_turned(name, kind)} == {n for n in layers if layers[n] is Conv1D}
