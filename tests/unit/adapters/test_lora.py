"""Attach, save, load, disable and detach: what an adapter adds is exact, and the base never changes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_files import contents
from model_kit import fill_lora, logits, wide

from efface.adapters.errors import AdapterError, BaseMismatch, InvalidAdapter, ModelError
from efface.adapters.folder import delta, read_adapter
from efface.adapters.lora import assert_unmerged, attach, detach, disabled, load, save
from efface.adapters.model import QUANTIZATIONS, load_base, state_digest

NAME = "sha256:" + "ab" * 32


@pytest.fixture(scope="module")
def packable(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide(tiny_llama, tmp_path_factory.mktemp("lora") / "wide")


every_precision = pytest.mark.parametrize("quantization", QUANTIZATIONS)


@every_precision
def test_attach_is_the_identity_at_the_start(packable: Path, quantization: str) -> None:
    model = load_base(packable, quantization).model
    before = logits(model)
    worn = attach(model, rank=4, alpha=8)
    assert torch.equal(logits(worn), before)
    lora = {name: p for name, p in worn.named_parameters() if "lora_" in name}
    assert len(lora) == 2 * 7 * 2  # A and B, seven linear layers, two blocks
    assert {p.dtype for p in lora.values()} == {torch.float32}
    assert all(("lora_B" in name) == bool(p.eq(0).all()) for name, p in lora.items())
    assert {name for name, p in worn.named_parameters() if p.requires_grad} == set(lora)


def test_the_seed_decides_the_start(tiny_llama: Path) -> None:
    def start(seed: int) -> list[torch.Tensor]:
        worn = attach(load_base(tiny_llama, "fp32").model, rank=2, seed=seed)
        return [p for name, p in worn.named_parameters() if "lora_A" in name]

    torch.manual_seed(1)
    first = start(5)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, start(5)))
    assert not any(map(torch.equal, first, start(6)))


@pytest.mark.parametrize("targets", ["nope", ["nope"], []])
def test_unknown_targets_are_named_with_those_that_exist(tiny_llama: Path, targets: str | list[str]) -> None:
    model = load_base(tiny_llama, "fp32").model
    fresh, before = state_digest(model), logits(model)
    with pytest.raises(ModelError) as caught:
        attach(model, targets=targets)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj exist" in str(caught.value)
    assert state_digest(model) == fresh
    assert torch.equal(logits(attach(model, targets=["q_proj"])), before)


# --- save and load


@every_precision
def test_a_saved_adapter_gives_the_trained_models_logits_bit_for_bit(
    packable: Path, tmp_path: Path, quantization: str
) -> None:
    worn = attach(load_base(packable, quantization).model, rank=4, alpha=8)
    fill_lora(worn, seed=1)
    trained = logits(worn)
    save(worn, tmp_path / "adapter", base=NAME)
    fresh = load_base(packable, quantization).model
    assert not torch.equal(logits(fresh), trained)
    loaded = load(fresh, tmp_path / "adapter")
    assert torch.equal(logits(loaded), trained)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_same_weights_are_the_same_bytes_under_any_name(tiny_llama: Path, tmp_path: Path) -> None:
    worn = attach(load_base(tiny_llama, "fp32").model, rank=4, alpha=8)
    fill_lora(worn, seed=1)
    for name in ("one", "two", "two"):  # the third is written over the second
        save(worn, tmp_path / name, base=NAME)
    again = load(load_base(tiny_llama, "fp32").model, tmp_path / "one", name="other")
    save(again, tmp_path / "three", base=NAME)
    files = [contents(tmp_path / name) for name in ("one", "two", "three")]
    assert files[0] == files[1] == files[2]
    assert sorted(files[0]) == ["adapter_config.json", "adapter_model.safetensors"]
    fill_lora(worn, seed=2)
    save(worn, tmp_path / "two", base=NAME)
    assert contents(tmp_path / "two")["adapter_model.safetensors"] != files[0]["adapter_model.safetensors"]


def test_a_saved_adapter_is_what_read_adapter_takes(tiny_llama: Path, tmp_path: Path) -> None:
    worn = attach(load_base(tiny_llama, "fp32").model, rank=4, alpha=6)
    fill_lora(worn, seed=1)
    save(worn, tmp_path / "adapter", base=NAME)
    read = read_adapter(tmp_path / "adapter")
    assert read.config.base_model_name_or_path == NAME
    assert read.rank == 4
    assert len(read.modules) == 14
    for name in read.modules:
        theirs = worn.get_submodule(f"base_model.model.{name}").get_delta_weight("default")  # type: ignore[operator]
        torch.testing.assert_close(delta(read, name), theirs, rtol=1e-5, atol=1e-6)
    assert str(tiny_llama).encode() not in b"".join(contents(tmp_path).values())


def test_rank_stabilised_scaling_survives(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    worn = get_peft_model(load_base(tiny_llama, "fp32").model, config)
    fill_lora(worn, seed=1)
    save(worn, tmp_path / "adapter", base=NAME)  # type: ignore[arg-type]
    assert torch.equal(logits(load(load_base(tiny_llama, "fp32").model, tmp_path / "adapter")), logits(worn))


def test_weights_that_are_not_finite_are_not_written(tiny_llama: Path, tmp_path: Path) -> None:
    worn = attach(load_base(tiny_llama, "fp32").model, rank=2)
    next(p for name, p in worn.named_parameters() if "lora_B" in name).data[0, 0] = torch.nan
    with pytest.raises(InvalidAdapter, match="expected finite values, got 1 NaN"):
        save(worn, tmp_path / "adapter", base=NAME)
    assert not (tmp_path / "adapter").exists()


def test_load_refuses_what_does_not_fit_without_touching_the_base(
    tiny_llama: Path, packable: Path, tmp_path: Path
) -> None:
    save(attach(load_base(packable, "fp32").model, rank=2), tmp_path / "wide", base=NAME)
    model = load_base(tiny_llama, "fp32").model
    modules, fresh = [type(m) for m in model.modules()], state_digest(model)
    with pytest.raises(
        BaseMismatch, match=r"expected a base whose model\.layers\.0\.mlp\.down_proj is 128 -> 64"
    ):
        load(model, tmp_path / "wide")
    for folder in (tmp_path / "nowhere", tiny_llama):
        with pytest.raises(InvalidAdapter):
            load(model, folder)
    assert [type(m) for m in model.modules()] == modules
    assert state_digest(model) == fresh
    assert not hasattr(model, "peft_config")


# --- detach and disable


@every_precision
def test_detach_gives_the_same_base_back(packable: Path, quantization: str) -> None:
    model = load_base(packable, quantization).model
    before, fresh, names = logits(model), state_digest(model), list(model.state_dict())
    modules = dict(model.named_modules())
    worn = attach(model, rank=4)
    fill_lora(worn, seed=1)
    assert not torch.equal(logits(worn), before)
    bare = detach(worn)
    assert bare is model
    assert dict(bare.named_modules()) == modules
    assert torch.equal(logits(bare), before)
    assert state_digest(bare) == fresh
    assert list(bare.state_dict()) == names
    assert not any(p.requires_grad for p in bare.parameters())


@every_precision
def test_disabled_is_the_base_until_the_block_ends(packable: Path, quantization: str) -> None:
    model = load_base(packable, quantization).model
    before = logits(model)
    with disabled(model):
        assert torch.equal(logits(model), before)
    worn = attach(model, rank=4)
    fill_lora(worn, seed=1)
    adapted = logits(worn)

    def fail_while_disabled() -> None:
        with disabled(worn):
            assert torch.equal(logits(worn), before)
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_disabled()
    assert torch.equal(logits(worn), adapted)


USES: dict[str, Callable[..., object]] = {
    "disabled": lambda worn: disabled(worn).__enter__(),
    "detach": detach,
    "assert_unmerged": assert_unmerged,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_merged_adapter_is_refused(tiny_llama: Path, use: Callable[..., object]) -> None:
    worn = attach(load_base(tiny_llama, "fp32").model, rank=4)
    fill_lora(worn, seed=1)
    worn.merge_adapter()
    merged = [p.clone() for p in worn.parameters()]
    with pytest.raises(AdapterError, match=r"14 LoRA layers are merged .*Load the base from its files again"):
        use(worn)
    assert all(map(torch.equal, merged, worn.parameters()))


def test_unmerging_is_not_exact_which_is_why_it_is_refused(tiny_llama: Path) -> None:
    model = load_base(tiny_llama, "fp32").model
    fresh = state_digest(model)
    worn = attach(model, rank=4)
    fill_lora(worn, seed=1)
    worn.merge_adapter()
    worn.unmerge_adapter()
    assert state_digest(worn) != fresh
    torch.testing.assert_close(
        logits(detach(worn)), logits(load_base(tiny_llama, "fp32").model), rtol=0, atol=1e-4
    )
