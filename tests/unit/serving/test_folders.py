"""What is checked before a server sees a folder: all that the server would take without a word."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import plain
from safetensors.torch import load_file, save_file

from efface.registry import digest_bytes, peft_folder
from efface.serving.folders import BadAdapter, Folders, Limits, check, fill, zero

BASE = "sha256:" + "b" * 64
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SHAPES = {"model.layers.0.self_attn.q_proj": (7, 5), "model.layers.0.self_attn.v_proj": (3, 5)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain(2).write(tmp_path / "lora")


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    found = load_file(folder / WEIGHTS)
    change(found)
    save_file(found, folder / WEIGHTS)


def config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_folder_passes(folder: Path) -> None:
    files = {name: digest_bytes((folder / name).read_bytes()) for name in (WEIGHTS, CONFIG)}
    assert check(folder, files=files, base=BASE, limits=Limits(8, SHAPES)) == 2


def _nan(folder: Path) -> None:
    tensors(folder, lambda found: next(iter(found.values())).fill_(float("nan")))


def _narrow(folder: Path) -> None:
    tensors(
        folder, lambda found: found.update({k: v[:, :4].clone() for k, v in found.items() if "lora_A" in k})
    )


def _more(folder: Path) -> None:
    tensors(
        folder, lambda found: found.update({"base_model.model.lm_head.base_layer.weight": torch.ones(2, 2)})
    )


SPOILED: dict[str, Callable[[Path], object]] = {
    "NaN": _nan,
    "an input size of another base": _narrow,
    "a weight of the base": _more,
    "another kind of adapter": lambda folder: config(folder, peft_type="IA3"),
    "DoRA": lambda folder: config(folder, use_dora=True),
    "a trained module": lambda folder: config(folder, modules_to_save=["lm_head"]),
    "a rank that the tensors have not": lambda folder: config(folder, r=4),
    "targets that are not those": lambda folder: config(folder, target_modules=["k_proj"]),
    "a bias": lambda folder: config(folder, bias="all"),
    "another base": lambda folder: config(folder, base_model_name_or_path="sha256:" + "c" * 64),
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "half of the weights": lambda folder: (folder / WEIGHTS).write_bytes(
        (folder / WEIGHTS).read_bytes()[:-9]
    ),
    "a pickle": lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"),
    "JSON that is none": lambda folder: (folder / CONFIG).write_text("{"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_spoiled_folder_does_not(folder: Path, what: str) -> None:
    SPOILED[what](folder)
    with pytest.raises(BadAdapter):
        check(folder, files=None, base=BASE, limits=Limits(8, SHAPES))


def test_a_rank_above_the_servers_does_not(tmp_path: Path) -> None:
    folder = plain(9).write(tmp_path / "prod" / "prod@7")
    with pytest.raises(BadAdapter, match="expected a rank of at most 8") as refused:
        check(folder, files=None, base=BASE, limits=Limits(8))
    assert "efface release render prod svd:8)" in str(refused.value)
    assert check(folder, files=None, base=BASE, limits=Limits(16)) == 9


def test_files_that_the_ledger_does_not_name_do_not(folder: Path) -> None:
    files = {name: digest_bytes((folder / name).read_bytes()) for name in (WEIGHTS, CONFIG)}
    config(folder, lora_dropout=0.5)
    with pytest.raises(BadAdapter, match="the ledger names"):
        check(folder, files=files, base=BASE, limits=Limits())


def test_the_adapter_of_a_bare_base_changes_nothing(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "zero"
    made.mkdir()
    fill(made, zero(peft_folder.read(folder), BASE))
    assert check(made, files=None, base=BASE, limits=Limits(1, SHAPES)) == 1
    assert all(not tensor.any() for tensor in load_file(made / WEIGHTS).values())


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folders, name = Folders(tmp_path, "prod"), f"prod@1.{'ab' * 6}"

    def broken() -> None:
        with folders.new(name) as staging:
            (staging / "half").write_text("x")
            assert folders.names() == frozenset()
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert list((tmp_path / "prod").iterdir()) == []
    with folders.new(name) as staging:
        fill(staging, {"a": b"1"})
    assert folders.names() == {name}
    assert (folders.path(name) / "a").stat().st_mode & 0o777 == 0o444

    def again() -> None:
        with folders.new(name) as staging:
            fill(staging, {"a": b"2"})

    with pytest.raises(OSError, match="not empty"):
        again()
    assert (folders.path(name) / "a").read_bytes() == b"1"  # never rewritten
    folders.delete(name)
    folders.delete(name)
    assert list((tmp_path / "prod").iterdir()) == []
