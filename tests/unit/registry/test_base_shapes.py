"""The shapes of a base, from headers alone; checkpoints of hostile make are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_kit import framed, weights_file

from efface.registry.base_shapes import read_shapes
from efface.registry.errors import InvalidInput

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def matrix(tall: int, wide: int, dtype: str = "BF16") -> tuple[str, list[int], bytes]:
    return dtype, [tall, wide], bytes(tall * wide * 2)


Q, EMBED, NORM = "model.layers.0.self_attn.q_proj", "model.embed_tokens", "model.norm"
TENSORS = {
    f"{Q}.weight": matrix(4, 3),
    f"{EMBED}.weight": matrix(7, 3),
    f"{NORM}.weight": ("BF16", [3], bytes(6)),
}


def single(folder: Path, tensors: dict[str, Any] | None = None) -> Path:
    (folder / SINGLE).write_bytes(weights_file(TENSORS if tensors is None else tensors))
    return folder


def sharded(folder: Path) -> Path:
    names = list(TENSORS)
    placed = {names[0]: SHARDS[0], names[1]: SHARDS[1], names[2]: SHARDS[1]}
    for shard in SHARDS:
        held = {name: TENSORS[name] for name in names if placed[name] == shard}
        (folder / shard).write_bytes(weights_file(held, __metadata__={"format": "pt"}))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return folder


@pytest.mark.parametrize("make", [single, sharded])
def test_shapes_of_a_checkpoint_with_a_tied_head(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    assert read_shapes(make(tmp_path)) == {Q: (4, 3), EMBED: (7, 3), "lm_head": (7, 3)}


def test_a_head_of_its_own_is_not_overwritten(tmp_path: Path) -> None:
    folder = single(tmp_path, {**TENSORS, "lm_head.weight": matrix(8, 3)})
    assert read_shapes(folder)["lm_head"] == (8, 3)


@pytest.mark.parametrize("kind", ["gpt2", "llama", None])
def test_layers_that_are_stored_the_other_way_round_are_turned(tmp_path: Path, kind: str | None) -> None:
    names = {"h.0.attn.c_attn": (3, 9), "h.0.mlp.c_proj": (12, 3), "wte": (7, 3), "wpe": (5, 3)}
    single(tmp_path, {f"{name}.weight": matrix(*shape) for name, shape in names.items()})
    if kind is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "layer_norm_epsilon": 1e-5}))
    found = read_shapes(tmp_path)
    assert (found["wte"], found["wpe"], found["lm_head"]) == ((7, 3), (5, 3), (7, 3))
    layers = (found["h.0.attn.c_attn"], found["h.0.mlp.c_proj"])
    assert layers == (((9, 3), (3, 12)) if kind == "gpt2" else ((3, 9), (12, 3)))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"a": "' + "b" * 2**22 + '"}'])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (single(tmp_path) / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"config\.json"):
        read_shapes(tmp_path)


def test_links_are_followed_as_in_the_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    single(tmp_path / "blobs")
    (tmp_path / "snapshot" / SINGLE).symlink_to(f"../blobs/{SINGLE}")
    assert Q in read_shapes(tmp_path / "snapshot")


def test_no_value_is_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte: its header says all there is to know."""
    header = {"a.weight": {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, 2**40]}}
    (tmp_path / SINGLE).write_bytes(framed(header))
    try:
        os.truncate(tmp_path / SINGLE, (tmp_path / SINGLE).stat().st_size + 2**40)
    except OSError:
        pytest.skip("this file system holds no file of a terabyte")
    assert read_shapes(tmp_path) == {"a": (2**19, 2**19)}


@pytest.mark.parametrize("name", ["a.weight.quant_state.bitsandbytes__nf4", "a.qweight", "a.weight.absmax"])
def test_packed_weights_have_no_shapes(tmp_path: Path, name: str) -> None:
    folder = single(tmp_path, {"a.weight": ("U8", [6, 1], bytes(6)), name: ("U8", [1], b"\0")})
    with pytest.raises(InvalidInput, match="packed"):
        read_shapes(folder)


def _index(value: object) -> Callable[[Path], object]:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return lambda folder: (folder / INDEX).write_bytes(text)


def _fifo(folder: Path) -> None:
    (folder / SHARDS[0]).unlink()
    os.mkfifo(folder / SHARDS[0])


BROKEN: dict[str, Callable[[Path], object]] = {
    "no index": lambda folder: (folder / INDEX).unlink(),
    "no shard": lambda folder: (folder / SHARDS[1]).unlink(),
    "a pipe as a shard": _fifo,
    "an index that is no JSON": _index(b"{"),
    "an index that is a list": _index([]),
    "an index without a map": _index({}),
    "a map that is a list": _index({"weight_map": []}),
    "a shard elsewhere": _index({"weight_map": {"a": "../x.safetensors"}}),
    "a shard at the root": _index({"weight_map": {"a": "/x.safetensors"}}),
    "a shard that is a pickle": _index({"weight_map": {"a": "pytorch_model.bin"}}),
    "a shard that is a number": _index({"weight_map": {"a": 1}}),
    "a shard with a zero byte": _index({"weight_map": {"a": "x\0.safetensors"}}),
    "a hidden shard": _index({"weight_map": {"a": ".safetensors"}}),
    "a tensor that its shard lacks": _index({"weight_map": {"a.weight": SHARDS[0]}}),
    "a shard cut short": lambda folder: os.truncate(folder / SHARDS[0], 100),
    "an empty shard": lambda folder: os.truncate(folder / SHARDS[0], 0),
    "a shard without its last byte": lambda folder: os.truncate(
        folder / SHARDS[0], (folder / SHARDS[0]).stat().st_size - 1
    ),
    "a header longer than its file": lambda folder: (folder / SHARDS[0]).write_bytes(
        (2**62).to_bytes(8, "little")
    ),
    "a header of rubbish": lambda folder: (folder / SHARDS[0]).write_bytes(framed(b"{]")),
    "a single file that is a folder": lambda folder: (folder / SINGLE).mkdir(),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused(tmp_path: Path, fault: str) -> None:
    BROKEN[fault](sharded(tmp_path))
    with pytest.raises(InvalidInput, match="whole model"):
        read_shapes(tmp_path)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="whole model"):
        read_shapes(tmp_path / "missing")
