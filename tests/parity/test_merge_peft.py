"""Merging on files against PEFT's own merge in memory, and against the adapters unmerged."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import contents
from model_kit import logits
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from efface.adapters import load_base
from efface.adapters.compose import Part
from efface.adapters.errors import AdapterError, BaseMismatch, CompositionError, ModelError
from efface.adapters.merge import RECORD, as_computed, merge
from efface.adapters.model import fingerprint, keep_nf4_unpacked

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter(model: Any, folder: Path, seed: int, **options: Any) -> Path:
    """A LoRA with random A and B, saved by PEFT."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **options}
    wrapped = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    wrapped.unload()
    return folder


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    """In float32, so that only the merge itself can differ."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.max_new_tokens = 17
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def parts(base: Path, tmp_path: Path) -> list[Part]:
    model = AutoModelForCausalLM.from_pretrained(base)
    return [
        Part(adapter(model, tmp_path / "one", 1)),
        Part(
            adapter(model, tmp_path / "two", 2, r=2, use_rslora=True, target_modules=["q_proj", "up_proj"]),
            "0.5",
        ),
    ]


def peft_merged(base: Path, parts: list[Part]) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(base)
    for part in parts:
        wrapped = PeftModel.from_pretrained(model, part.folder)
        for module in wrapped.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] *= float(part.weight)
        model = wrapped.merge_and_unload()
    return model


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_it_is_what_peft_merges(base: Path, parts: list[Part], tmp_path: Path, shard: str | None) -> None:
    expected = logits(peft_merged(base, parts))
    if shard:
        model = AutoModelForCausalLM.from_pretrained(base)
        (base / "model.safetensors").unlink()
        model.save_pretrained(base, max_shard_size=shard)
        assert len(list(base.glob("*.safetensors"))) > 2
    before = contents(base)
    written: list[int] = []
    merged = merge(base, parts, tmp_path / "out", on_bytes=written.append)
    found = AutoModelForCausalLM.from_pretrained(merged.path)
    torch.testing.assert_close(logits(found), expected, rtol=1e-5, atol=1e-5)
    assert contents(base) == before
    assert sum(written) == merged.bytes == sum(p.stat().st_size for p in merged.path.glob("*.safetensors"))
    assert merged.modules == 14
    assert merged.base == fingerprint(base)
    assert merged.fingerprint == fingerprint(merged.path) != merged.base
    assert merged.fingerprint.tokenizer == merged.base.tokenizer
    assert merge(base, list(reversed(parts)), tmp_path / "again").fingerprint == merged.fingerprint


def test_everything_else_is_carried_and_pickles_are_not(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    (base / "pytorch_model.bin").write_bytes(b"a pickle")
    (base / ".hidden").write_text("x")
    (base / "README.md").write_text("the base's own card")
    merged = merge(base, parts, tmp_path / "out").path
    kept = {path.name for path in base.iterdir()} - {"pytorch_model.bin", ".hidden"}
    assert {path.name for path in merged.iterdir()} == kept | {RECORD}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()
    assert AutoTokenizer.from_pretrained(merged)("hamlet").input_ids
    record = json.loads((merged / RECORD).read_text())
    assert record["base"] == fingerprint(base).digest
    assert sorted(part["weight"] for part in record["parts"]) == ["0.5", "1"]
    card = (merged / "README.md").read_text()
    assert "*consolidated* once the base is withdrawn" in card
    assert all(part["adapter"] in card for part in record["parts"])


def test_half_precision_is_rounded_once(tiny_llama: Path, parts: list[Part], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "half")
    merged = load_file(merge(tmp_path / "half", parts[:1], tmp_path / "out").path / "model.safetensors")
    lora = load_file(parts[0].folder / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    weight = model.get_submodule(name).weight.detach()
    assert torch.equal(merged[f"{name}.weight"], (weight.float() + (b @ (2.0 * a))).to(torch.bfloat16))
    untouched = "model.embed_tokens.weight"
    assert torch.equal(merged[untouched], model.get_parameter(untouched).detach())


def test_onto_a_quantized_base_it_is_what_that_base_computes_with(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    loaded = load_base(base, "nf4")
    merged = merge(base, parts[:1], tmp_path / "out", onto="nf4")
    plain = merge(base, parts[:1], tmp_path / "plain")
    with torch.no_grad():
        quantized = PeftModel.from_pretrained(loaded.model, parts[0].folder)
        keep_nf4_unpacked(quantized)
        wanted = logits(quantized).float()
    got = logits(AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32))
    other = logits(AutoModelForCausalLM.from_pretrained(plain.path, dtype=torch.float32))
    # What is left is bfloat16: the quantized base computes in it.
    assert (got - wanted).abs().mean() < 0.35 * (other - wanted).abs().mean()
    assert merged.fingerprint != plain.fingerprint


def test_the_dequantized_weights_are_those_of_bitsandbytes(base: Path) -> None:
    from bitsandbytes import functional as bnb

    model = load_base(base, "nf4").model
    stored = load_file(base / "model.safetensors")
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            exact = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(as_computed(stored[f"{name}.weight"], "nf4"), exact.to(torch.float32)), name


def test_the_int8_weights_are_those_of_bitsandbytes(base: Path) -> None:
    model = load_base(base, "int8").model
    stored = load_file(base / "model.safetensors")
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear8bitLt":
            exact = module.weight.data.float() * module.weight.SCB[:, None] / 127.0
            assert torch.equal(as_computed(stored[f"{name}.weight"], "int8"), exact), name


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_requantized_it_is_what_transformers_makes_of_the_merge_on_loading(
    base: Path, parts: list[Part], tmp_path: Path, form: str, shard: str | None
) -> None:
    if shard:
        model = AutoModelForCausalLM.from_pretrained(base)
        (base / "model.safetensors").unlink()
        model.save_pretrained(base, max_shard_size=shard)
    plain = merge(base, parts, tmp_path / "plain")
    stored = merge(base, parts, tmp_path / "stored", requantize=form)
    assert stored.quantized == form
    assert stored.bytes == sum(p.stat().st_size for p in stored.path.glob("*.safetensors")) < plain.bytes
    assert stored.fingerprint == fingerprint(stored.path) != plain.fingerprint
    wanted, found = load_base(plain.path, form), load_base(stored.path, form)
    assert torch.equal(logits(found.model), logits(wanted.model))
    assert not torch.equal(logits(found.model), logits(load_base(base, form).model))
    saved = tmp_path / "saved"
    wanted.model.save_pretrained(saved)
    assert everything(stored.path).keys() == everything(saved).keys()
    for name, tensor in everything(saved).items():
        ours = everything(stored.path)[name]
        assert torch.equal(ours, tensor), name
    card, record = (stored.path / "README.md").read_text(), json.loads((stored.path / RECORD).read_text())
    assert f"then quantized to {form}" in card
    assert record["requantized"] == form
    config = json.loads((stored.path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "bitsandbytes"
    del config["quantization_config"]
    assert config == json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"}
    with pytest.raises(ModelError, match=f"quantized on disk to {form}: expected that precision, got bf16"):
        load_base(stored.path, "bf16")
    with pytest.raises(ModelError, match="got a checkpoint quantized on disk"):
        merge(stored.path, parts, tmp_path / "again")


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def test_a_base_in_the_hub_cache_is_merged_with_all_its_files(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    cache = tmp_path / "models--org--name"
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file in base.iterdir():
        shutil.copyfile(file, cache / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-{file.name}")
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "secret.json").symlink_to(tmp_path / "secret.json")
    merged = merge(snapshot, parts, tmp_path / "out")
    assert merged.fingerprint == merge(base, parts, tmp_path / "same").fingerprint
    assert contents(merged.path) == contents(tmp_path / "same")


def test_another_base_than_expected_leaves_nothing(base: Path, parts: list[Part], tmp_path: Path) -> None:
    with pytest.raises(BaseMismatch, match=rf"expected base sha256:0+, got {fingerprint(base).digest}"):
        merge(base, parts, tmp_path / "out", expect="sha256:" + "0" * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_a_shard_that_is_cut_while_it_is_read_is_noticed(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    weights = base / "model.safetensors"

    def cut(_bytes: int) -> None:
        if weights.stat().st_size > 2000:
            with weights.open("r+b") as file:
                file.truncate(2000)

    with pytest.raises(ModelError, match="got a shorter file"):
        merge(base, parts, tmp_path / "out", on_bytes=cut)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


def test_what_is_hashed_is_what_was_merged(base: Path, parts: list[Part], tmp_path: Path) -> None:
    """Another process puts a new file in the place of the one that is being read."""
    before = fingerprint(base)
    wanted = merge(base, parts, tmp_path / "wanted").fingerprint

    steps = iter(range(100))

    def swap(_bytes: int) -> None:
        if next(steps) < 2:
            return  # the file is opened behind its header
        other = tmp_path / "other"
        other.write_bytes(b"\0" * 100)
        other.replace(base / "model.safetensors")

    merged = merge(base, parts, tmp_path / "out", on_bytes=swap)
    assert (merged.base, merged.fingerprint) == (before, wanted)


def _no_index_entry(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="20KB")
    sorted(base.glob("model-*.safetensors"))[1].unlink()


def _cut(base: Path) -> None:
    data = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(data[:-10])


def _quantized_on_disk(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_4bit": True}}))


def _escaping_index(base: Path) -> None:
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../other.safetensors"}})
    )


def _another_model(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def _other_shapes(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (_no_index_entry, ModelError, "expected a shard of the checkpoint, got no file"),
        (_cut, ModelError, "fetch it again"),
        (_quantized_on_disk, ModelError, "got a checkpoint quantized on disk"),
        (_escaping_index, ModelError, "names of safetensors files beside it"),
        (_another_model, BaseMismatch, r"up_proj\.weight in the checkpoint, got none"),
        (_other_shapes, BaseMismatch, "of another base"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_written(
    base: Path, parts: list[Part], tmp_path: Path, spoil: Any, error: type[AdapterError], said: str
) -> None:
    spoil(base)
    with pytest.raises(error, match=said):
        merge(base, parts, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "two"]


@pytest.mark.parametrize("twice", [True, False])
def test_a_tied_head_is_refused(base: Path, tmp_path: Path, twice: bool) -> None:
    """Also where it is stored beside the embedding: vLLM would drop its delta, transformers would not."""
    untied = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=False)
    torch.nn.init.normal_(untied.lm_head.weight)
    untied.save_pretrained(base)
    lora = adapter(untied, tmp_path / "lora", 4, target_modules=["lm_head"])
    merge(base, [Part(lora)], tmp_path / "untied")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(base / "model.safetensors")
    assert "lm_head.weight" in tensors
    if not twice:
        del tensors["lm_head.weight"]
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseMismatch, match="shares its weight with the embedding"):
        merge(base, [Part(lora)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"])
@pytest.mark.parametrize("form", [None, "nf4"])
def test_a_base_that_is_not_finite_is_refused_wherever_it_is(
    base: Path, parts: list[Part], tmp_path: Path, form: str | None, tensor: str
) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors[tensor].view(-1)[3] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{tensor}: expected finite weights in the base, got 1 NaN"):
        merge(base, parts, tmp_path / "out", requantize=form)
    assert not (tmp_path / "out").exists()


def test_a_mask_of_old_checkpoints_is_no_weight(base: Path, parts: list[Part], tmp_path: Path) -> None:
    """-1e9 in float16; transformers does not load it."""
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.attention.masked_bias"] = torch.tensor(-1e9).half()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    merged = load_file(merge(base, parts, tmp_path / "out").path / "model.safetensors")
    assert merged["model.layers.0.attention.masked_bias"] == float("-inf")


def test_a_config_that_changes_meanwhile_is_noticed(base: Path, parts: list[Part], tmp_path: Path) -> None:
    """What it says of how matrices lie has decided by then."""
    config = (base / "config.json").read_bytes()
    with pytest.raises(ModelError, match="expected what was read first, got another; merge again"):
        merge(
            base,
            parts,
            tmp_path / "out",
            on_bytes=lambda _count: (base / "config.json").write_bytes(config + b" ") and None,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{"requantize": "int8"}, {"onto": "nf4"}])
def test_nothing_is_quantized_by_guessing_at_names(
    base: Path, parts: list[Part], tmp_path: Path, options: dict[str, str]
) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    with pytest.raises(ModelError, match=r"quantized layers efface knows \(.*llama.*got 'mixtral'"):
        merge(base, parts, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [None, "nf4"])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    base: Path, parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str | None
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CompositionError, match=r"expected room for out .* got a full disk"):
        merge(base, parts, tmp_path / "out", requantize=form)
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_no_room_and_nonsense_are_refused(
    base: Path, parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CompositionError, match="onto to be one of original, nf4, int8"):
        merge(base, parts, tmp_path / "out", onto="fp8")
    with pytest.raises(CompositionError, match="requantize to be one of nf4, int8, got 'bf16'"):
        merge(base, parts, tmp_path / "out", requantize="bf16")
    (tmp_path / "taken").mkdir()
    with pytest.raises(CompositionError, match="not rewritten"):
        merge(base, parts, tmp_path / "taken")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(CompositionError, match="free bytes"):
        merge(base, parts, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "one", "taken", "two"]
