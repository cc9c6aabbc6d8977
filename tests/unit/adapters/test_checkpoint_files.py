"""Checkpoints as they come: broken headers, two models in one folder, and what stands beside the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import contents
from safetensors.torch import save_file

from efface.adapters.checkpoint_files import shards
from efface.adapters.compose import Part
from efface.adapters.errors import AdapterError, CompositionError, InvalidAdapter, ModelError
from efface.adapters.merge import RECORD, merge
from efface.adapters.model import fingerprint
from efface.adapters.quantized_files import FORMS, as_stored, shard_chunks, stored_bytes
from efface.adapters.tensors import safetensors_bytes

UP, EMBED = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
ORIGINAL = b"the base's weights"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    weights({UP: torch.ones(8, 8), EMBED: torch.ones(16, 8)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    folder = tmp_path / "lora"
    folder.mkdir()
    made = torch.Generator().manual_seed(0)
    tensors = {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{side}.weight": torch.randn(shape, generator=made)
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "r": 2}
    more = {"lora_alpha": 2, "target_modules": ["up_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
    return [Part(folder)]


def weights(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


def with_header(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"shape": [16, 9]}, "expected 576 bytes of {name} \\(F32 \\[16, 9\\]\\), got 512"),
    "dtype": ({"dtype": "BF16"}, "expected 256 bytes of {name} \\(BF16 \\[16, 8\\]\\), got 512"),
    "unknown dtype": ({"dtype": "X9"}, "expected a dtype of safetensors for {name}, got 'X9'"),
    "dtype of another kind": (
        {"dtype": ["F32"]},
        "dtype, shape and byte range of {name}, got something else",
    ),
    "float offsets": ({"data_offsets": [0.0, 512.0]}, "byte range of {name}, got something else"),
    "one offset": ({"data_offsets": [0]}, "byte range of {name}, got something else"),
    "negative shape": ({"shape": [-16, -8]}, "byte range of {name}, got something else"),
    "shape of truth": ({"shape": [True, 128]}, "byte range of {name}, got something else"),
    "shape of a number": ({"shape": 128}, "byte range of {name}, got something else"),
}


@pytest.mark.parametrize("requantize", [None, "nf4"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_is_said_with_file_and_tensor(
    base: Path, parts: list[Part], tmp_path: Path, case: str, requantize: str | None
) -> None:
    change, said = BROKEN[case]
    with_header(base / "model.safetensors", lambda header: header[EMBED].update(change))
    with pytest.raises(ModelError, match=f"{base}/model.safetensors: .*{said.format(name=EMBED)}"):
        merge(base, parts, tmp_path / "out", requantize=requantize)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b"[1, 2]", "expected a safetensors header, got another value"),
        (b'{"x": [1, 2]}', "byte range of x, got something else"),
        (b'{"x": null}', "byte range of x, got something else"),
        (b"\xff\xff", "expected a whole safetensors file"),
    ],
)
def test_a_broken_header_is_said_with_its_file(base: Path, text: bytes, said: str) -> None:
    (base / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ModelError, match=f"{base}/model.safetensors: .*{said}"):
        shards(base)


def test_every_dtype_of_safetensors_is_read(tmp_path: Path) -> None:
    kinds = [
        torch.float64,
        torch.int64,
        torch.int32,
        torch.float16,
        torch.uint8,
        torch.bool,
        torch.float8_e4m3fn,
    ]
    weights({str(kind): torch.zeros(3, dtype=kind) for kind in kinds}, tmp_path / "model.safetensors")
    (found,) = shards(tmp_path)
    assert {tensor.name for tensor in found.tensors} == {str(kind) for kind in kinds}


def indexed(base: Path, file: str) -> None:
    (base / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys((UP, EMBED), file)})
    )


def test_two_models_in_one_folder_are_refused(base: Path, parts: list[Part], tmp_path: Path) -> None:
    other = "model-00001-of-00001.safetensors"
    weights({UP: torch.full((8, 8), 5.0), EMBED: torch.ones(16, 8)}, base / other)
    indexed(base, other)
    with pytest.raises(ModelError, match=r"got both: transformers loads the first.* Move the index away if"):
        merge(base, parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_index_of_the_single_file_is_no_second_model(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    indexed(base, "model.safetensors")
    assert merge(base, parts, tmp_path / "out").modules == 1


WEIGHTS_BY_ANOTHER_NAME = (
    *("model.onnx", "model.onnx_data", "weights.npz", "model.tflite", "model.pte", "model.nemo", "model.BIN"),
    *(
        "model.safetensors.bak",
        "model.SAFETENSORS",
        "rust_model.ot",
        "flax_model.msgpack",
        "pytorch_model.bin",
    ),
    *("adapter_config.json", "adapter_model.bin", "modeling.py", "vocab.bin", "LICENSE.bin", "tokenizer.bin"),
    *(
        "tokenizer.json.bak",
        "weights.json",
        "params.json",
        "notes.txt",
        ".hidden.jinja",
        "model.gguf",
        "x.jinja.npz",
    ),
)
CARRIED = (
    *("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "tekken.json", "processor_config.json"),
    *(
        "preprocessor_config.json",
        "LICENSE",
        "LICENCE.txt",
        "LICENSE-MODEL.md",
        "NOTICE",
        "USE_POLICY.md",
        "README.txt",
    ),
)


def test_only_what_is_known_not_to_be_weights_is_carried(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    for name in (*WEIGHTS_BY_ANOTHER_NAME, *CARRIED):
        (base / name).write_bytes(ORIGINAL)
    for folder in ("additional_chat_templates", "onnx"):
        (base / folder).mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    (base / "additional_chat_templates" / "model.onnx").write_bytes(ORIGINAL)
    (base / "onnx" / "model.onnx").write_bytes(ORIGINAL)
    merged = merge(base, parts, tmp_path / "out")
    own = {"config.json", "tokenizer.json", "model.safetensors", "README.md", RECORD}
    assert set(contents(merged.path)) == own | set(CARRIED) | {"additional_chat_templates/tool_use.jinja"}
    assert merged.fingerprint == fingerprint(merged.path)


def test_the_files_that_make_the_model_are_read_through_links_as_it_is_loaded(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (base / name).rename(tmp_path / name)
        (base / name).symlink_to(tmp_path / name)
    (tmp_path / "secret").write_text("not to be published")
    for name in ("LICENSE", "generation_config.json"):
        (base / name).symlink_to(tmp_path / "secret")
    merged = merge(base, parts, tmp_path / "out")
    names = {"config.json", "tokenizer.json", "model.safetensors", "README.md", RECORD}
    assert set(contents(merged.path)) == names
    assert not any(file.is_symlink() for file in merged.path.iterdir())
    assert merged.base == fingerprint(base)


def test_a_place_in_the_base_itself_is_refused(base: Path, parts: list[Part], tmp_path: Path) -> None:
    (base / "deep").mkdir()
    (tmp_path / "way").symlink_to(base)
    before = contents(base)
    for out in (base / "merged", base / "deep" / "merged", tmp_path / "way" / "merged"):
        with pytest.raises(CompositionError, match=r"outside .* the base is never modified"):
            merge(base, parts, out)
    assert contents(base) == before


@pytest.mark.parametrize(
    ("onto", "requantize"), [("original", None), ("int8", None), ("nf4", None), ("original", "nf4")]
)
def test_a_base_that_is_not_finite_is_named(
    base: Path, parts: list[Part], tmp_path: Path, onto: str, requantize: str | None
) -> None:
    spoilt = torch.ones(8, 8)
    spoilt[3, 4] = torch.nan
    weights({UP: spoilt, EMBED: torch.ones(16, 8)}, base / "model.safetensors")
    with pytest.raises(
        ModelError, match=f"{UP}: expected finite weights in the base, got 1 NaN or infinite of 64"
    ):
        merge(base, parts, tmp_path / "out", onto=onto, requantize=requantize)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_overflows_is_still_what_is_named(
    base: Path, parts: list[Part], tmp_path: Path
) -> None:
    half = {UP: torch.full((8, 8), 65000.0, dtype=torch.float16), EMBED: torch.ones(16, 8)}
    weights(half, base / "model.safetensors")
    with pytest.raises(InvalidAdapter, match="lower its weight"):
        merge(base, [Part(parts[0].folder, "10000")], tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(64, 48), (1024, 512), (96, 2048)])
def test_the_size_of_what_is_stored_is_known_before(form: str, shape: tuple[int, int]) -> None:
    name = "model.layers.10.self_attn.q_proj.weight"
    stored = as_stored(name, torch.randn(shape), form)
    real = sum(len(chunk) for chunk in shard_chunks(stored))
    assert real <= stored_bytes(name, shape, form) <= 1.06 * real + 2000


def test_a_merge_that_is_stored_quantized_asks_for_the_room_that_takes(
    base: Path, parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = torch.ones(512, 512)
    weights({UP: torch.ones(8, 8), "model.layers.1.mlp.up_proj.weight": rest}, base / "model.safetensors")
    free = shutil._ntuple_diskusage(10**9, 9 * 10**8, 500_000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(CompositionError, match=r"expected 1,\d+,\d+ free bytes .* got 500,000"):
        merge(base, parts, tmp_path / "plain")
    merged = merge(base, parts, tmp_path / "out", requantize="nf4")
    assert merged.bytes < 500_000


def test_an_unsuitable_config_is_said(base: Path, parts: list[Part], tmp_path: Path) -> None:
    for text in ("[" * 200_000, "[]", "{"):
        (base / "config.json").write_text(text)
        with pytest.raises(AdapterError, match=r"config\.json: expected .* fetch the model again"):
            merge(base, parts, tmp_path / "out")
