"""A CPU without bfloat16 instructions computes in float32, from the same weights."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from model_kit import FORGET, PAD, encoded, full_logps, logits, taught

from efface.adapters import ModelError, attach, collate, load_base
from efface.adapters.arithmetic import VARIABLE, compute_dtype, has_bf16

pytestmark = pytest.mark.usefixtures("_unset")
QUANTIZED = ["nf4", "int8", "bf16"]


@pytest.fixture
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="module")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tiny_llama, tmp_path_factory.mktemp("arithmetic") / "known")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        (
            {
                "architecture": "x86_64",
                "avx2": True,
                "avx512_f": True,
                "avx512_bf16": False,
                "amx_bf16": False,
            },
            False,
        ),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": False, "sve_max_length": 16}, False),
        ({}, False),
    ],
)
def test_bf16_is_read_off_the_processor(capabilities: dict[str, object], expected: bool) -> None:
    assert has_bf16(capabilities) is expected


def test_the_environment_decides_before_the_processor() -> None:
    assert compute_dtype("cpu", {VARIABLE: "fp32"}) == torch.float32
    assert compute_dtype("cpu", {VARIABLE: "bf16"}) == torch.bfloat16
    assert compute_dtype("cuda:0", {}) == torch.bfloat16
    here = has_bf16(torch.cpu.get_capabilities())
    assert compute_dtype("cpu", {VARIABLE: ""}) == (torch.bfloat16 if here else torch.float32)


def test_another_word_is_refused_before_anything_is_loaded(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "float64")
    with pytest.raises(ModelError, match=r"EFFACE_COMPUTE=float64: expected bf16 or fp32"):
        load_base(known, "nf4")


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_wide_arithmetic_has_the_weights_of_narrow_one(
    known: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {}
    for word in ("bf16", "fp32"):
        monkeypatch.setenv(VARIABLE, word)
        models[word] = load_base(known, quantization).model
    narrow, wide = models["bf16"], models["fp32"]
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    for (name, one), (other_name, other) in zip(
        narrow.named_parameters(), wide.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one.float() if one.is_floating_point() else one, other), name
    assert all(m.compute_dtype == torch.float32 for m in wide.modules() if isinstance(m, Linear4bit))
    close = (logits(narrow).float().softmax(-1) - logits(wide).softmax(-1)).abs().max()
    assert close < 0.05
    assert wide.get_input_embeddings().weight is wide.get_output_embeddings().weight or not (
        wide.config.tie_word_embeddings
    )


@pytest.mark.parametrize("quantization", QUANTIZED)
def test_wide_bases_carry_adapters(known: Path, quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fp32")
    base = load_base(known, quantization)
    batch = collate(encoded(known, FORGET), PAD)
    before = full_logps(base.model, batch)
    model = attach(base.model, rank=2, alpha=4, seed=0)
    assert torch.equal(full_logps(model, batch), before)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
