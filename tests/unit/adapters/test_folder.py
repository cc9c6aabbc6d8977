import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import Spec, plain
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from efface.adapters.errors import InvalidAdapter
from efface.adapters.folder import delta, read_adapter
from efface.adapters.patterns import exceptions, resolve, unsafe
from efface.adapters.peft_config import config_bytes

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
PREFIX = "base_model.model."


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain(rank=2, alpha=4).write(tmp_path / "adapter")


def test_an_adapter_is_described(folder: Path) -> None:
    adapter = read_adapter(folder)
    assert (adapter.path, adapter.rank, sorted(adapter.modules)) == (folder, 2, [Q, V])
    module = adapter.modules[Q]
    assert (module.a.shape, module.b.shape, module.rank, module.alpha, module.scaling) == (
        (2, 5),
        (7, 2),
        2,
        4,
        2,
    )
    assert adapter.config.base_model_name_or_path == "tests/tiny-base"
    assert adapter.digest.startswith("sha256:")


def test_delta_is_scaling_times_b_times_a(folder: Path) -> None:
    spec = plain(rank=2, alpha=4)
    torch.testing.assert_close(delta(read_adapter(folder), V).double(), spec.delta(V), rtol=1e-6, atol=1e-7)
    half = delta(read_adapter(folder), V, 0.5)
    torch.testing.assert_close(half.double(), spec.delta(V) / 2, rtol=1e-6, atol=1e-7)
    with pytest.raises(InvalidAdapter, match="expected LoRA on lm_head"):
        delta(read_adapter(folder), "lm_head")


def test_rslora_and_patterns_scale_as_in_peft(tmp_path: Path) -> None:
    extra = {
        "r": 2,
        "lora_alpha": 6,
        "rank_pattern": {"self_attn.v_proj": 4},
        "alpha_pattern": {"v_proj$": 3},
    }
    spec = Spec({Q: 2, V: 4}, {Q: 6, V: 3}, use_rslora=True, extra=extra)
    modules = read_adapter(spec.write(tmp_path / "a")).modules
    assert {name: module.scaling for name, module in modules.items()} == {Q: 6 / 2**0.5, V: 3 / 4**0.5}


def test_layout_does_not_change_the_digest_and_one_bit_does(folder: Path) -> None:
    before = read_adapter(folder).digest
    tensors = load_file(folder / "adapter_model.safetensors")
    shuffled = dict(reversed(tensors.items()))
    save_file(shuffled, folder / "adapter_model.safetensors", metadata={"format": "pt", "by": "x"})
    edit_config(
        folder, peft_version="9.9", lora_dropout=0.1, rank_pattern={"v_proj": 2}, target_modules=[V, Q]
    )
    assert read_adapter(folder).digest == before
    edit_tensors(
        folder, lambda tensors: tensors[f"{PREFIX}{Q}.lora_A.weight"].view(torch.int32)[0, 0].bitwise_xor_(1)
    )
    assert read_adapter(folder).digest != before


def test_canonical_config_loads_in_peft_without_a_warning(folder: Path) -> None:
    adapter = read_adapter(folder)
    (folder / "adapter_config.json").write_bytes(config_bytes(adapter.config))
    config = LoraConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha, config.target_modules) == (2, 4, {Q, V})


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another type": ({"peft_type": "IA3"}, "peft_type to be 'LORA', got 'IA3'"),
    "no type": ({"peft_type": None}, "got None"),
    "DoRA": ({"use_dora": True}, "use_dora to be absent or off"),
    "bias": ({"bias": "all"}, "bias to be 'none', got 'all'"),
    "lora_bias": ({"lora_bias": True}, "lora_bias"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "activated LoRA": ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "layers": ({"layer_replication": [[0, 1]]}, "layer_replication"),
    "a future option": ({"use_something_new": True}, "use_something_new"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    "init 1": ({"init_lora_weights": 1}, "init_lora_weights"),
    "r of text": ({"r": "2"}, "r to be a rank .* got '2'"),
    "r true": ({"r": True}, "got True"),
    "r zero": ({"r": 0}, "got 0"),
    "r wrong": ({"r": 3}, r"A \(3, in\) and B \(out, 3\)"),
    "r absurd": ({"r": 10**30}, "expected"),
    "alpha none": ({"lora_alpha": None}, "an alpha"),
    "alpha huge": ({"lora_alpha": 10**400}, "an alpha"),
    "rslora text": ({"use_rslora": "yes"}, "true or false, got 'yes'"),
    "pattern list": ({"rank_pattern": [1]}, "an object"),
    "pattern value": ({"rank_pattern": {"q_proj": 1.5}}, "a rank"),
    "pattern that hangs": ({"alpha_pattern": {"(.+)+x": 1}}, "write one key per module"),
    "pattern broken": ({"alpha_pattern": {"(q": 1}}, "no regular expression"),
    "pattern lies": ({"rank_pattern": {"q_proj": 4}}, r"A \(4, in\)"),
    "no targets": ({"target_modules": []}, "target_modules"),
    "targets of numbers": ({"target_modules": [1]}, "target_modules"),
    "targets lie": ({"target_modules": ["v_proj"]}, "PEFT would drop its weights"),
    "base of numbers": ({"base_model_name_or_path": 3}, "text or null"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config_is_named(folder: Path, case: str) -> None:
    changes, message = BAD_CONFIGS[case]
    edit_config(folder, **changes)
    with pytest.raises(InvalidAdapter, match=message) as raised:
        read_adapter(folder)
    assert str(folder) in str(raised.value)


BAD_TEXTS = {
    "empty": "",
    "half": '{"r": 2',
    "a list": "[1]",
    "deep": "[" * 200_000,
    "NaN": '{"peft_type": "LORA", "r": NaN}',
    "huge integer": '{"r": ' + "9" * 5000 + "}",
    "infinite": '{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999, "target_modules": ["q_proj"]}',
    "too large": " " * (5 << 20),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_broken_config_text_is_named(folder: Path, case: str) -> None:
    (folder / "adapter_config.json").write_text(BAD_TEXTS[case])
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json: expected"):
        read_adapter(folder)


def test_config_that_is_not_utf8_is_named(folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(b'{"r": "\xff\xfe"}')
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json: expected JSON"):
        read_adapter(folder)


def poke(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors[f"{PREFIX}{Q}.lora_B.weight"].view(-1)[3].fill_(value)


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def replaced(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


A, B = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"
BAD_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "NaN": (poke(float("nan")), r"lora_B\.weight: expected finite values, got 1"),
    "infinity": (poke(float("-inf")), "finite"),
    "A alone": (lambda tensors: tensors.pop(B), "lora_A and lora_B of .* got lora_A alone"),
    "B alone": (lambda tensors: tensors.pop(A), "got lora_B alone"),
    "nothing": (lambda tensors: tensors.clear(), "got none"),
    "embedding": (renamed(A, f"{PREFIX}model.embed_tokens.lora_embedding_A"), "LoRA on an embedding"),
    "magnitude": (replaced(f"{PREFIX}{Q}.lora_magnitude_vector", torch.ones(7)), "DoRA"),
    "bias": (replaced(f"{PREFIX}{Q}.lora_B.bias", torch.ones(7)), "a bias"),
    "base weight": (replaced(f"{PREFIX}lm_head.base_layer.weight", torch.ones(6, 4)), "weight of the base"),
    "no prefix": (renamed(A, f"{Q}.lora_A.weight"), "an unknown tensor"),
    "odd name": (renamed(A, f"{PREFIX}../{Q}.lora_A.weight"), "an unknown tensor"),
    "long name": (renamed(A, f"{PREFIX}{'x' * 400}.lora_A.weight"), "an unknown tensor"),
    "rank of B": (replaced(B, torch.ones(7, 3)), r"A \(2, in\) and B \(out, 2\)"),
    "convolution": (replaced(A, torch.ones(2, 5, 1, 1)), r"A \(2, in\)"),
    "no rows": (replaced(B, torch.ones(0, 2)), r"B \(0, 2\)"),
    "integers": (replaced(A, torch.ones(2, 5, dtype=torch.int32)), "I32"),
    "float64": (replaced(A, torch.ones(2, 5, dtype=torch.float64)), "F64"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_named(folder: Path, case: str) -> None:
    change, message = BAD_TENSORS[case]
    edit_tensors(folder, change)
    with pytest.raises(InvalidAdapter, match=message) as raised:
        read_adapter(folder)
    assert str(folder / "adapter_model.safetensors") in str(raised.value)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated_weights_are_named(folder: Path, keep: int) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors: expected a whole, readable file"):
        read_adapter(folder)


def test_a_pickle_is_never_opened(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors: expected a whole"):
        read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.bin: .*pickle"):
        read_adapter(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_pipes_folders_and_absence_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / name)
    with pytest.raises(InvalidAdapter, match=f"{name}: expected a file, got .*No such file"):
        read_adapter(folder)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(InvalidAdapter, match=f"{name}: expected a regular file, got a symbolic link"):
        read_adapter(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        read_adapter(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(InvalidAdapter, match="not a regular file"):
        read_adapter(folder)


NAMES = st.from_regex(r"[ab1]{1,2}(\.[ab1]{1,2}){0,2}", fullmatch=True)
REGEXES = ["a.*", r".*\.b", "(a|b)1", r"\d+", r"b\.1", "[ab]+", "a$", "^.*1", r"a\.1|b"]
KEYS = st.from_regex(r"\^?[ab1.]{1,5}", fullmatch=True) | st.sampled_from(REGEXES)


@given(st.dictionaries(KEYS, st.integers(1, 9), max_size=4), st.sets(NAMES, min_size=1))
def test_patterns_are_matched_as_peft_matches_them(patterns: dict[str, int], names: set[str]) -> None:
    assert [key for key in patterns if unsafe(key)] == []
    expected = {name: patterns.get(get_pattern_key(patterns.keys(), name), 0) for name in names}
    assert resolve(patterns, dict.fromkeys(names), 0) == expected


@given(st.dictionaries(NAMES, st.integers(1, 3), min_size=1), st.integers(1, 3))
def test_written_patterns_give_every_module_its_own_value(values: dict[str, int], default: int) -> None:
    patterns = exceptions(values, default)
    assert [key for key in patterns if unsafe(key)] == []
    assert {name: patterns.get(get_pattern_key(patterns.keys(), name), default) for name in values} == values


@pytest.mark.parametrize(
    "key",
    ["(a+)+", "(a|b)*", ".*.*.*x", "a{9}", "(?=a)", "a|" * 9, "x" * 300, "q\n", "é", "", r"(a)\2", "a["],
)
def test_patterns_that_could_run_for_ever_are_refused(key: str) -> None:
    assert unsafe(key)
