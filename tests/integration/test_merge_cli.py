"""`efface merge` from end to end: what is merged, what its folder says of the audit, and what interruptions leave."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_kit import FORGET, RETAIN, SECOND, checked, efface, jsonl, recipe_file, stopped
from model_kit import wide
from registry_kit import contents
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from efface.adapters import read_adapter
from efface.adapters.folder import delta
from efface.adapters.merge import as_computed
from efface.adapters.model import fingerprint
from efface.registry import Registry, adapter_folder

ONE, TWO = "req-000001", "req-000002"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """In several shards, so that one can be missing."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path_factory.mktemp("sharded") / "base"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Two trained requests; released as they are, at rank 1, and with the adapters themselves."""
    at = tmp_path_factory.mktemp("merge")
    recipe_file(at / "loose.yaml", learning_rate=0.05)
    jsonl(at / "retain.jsonl", RETAIN)
    for name, rows in (("one", FORGET), ("two", SECOND)):
        jsonl(at / f"{name}.jsonl", rows)
        files = ("--forget", at / f"{name}.jsonl", "--retain", at / "retain.jsonl")
        checked(at / "registry", "request", "open", *files, "--basis", "test")
    for request in (ONE, TWO):
        checked(at / "registry", "unlearn", request, *using(at, base))
    for render in ("cat", "svd:1", "ties:0.5:2", "live"):
        words = ("--add", ONE, "--add", TWO, "--render", render, *using(at, base))
        checked(at / "registry", "release", "create", render.partition(":")[0], *words)
    return at


@pytest.fixture
def at(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "at"))


def using(at: Path, model: Path) -> list[object]:
    return ["--model", model, "--recipe", at / "loose.yaml"]


def merged(at: Path, model: Path, channel: str, out: Path, *words: object, code: int = 0) -> Any:
    command = ("merge", channel, "--out", out, "--precision", "fp32", *using(at, model), *words)
    return checked(at / "registry", *command, code=code)


def record_of(folder: Path) -> Any:
    return json.loads((folder / "efface_merge.json").read_text())


def change(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """What a merge added to the matrices of the base, by module; those that it left alone are missing."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(base.glob("*.safetensors")):
        before, after = load_file(file), load_file(folder / file.name)
        moved = {
            name: after[name] - before[name] for name in before if not torch.equal(before[name], after[name])
        }
        found |= {name.removesuffix(".weight"): value for name, value in moved.items()}
    return found


@pytest.mark.parametrize("render", ["svd:1", "ties:0.5:2"])
def test_of_an_approximate_release_what_is_served_is_merged(
    at: Path, base: Path, tmp_path: Path, render: str
) -> None:
    channel = render.partition(":")[0]
    out = tmp_path / "out"
    done = merged(at, base, channel, out)
    release = checked(at / "registry", "release", "show", channel)
    with Registry.open(at / "registry") as reg:
        served = read_adapter(adapter_folder(reg, release["rendered"]))
    found = change(base, out)
    assert set(found) == set(served.modules)
    for name, moved in found.items():
        torch.testing.assert_close(moved, delta(served, name).float(), rtol=1e-4, atol=1e-5)
    record, card = record_of(out), (out / "README.md").read_text()
    assert (record["render"], record["exact"]) == (render, False)
    assert record["composition"] == release["composition"]["digest"]
    assert record["parts"] == [{"adapter": served.digest, "weight": "1"}]
    assert f"`{record['composition']}`, rendered as `{render}`, an approximation" in card
    document = json.loads(checked(at / "registry", "audit", "show", done["audit"])["document"])
    assert f"rendered as {render} (an approximation), were merged" in document["claim_evidence"][0]


def test_of_an_exact_release_the_parts_are_merged(at: Path, base: Path, tmp_path: Path) -> None:
    live, cat = (merged(at, base, render, tmp_path / render) for render in ("live", "cat"))
    assert live["artefact"] == cat["artefact"]
    for render in ("live", "cat"):
        record = record_of(tmp_path / render)
        assert (record["render"], record["exact"], len(record["parts"])) == (render, True, 2)


@pytest.mark.parametrize("code", [0, 1])
def test_the_folder_says_what_the_audit_said(at: Path, base: Path, tmp_path: Path, code: int) -> None:
    out, loose = tmp_path / "out", ["--set", "gates.max_probability_ratio_forget=0"] if code else []
    done = merged(at, base, "cat", out, *loose, code=code)
    audit = record_of(out)["audit"]
    said = {"digest": done["audit"], "precision": "fp32", "verdict": "fail" if code else "pass"}
    assert audit | said == audit
    assert ("max_probability_ratio_forget" in audit["failed"]) == bool(code)
    assert bool(audit["failed"]) == bool(code)
    assert "min_probability_ratio_retain" in audit["passed"]
    card = (out / "README.md").read_text()
    assert done["audit"] in card
    assert ("Do not serve it: it failed the audit" in card) == bool(code)
    assert ("Failed: max_probability_ratio_forget. " in card) == bool(code)
    assert fingerprint(out).digest == done["artefact"]
    assert checked(at / "registry", "verify", "--deep")["problems"] == []


def test_rows_that_cannot_be_measured_are_said_before_anything_is_written(
    at: Path, base: Path, tmp_path: Path
) -> None:
    out, before = tmp_path / "out", contents(at / "registry")
    words = ("merge", "cat", "--out", out, "--precision", "fp32", *using(at, base), "--set", "max_length=8")
    ran = efface(*words, "--registry", at / "registry")
    assert (ran.code, ran.out, "tokens" in ran.err) == (2, "", True)
    assert not any(line.startswith("Merging") for line in ran.err.splitlines())
    assert [entry.name for entry in tmp_path.iterdir()] == ["at"]
    kept = {name: file for name, file in contents(at / "registry").items() if not name.startswith("cache")}
    assert kept == {name: file for name, file in before.items() if not name.startswith("cache")}
    merged(at, base, "cat", out)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_audit_that_is_stopped_leaves_no_checkpoint_and_may_be_run_again(
    at: Path, base: Path, tmp_path: Path, stop: int
) -> None:
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    command = ("merge", "cat", "--out", place / "out", "--precision", "fp32", *using(at, base))
    code, lines = stopped(
        stop, "Measuring cat@1 merged", 0.0, *command, "--registry", at / "registry", scratch=scratch
    )
    assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop], lines
    left = [entry.name for entry in place.iterdir()]
    assert "out" not in left
    assert len(left) == (stop == signal.SIGKILL)
    merged(at, base, "cat", place / "out")
    assert [entry.name for entry in place.iterdir()] == ["out"]
    assert record_of(place / "out")["audit"]["verdict"] == "pass"


def _without_a_shard(base: Path) -> None:
    sorted(base.glob("model-*.safetensors"))[1].unlink()


def _with_a_cut_shard(base: Path) -> None:
    shard = sorted(base.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_a_shard, "expected a shard of the checkpoint, got no file; fetch the model again"),
        (_with_a_cut_shard, "bytes of tensors, got"),
    ],
)
def test_a_shard_that_is_missing_or_cut_is_no_other_base(
    at: Path, base: Path, tmp_path: Path, spoil: Any, said: str
) -> None:
    broken = Path(shutil.copytree(base, tmp_path / "base"))
    spoil(broken)
    name = sorted(base.glob("model-*.safetensors"))[1].name
    words = ("merge", "cat", "--out", tmp_path / "out", *using(at, broken))
    ran = efface(*words, "--registry", at / "registry")
    shown = " ".join(ran.err.split())
    assert ran.code == 2
    assert f"{broken / name}: expected" in shown
    assert said in shown
    assert "adapters were trained on" not in shown
    assert not (tmp_path / "out").exists()


def test_a_channel_trained_on_nf4_is_merged_onto_what_that_computes_with(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """`--base dequantized`: every linear layer becomes the 4-bit one's own, those with an adapter plus their change."""
    at, base = tmp_path, wide(tiny_llama, tmp_path / "base")
    recipe_file(at / "loose.yaml", learning_rate=0.05, quantization="nf4")
    jsonl(at / "retain.jsonl", RETAIN)
    jsonl(at / "one.jsonl", FORGET)
    files = ("--forget", at / "one.jsonl", "--retain", at / "retain.jsonl")
    checked(at / "registry", "request", "open", *files, "--basis", "test")
    checked(at / "registry", "unlearn", ONE, *using(at, base))
    checked(at / "registry", "release", "create", "prod", "--add", ONE, *using(at, base))
    words = ("--out", at / "out", "--base", "dequantized", "--precision", "bf16", *using(at, base))
    done = checked(at / "registry", "merge", "prod", *words)
    assert done["onto"] == record_of(at / "out")["onto"] == "nf4"
    with Registry.open(at / "registry") as reg:
        shown = checked(at / "registry", "release", "show", "prod")
        served = read_adapter(adapter_folder(reg, shown["rendered"]))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, at / "out"))
    linear = [name for name in before if name.endswith("_proj.weight")]
    assert {name.removesuffix(".weight") for name in linear} >= set(served.modules)
    for name in linear:
        wanted = as_computed(before[name], "nf4").float()
        if (module := name.removesuffix(".weight")) in served.modules:
            wanted += delta(served, module)
        torch.testing.assert_close(after[name].float(), wanted, rtol=2**-8, atol=0)  # half a step of bf16
        assert not torch.equal(after[name], before[name])
