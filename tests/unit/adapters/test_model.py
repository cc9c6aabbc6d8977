"""Bases: which they are (fingerprint), at what precision they load, and that they stay what they are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from model_kit import PROMPT, logits, taught, wide
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from efface.adapters.arithmetic import compute_dtype
from efface.adapters.errors import ModelError
from efface.adapters.generate import greedy
from efface.adapters.lora import attach
from efface.adapters.model import (
    QUANTIZATIONS,
    fingerprint,
    keep_nf4_unpacked,
    load_base,
    resolve,
    state_digest,
)

WEIGHTS = "model.safetensors"
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", WEIGHTS)
LINEARS = {"nf4": Linear4bit, "int8": Linear8bitLt, "bf16": torch.nn.Linear, "fp32": torch.nn.Linear}


@pytest.fixture(scope="module")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tiny_llama, tmp_path_factory.mktemp("model") / "taught")


@pytest.fixture(scope="module")
def packable(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide(tiny_llama, tmp_path_factory.mktemp("model") / "wide")


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model folder that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


# --- fingerprint


def test_fingerprint_is_of_the_files_wherever_they_lie(tiny_llama: Path, folder: Path) -> None:
    found = fingerprint(tiny_llama)
    (folder / "README.md").write_text("not a part of the base")
    assert fingerprint(folder) == fingerprint(tiny_llama) == found
    marks = (found.config, found.tokenizer, found.weights, found.digest)
    assert all(mark.startswith("sha256:") and len(mark) == 71 for mark in marks)
    assert len(set(marks)) == 4


@pytest.mark.parametrize("name", FILES)
def test_fingerprint_changes_with_every_file(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    after = fingerprint(folder)
    assert after.digest != before.digest
    parts = ("config", "tokenizer", "weights")
    changed = {part for part in parts if getattr(after, part) != getattr(before, part)}
    assert changed == {"config" if name == "config.json" else "weights" if name == WEIGHTS else "tokenizer"}


def test_fingerprint_sees_an_added_a_removed_and_a_renamed_file(folder: Path) -> None:
    found = {fingerprint(folder).digest}
    shutil.copy(folder / WEIGHTS, folder / "more.safetensors")
    found.add(fingerprint(folder).digest)
    (folder / WEIGHTS).unlink()
    found.add(fingerprint(folder).digest)
    (folder / "chat_template.jinja").unlink()
    found.add(fingerprint(folder).digest)
    assert len(found) == 4


@pytest.mark.parametrize("pattern", ["config.json", "tokenizer", "*.safetensors"])
def test_a_folder_without_its_files_is_named_with_what_it_lacks(folder: Path, pattern: str) -> None:
    gone = FILES[1:4] if pattern == "tokenizer" else [path.name for path in folder.glob(pattern)]
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(ModelError) as caught:
        load_base(folder, "bf16")
    assert str(caught.value) == f"{folder} is not a model folder: it lacks {pattern}"


def test_all_that_an_empty_folder_lacks_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks config\.json, \*\.safetensors, tokenizer$"):
        fingerprint(tmp_path)


# --- what does not load


def test_unknown_quantization_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown quantization 'fp4': expected one of nf4, int8, bf16, fp32"):
        load_base(tmp_path / "nowhere", "fp4")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere", "nowhere", "a/b/c"])
def test_an_absent_folder_is_refused_without_asking_the_hub(source: str) -> None:
    with pytest.raises(ModelError, match=r"no model at .*expected a folder .*efface model fetch"):
        resolve(source)


def test_a_file_is_not_a_folder(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="expected a folder"):
        resolve(tiny_llama / "config.json")


def test_a_hub_id_that_cannot_be_had_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="no folder 'nobody/nothing', and the Hub gave no model of that id"):
        load_base("nobody/nothing", "bf16")


def config(**changes: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | changes))

    return write


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def reshape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


SPOILED: dict[str, Callable[[Path], object]] = {
    "weights are noise": write(WEIGHTS, b"x" * 100),
    "weights are empty": write(WEIGHTS, b""),
    "weights are cut": truncate,
    "a weight has another shape": reshape,
    "config is cut": write("config.json", b"{"),
    "config is a list": write("config.json", b"[]"),
    "config of no kind": write("config.json", b'{"model_type": "nope"}'),
    "config of an encoder-decoder": write("config.json", b'{"model_type": "t5"}'),
    "config with a text for a size": config(hidden_size="big"),
    "config without heads": config(num_attention_heads=0),
    "config with an unknown activation": config(hidden_act="nope"),
    "config of a quantizer that is not here": config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "tokenizer is cut": write("tokenizer.json", b"{"),
    "tokenizer is empty": write("tokenizer.json", b"{}"),
    "tokenizer config is cut": write("tokenizer_config.json", b"{"),
}


# What is said before transformers is asked.
SAID = {
    "config is cut": "expected a JSON object",
    "config is a list": "expected a JSON object",
    "config of a quantizer that is not here": "expected plain weights, or nf4 or int8 of bitsandbytes, got 'gptq'",
}


@pytest.mark.parametrize("case", SPOILED)
def test_files_that_are_not_a_model_are_a_model_error(folder: Path, case: str) -> None:
    SPOILED[case](folder)
    with pytest.raises(ModelError, match=SAID.get(case, "does not load as a causal language model")):
        load_base(folder, "bf16")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_missing_tensor_is_named_and_not_made_up(folder: Path, quantization: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(folder, quantization)


def test_code_in_a_model_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config(auto_map={"AutoModelForCausalLM": "evil.Evil", "AutoConfig": "evil.Evil"})(folder)
    assert type(load_base(folder, "bf16").model).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


# --- what loads


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_precision_loads_frozen_and_near_the_exact_model(known: Path, quantization: str) -> None:
    base = load_base(known, quantization)
    layer = base.model.get_submodule("model.layers.0.mlp.up_proj")
    assert type(layer) is LINEARS[quantization]
    assert base.quantization == quantization
    assert base.fingerprint == fingerprint(known)
    assert base.path == known
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.model.dtype == (torch.float32 if quantization == "fp32" else compute_dtype("cpu"))
    exact = logits(AutoModelForCausalLM.from_pretrained(known).eval()).softmax(-1)
    found = logits(base.model).float().softmax(-1)
    bound = {"fp32": 0.0, "bf16": 0.05, "int8": 0.05, "nf4": 0.5}[quantization]
    assert (found - exact).abs().max() <= bound


def test_a_tokenizer_without_pad_token_pads_with_its_eos(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    del fields["pad_token"]
    path.write_text(json.dumps(fields))
    tokenizer = load_base(folder, "fp32").tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_generation_rules_in_the_folder_do_not_decide_answers(known: Path, tmp_path: Path) -> None:
    """They are not in the fingerprint, and a greedy answer is the argmax of the weights."""
    ruled = Path(shutil.copytree(known, tmp_path / "ruled"))
    rules = {"repetition_penalty": 50.0, "suppress_tokens": [11, 21, 23], "do_sample": True, "num_beams": 3}
    (ruled / "generation_config.json").write_text(json.dumps(rules))
    assert fingerprint(ruled) == fingerprint(known)
    plain, other = (load_base(path, "fp32") for path in (known, ruled))
    prompts = PROMPT.tolist()
    answers = greedy(plain.model, plain.tokenizer, prompts, max_new_tokens=6)
    assert greedy(other.model, other.tokenizer, prompts, max_new_tokens=6) == answers


# --- staying what it is


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_two_loads_are_the_same_base_and_asking_does_not_change_it(packable: Path, quantization: str) -> None:
    one, other = (load_base(packable, quantization).model for _ in range(2))
    fresh, before = state_digest(one), logits(one)
    one.state_dict()
    assert torch.equal(logits(one), before)
    assert torch.equal(logits(other), before)
    assert state_digest(one) == state_digest(other) == fresh


def spoiled_scale(model: torch.nn.Module, quantization: str) -> torch.Tensor:
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    if quantization == "nf4":
        return layer.weight.quant_state.absmax  # type: ignore[union-attr,return-value]
    return layer.weight.SCB if quantization == "int8" else layer.weight  # type: ignore[union-attr,return-value]


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_state_digest_sees_one_value(packable: Path, quantization: str) -> None:
    model = load_base(packable, quantization).model
    before = state_digest(model)
    values = spoiled_scale(model, quantization).data.view(-1)
    kept = values[0].clone()
    values[0] += 1
    assert state_digest(model) != before
    values[0] = kept
    assert state_digest(model) == before
    model.model.norm.weight.data[0] += 1
    assert state_digest(model) != before


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_state_digest_leaves_adapters_out(packable: Path, quantization: str) -> None:
    model = load_base(packable, quantization).model
    before = state_digest(model)
    assert state_digest(attach(model, rank=2)) == before


# --- the bitsandbytes workaround


def unguarded(folder: Path, *, double_quant: bool) -> torch.nn.Module:
    """An NF4 base as transformers loads it, without `keep_nf4_unpacked`."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    arguments = {"dtype": torch.bfloat16, "quantization_config": settings, "device_map": {"": "cpu"}}
    return AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()


def test_keep_nf4_unpacked_reaches_every_4bit_layer(packable: Path) -> None:
    layers = [m for m in load_base(packable, "nf4").model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_guarded_nf4_keeps_its_weights_and_computes_as_in_training(packable: Path) -> None:
    model = unguarded(packable, double_quant=True)
    keep_nf4_unpacked(model)
    untouched = logits(model.train())  # bitsandbytes never repacks in training mode
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(logits(model.eval()), untouched)
    after = model.state_dict()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    assert torch.equal(logits(model), untouched)


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks NF4 only on a CPU with avx512_bf16")
@pytest.mark.parametrize("double_quant", [True, False])
def test_canary_bitsandbytes_still_spoils_nf4_without_the_guard(packable: Path, double_quant: bool) -> None:
    """When this fails, bitsandbytes is mended: `keep_nf4_unpacked` and its callers can go."""
    model = unguarded(packable, double_quant=double_quant)
    untouched, fresh = logits(model.train()), state_digest(model)
    logits(model.eval())  # the first forward in eval mode repacks
    model.state_dict()  # and this unpacks
    assert state_digest(model) != fresh
    assert not torch.equal(logits(model.train()), untouched)


def test_too_little_memory_is_not_a_broken_model(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's allocator says so with a RuntimeError, as do files that are no model."""

    def exhausted(*_: object, **__: object) -> None:
        torch.empty(1 << 60)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", exhausted)
    with pytest.raises(ModelError, match=r"out of memory loading .* at bf16: take quantization nf4"):
        load_base(tiny_llama, "bf16")
