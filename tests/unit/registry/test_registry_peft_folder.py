"""Folders that are not a plain LoRA in safetensors are refused before any write."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_kit import CONFIG, ask, contents, framed, lora, seal, tensors, weights_file

from efface.registry import InvalidInput, Registry

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
    "DoRA": _config(use_dora=True),
    "a whole module saved": _config(modules_to_save=["lm_head"]),
    "biases": _config(bias="all"),
    "a link as weights": _link(WEIGHTS),
    "a link beside": _link("README.md"),
    "a dangling link beside": lambda folder: (folder / "x").symlink_to("nowhere"),
    "a pickle beside": lambda folder: (folder / "training_args.bin").write_bytes(b"\x80\x04."),
    "a pickle in capitals": lambda folder: (folder / "optimizer.PT").write_bytes(b"\x80\x04."),
    "a pipe as weights": _fifo,
    "a folder as weights": _directory,
    "empty weights": _weights(b""),
    "weights of seven bytes": _weights(b"\0" * 7),
    "header longer than the file": _weights((2**40).to_bytes(8, "little") + b"{}"),
    "header of length zero": _weights((0).to_bytes(8, "little") + b"{}"),
    "header no JSON": _weights(framed(b"{{}}")),
    "header a list": _weights(framed([])),
    "header repeats a tensor": _weights(framed(b'{"a":1,"a":2}')),
    "no tensor": _weights(framed({"__metadata__": {"format": "pt"}})),
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
    "a DoRA magnitude": _weights(weights_file({"m.lora_magnitude_vector": ("F32", [1, 1], b"\0" * 4)})),
    "lora_A alone": _weights(weights_file({A: PAIR[A]})),
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
