"""Folders that are not a plain LoRA in safetensors are refused before any write."""

import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign_kit import CONFIG_NAME, files, pair
from registry_kit import CONFIG, ask, contents, framed, lora, seal, tensors, weights_file

from efface.registry import InvalidInput, Registry
from efface.registry.peft_folder import Pair, check, check_against, read

WEIGHTS = "adapter_model.safetensors"
A, B = tensors()
PAIR = tensors()


def _config(**changes: Any) -> Callable[[Path], object]:
    text = json.dumps({**CONFIG, **changes})
    return lambda folder: (folder / "adapter_config.json").write_text(text)


def _weights(data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).write_bytes(data)


def _link(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/etc/hostname")

    return change


def _fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def _hard_link(name: str) -> Callable[[Path], object]:
    return lambda folder: os.link(folder / name, folder.parent / f"other name of {name}")


def _socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))


def _nan(dtype: str, value: bytes) -> Callable[[Path], object]:
    """One value that is not finite, last in the file."""
    width = len(value)
    sides = {A: (dtype, [1, 3], bytes(3 * width)), B: (dtype, [3, 1], bytes(2 * width) + value)}
    data = weights_file(sides)

    def change(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(data)
        (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "r": 1}))

    return change


def _directory(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def _moved(name: str, offsets: list[int]) -> bytes:
    """The good file with the offsets of one tensor changed."""
    good = weights_file(PAIR)
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    header[name]["data_offsets"] = offsets
    return framed(header, good[8 + length :])


BROKEN: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "adapter_config.json").unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "config is no JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "config is a list": lambda folder: (folder / "adapter_config.json").write_text("[]"),
    "config is not UTF-8": lambda folder: (folder / "adapter_config.json").write_bytes(
        b'{"peft_type":"\xff"}'
    ),
    "config repeats a key": lambda folder: (folder / "adapter_config.json").write_text('{"r":1,"r":2}'),
    "config too large": lambda folder: (folder / "adapter_config.json").write_text(" " * (2**20 + 1)),
    "another PEFT method": _config(peft_type="IA3"),
    "rank zero": _config(r=0),
    "rank true": _config(r=True),
    "rank in words": _config(r="eight"),
    "rank as a float": _config(r=2.0),
    "another rank than the tensors'": _config(r=4),
    "another rank in the pattern": _config(rank_pattern={"q_proj": 4}),
    "a pattern that is an expression": _config(rank_pattern={"(q|k)_proj": 2}),
    "a pattern that never ends": _config(alpha_pattern={"(a+)+$": 2}),
    "a rank pattern in words": _config(rank_pattern={"q_proj": "2"}),
    "patterns as a list": _config(rank_pattern=["q_proj"]),
    "a pattern too long": _config(alpha_pattern={"q" * 600: 1}),
    "no alpha": _config(lora_alpha=None),
    "alpha zero": _config(lora_alpha=0),
    "alpha below zero": _config(lora_alpha=-1),
    "alpha beyond doubles": _config(lora_alpha=10**400),
    "alpha true": _config(lora_alpha=True),
    "an alpha pattern of zero": _config(alpha_pattern={"q_proj": 0}),
    "rslora in words": _config(use_rslora="yes"),
    "fan_in_fan_out in numbers": _config(fan_in_fan_out=1),
    "PiSSA": _config(init_lora_weights="pissa"),
    "PiSSA by subspace iteration": _config(init_lora_weights="pissa_niter_16"),
    "OLoRA": _config(init_lora_weights="olora"),
    "LoftQ": _config(init_lora_weights="loftq"),
    "LoftQ's leftovers": _config(loftq_config={"loftq_bits": 4}),
    "CorDA": _config(init_lora_weights="corda"),
    "CorDA's leftovers": _config(corda_config={"corda_method": "ipm"}),
    "LoRA-GA": _config(init_lora_weights="lora_ga"),
    "MiCA": _config(init_lora_weights="mica"),
    "an initialisation 1": _config(init_lora_weights=1),
    "replicated layers": _config(layer_replication=[[0, 2]]),
    "trained tokens": _config(trainable_token_indices=[1]),
    "a LoRA bias": _config(lora_bias=True),
    "aLoRA": _config(alora_invocation_tokens=[5]),
    "aLoRA of no tokens": _config(alora_invocation_tokens=[]),
    "a variant by an empty config": _config(velora_config={}),
    "KaSA": _config(kasa_config={}),
    "QALoRA": _config(use_qalora=True),
    "BD-LoRA": _config(use_bdlora={}),
    "parameters": _config(target_parameters=["experts.gate_up_proj"]),
    "tied weights": _config(ensure_weight_tying=True),
    "Megatron": _config(megatron_config={"x": 1}),
    "another megatron core": _config(megatron_core="os"),
    "a class to import": _config(auto_mapping={"base_model_class": "system", "parent_library": "os"}),
    "a class to import by prefix": _config(auto_mapping={"parent_library": "transformers_evil"}),
    "a pattern of layers": _config(layers_to_transform=[0], layers_pattern="(a+)+"),
    "an option of tomorrow": _config(use_telepathy="on"),
    "an unknown key": _config(notes={"x": 1}),
    "layers in words": _config(layers_to_transform=["0"]),
    "another layer": _config(layers_to_transform=[1]),
    "no targets": _config(target_modules=[]),
    "other targets": _config(target_modules=["v_proj"]),
    "half a name as target": _config(target_modules=["proj"]),
    "a target with a path": _config(target_modules=["../q_proj"]),
    "targets that never end": _config(target_modules="(.*)*q_proj"),
    "targets with a look-around": _config(target_modules="(?!x).*q_proj"),
    "targets with many repetitions": _config(target_modules=".*.*.*.*q_proj"),
    "what it trains left out": _config(exclude_modules=["q_proj"]),
    "left out by an expression": _config(exclude_modules="(.*)*"),
    "a base in numbers": _config(base_model_name_or_path=7),
    "a base that is a novel": _config(base_model_name_or_path="x" * 5000),
    "DoRA": _config(use_dora=True),
    "a whole module saved": _config(modules_to_save=["lm_head"]),
    "biases": _config(bias="all"),
    "a link as weights": _link(WEIGHTS),
    "a link beside": _link("README.md"),
    "a dangling link beside": lambda folder: (folder / "x").symlink_to("nowhere"),
    "a pickle beside": lambda folder: (folder / "training_args.bin").write_bytes(b"\x80\x04."),
    "a pickle in capitals": lambda folder: (folder / "optimizer.PT").write_bytes(b"\x80\x04."),
    "a pipe as weights": _fifo,
    "a pipe beside": lambda folder: os.mkfifo(folder / "p"),
    "a socket beside": _socket,
    "a hard link as weights": _hard_link(WEIGHTS),
    "a hard link as config": _hard_link("adapter_config.json"),
    "a folder as weights": _directory,
    "empty weights": _weights(b""),
    "weights of seven bytes": _weights(b"\0" * 7),
    "header longer than the file": _weights((2**40).to_bytes(8, "little") + b"{}"),
    "header of length zero": _weights((0).to_bytes(8, "little") + b"{}"),
    "header no JSON": _weights(framed(b"{{}}")),
    "header a list": _weights(framed([])),
    "header repeats a tensor": _weights(framed(b'{"a":1,"a":2}')),
    "no tensor": _weights(framed({"__metadata__": {"format": "pt"}})),
    "header with a blank first": _weights(framed(b" " + weights_file(PAIR)[8:-48])),
    "header in UTF-16": _weights(framed(json.dumps({}).encode("utf-16-le"))),
    "header of half a character": _weights(framed(b'{"__metadata__":{"x":"\\ud800"}}')),
    "header nested deep": _weights(framed(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}")),
    "metadata of numbers": _weights(weights_file(PAIR, __metadata__={"format": 1})),
    "metadata as a list": _weights(weights_file(PAIR, __metadata__=[])),
    "one more field": _weights(weights_file(PAIR).replace(b'"dtype"', b'"x":1,"dtype"', 1)),
    "an infinity in F32": _nan("F32", struct.pack("<f", math.inf)),
    "a NaN in F32": _nan("F32", struct.pack("<f", math.nan)),
    "less than infinity in F64": _nan("F64", struct.pack("<d", -math.inf)),
    "a NaN in F64": _nan("F64", b"\x01" + bytes(5) + b"\xf0\x7f"),
    "an infinity in F16": _nan("F16", b"\x00\xfc"),
    "a NaN in F16": _nan("F16", b"\x01\x7c"),
    "an infinity in BF16": _nan("BF16", b"\x80\x7f"),
    "a NaN in BF16": _nan("BF16", b"\x81\xff"),
    "truncated": _weights(weights_file(PAIR)[:-1]),
    "bytes after the tensors": _weights(weights_file(PAIR) + b"!"),
    "overlapping tensors": _weights(_moved(B, [0, 24])),
    "two tensors in one place": _weights(_moved(B, [0, 24])[:-24]),
    "a hole between tensors": _weights(_moved(B, [28, 52]) + bytes(4)),
    "tensor before the start": _weights(_moved(A, [-24, 0])),
    "tensor past the end": _weights(_moved(B, [48, 72])),
    "offsets reversed": _weights(_moved(A, [24, 0])),
    "offsets of three": _weights(_moved(A, [0, 24, 24])),
    "offsets as floats": _weights(_moved(A, [0, 24.5])),
    "too few bytes for the shape": _weights(weights_file({**PAIR, A: ("F32", [2, 4], PAIR[A][2])})),
    "a huge shape": _weights(weights_file({**PAIR, A: ("F32", [2**62, 2**62], PAIR[A][2])})),
    "a vector": _weights(weights_file({**PAIR, A: ("F32", [6], PAIR[A][2])})),
    "integers": _weights(weights_file({**PAIR, A: ("I32", [2, 3], PAIR[A][2])})),
    "an unknown dtype": _weights(weights_file({**PAIR, A: ("X", [2, 3], PAIR[A][2])})),
    "an entry that is no object": _weights(framed({A: 1})),
    "a full weight": _weights(weights_file({**PAIR, "lm_head.weight": ("F32", [1, 1], b"\0" * 4)})),
    "the head's own weight": _weights(
        weights_file({**PAIR, "base_model.model.lm_head.base_layer.weight": ("F32", [1, 1], bytes(4))})
    ),
    "a DoRA magnitude": _weights(weights_file({"m.lora_magnitude_vector": ("F32", [1, 1], b"\0" * 4)})),
    "lora_A alone": _weights(weights_file({A: PAIR[A]})),
    "a name with a path": _weights(weights_file(pair("../../q_proj"))),
    "a name with a blank": _weights(weights_file(pair("a b.q_proj"))),
    "a name in another alphabet": _weights(weights_file(pair("слой.q_proj"))),
    "a name with an empty part": _weights(weights_file(pair("a..q_proj"))),
    "a name too long": _weights(weights_file(pair("a" * 600 + ".q_proj"))),
    "a name without PEFT's prefix": _weights(
        weights_file({name.removeprefix("base_model."): value for name, value in PAIR.items()})
    ),
    "an embedding": _weights(
        weights_file({"base_model.model.e.lora_embedding_A": ("F32", [1, 1], bytes(4))})
    ),
    "ranks that differ": _weights(weights_file({**PAIR, B: ("F32", [2, 3], PAIR[B][2])})),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_refused_and_nothing_written(reg: Registry, tmp_path: Path, fault: str) -> None:
    request_id = ask(reg)
    folder = lora(tmp_path / "lora")
    BROKEN[fault](folder)
    before = contents(reg.root)
    with pytest.raises(InvalidInput, match="PEFT"):
        seal(reg, folder, [request_id])
    assert contents(reg.root) == before


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_no_folder_is_refused(reg: Registry, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="folder"):
        seal(reg, tmp_path / folder, [ask(reg)])


def test_other_plain_files_are_ignored(reg: Registry, tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora")
    (folder / "README.md").write_text("a model card")
    (folder / "checkpoint-10").mkdir()
    adapter = seal(reg, folder, [ask(reg)])
    assert sorted(adapter.files) == ["adapter_config.json", WEIGHTS]


def test_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    lora(tmp_path / "lora")
    (tmp_path / "link").symlink_to("lora")
    with pytest.raises(InvalidInput, match="link"):
        read(tmp_path / "link")


TAKEN: dict[str, dict[str, Any]] = {
    "as PEFT 0.21 writes it": {
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "auto_mapping": None,
        "corda_config": None,
        "base_model_name_or_path": "../../etc/passwd",
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_bias": False,
        "lora_dropout": 0.0,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "rank_pattern": {},
        "alpha_pattern": {},
        "revision": None,
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": True,
        "velora_config": None,
        "kasa_config": None,
        "monteclora_config": None,
    },
    "PiSSA converted to LoRA": {"init_lora_weights": True, "peft_version": "0.10.0"},
    "another harmless initialisation": {"init_lora_weights": "gaussian"},
    "an option of tomorrow that is off": {"use_telepathy": False, "notes": []},
    "a rank for the end of a name": {"r": 9, "rank_pattern": {"layers.0.q_proj": 2, "q_proj": 7}},
    "a rank for a whole name": {"r": 9, "rank_pattern": {"^q_proj": 7, "^model\\.layers\\.0\\.q_proj$": 2}},
    "a rank that another name has": {"rank_pattern": {"xq_proj": 7, "_proj": 8, "layers.1.q_proj": 7}},
    "an unescaped dot": {"r": 9, "rank_pattern": {"layers.0.q.proj": 2}},
    "the layer it is in": {"layers_to_transform": [0]},
    "the layer it is in, as a number": {"layers_to_transform": 0},
    "all linear layers": {"target_modules": "all-linear"},
    "an expression": {"target_modules": r".*\.(?:q_proj|v_proj)$"},
    "an expression with digits": {"target_modules": r"model\.layers\.[0-9]+\.q_proj"},
    "others left out": {"exclude_modules": ["lm_head", "proj"]},
    "a class of transformers": {
        "auto_mapping": {"parent_library": "transformers.models.llama.modeling_llama"}
    },
}


@pytest.mark.parametrize("config", TAKEN)
def test_plain_loras_are_taken_as_they_are(tmp_path: Path, config: str) -> None:
    module = "model.layers.0.q_proj"
    changes = {"target_modules": ["q_proj"], **TAKEN[config]}
    written = files(changes, weights_file(pair(module)))
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    assert read(tmp_path) == written
    assert check(written) == {module: Pair(2, 3, 4)}


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("F64", struct.pack("<d", -1.7976931348623157e308)),
        ("F32", struct.pack("<f", 3.4028234663852886e38)),
        ("F16", struct.pack("<e", -65504.0)),
        ("BF16", b"\x7f\x7f"),
        ("F32", b"\x01\x00\x00\x00"),
    ],
)
def test_the_largest_and_smallest_finite_values_are_taken(dtype: str, value: bytes) -> None:
    width = len(value)
    sides = {A: (dtype, [2, 3], value * 6), B: (dtype, [3, 2], bytes(5 * width) + value)}
    check(files(weights=weights_file(sides)))


def test_thirty_megabytes_are_checked_without_taking_long() -> None:
    n = 30_000_000 // 2 // 4
    sides = {A: ("F32", [2, n], b"\x00\x00\x80\x3f" * 2 * n), B: ("F32", [3, 2], bytes(24))}
    adapter = files(weights=weights_file(sides))
    started = time.process_time()
    check(adapter)
    assert time.process_time() - started < 5


def test_patterns_and_modules_beyond_counting_are_refused_at_once() -> None:
    modules = {k: v for n in range(600) for k, v in pair("a." * 100 + f"q{n}", 1, 1, 1).items()}
    changes = {"r": 1, "alpha_pattern": {"a." * 50 + f"b{n}": 1 for n in range(4000)}}
    started = time.process_time()
    with pytest.raises(InvalidInput, match="comparisons"):
        check(files(changes, weights_file(modules)))
    assert time.process_time() - started < 5  # two and a half million comparisons would take minutes


SHAPES = {
    "model.layers.0.q_proj": (4, 3),
    "lm_head": (4, 3),
    "h.0.c_attn": (4, 3),
    "h.0.c_proj": (3, 4),
    "model.embed_tokens": (4, 3),
}


@pytest.mark.parametrize(
    ("module", "config", "fault"),
    [
        ("model.layers.0.q_proj", {}, None),
        ("model.layers.0.q_proj", {"fan_in_fan_out": True}, None),
        ("lm_head", {}, None),
        ("transformer.h.0.c_attn", {"fan_in_fan_out": True}, None),
        ("h.0.c_attn", {"fan_in_fan_out": True}, None),
        ("transformer.h.0.c_attn", {}, None),
        ("transformer.h.0.c_proj", {"fan_in_fan_out": True}, "shape"),
        ("model.layers.1.q_proj", {}, "linear layer"),
        ("model.embed_tokens", {}, "linear layer"),
        ("q_proj", {}, "linear layer"),
    ],
)
def test_adapters_are_held_against_the_base(module: str, config: dict[str, Any], fault: str | None) -> None:
    adapter = files({**config, "target_modules": [module]}, weights_file(pair(module)))
    if fault is None:
        check_against(adapter, SHAPES)
        return
    with pytest.raises(InvalidInput, match=fault):
        check_against(adapter, SHAPES)


def test_a_wrong_shape_names_the_module() -> None:
    adapter = files({"target_modules": ["lm_head"]}, weights_file(pair("lm_head", wide=5)))
    with pytest.raises(InvalidInput, match=r"lm_head of shape \(4, 5\) in the base; got \(4, 3\)"):
        check_against(adapter, SHAPES)


@pytest.mark.parametrize("names", [[CONFIG_NAME], [CONFIG_NAME, WEIGHTS, "x"], []])
def test_exactly_two_files_are_checked(names: list[str]) -> None:
    with pytest.raises(InvalidInput, match="exactly"):
        check(dict.fromkeys(names, b"{}"))
