"""`release create --render` from end to end: what is sealed, what is audited, what a rollback restores."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_kit import FORGET, RETAIN, SECOND, checked, efface, jsonl, recipe_file
from registry_kit import contents
from transformers import AutoModelForCausalLM

from efface.adapters import Part, read_adapter
from efface.adapters.compress import compress
from efface.registry import Registry, adapter_folder

ONE, TWO = "req-000001", "req-000002"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """Two trained requests, nothing released."""
    at = tmp_path_factory.mktemp("renders")
    recipe_file(at / "loose.yaml")
    jsonl(at / "retain.jsonl", RETAIN)
    for name, rows in (("one", FORGET), ("two", SECOND)):
        jsonl(at / f"{name}.jsonl", rows)
        files = ("--forget", at / f"{name}.jsonl", "--retain", at / "retain.jsonl")
        checked(at / "registry", "request", "open", *files, "--basis", "test")
    for request in (ONE, TWO):
        checked(at / "registry", "unlearn", request, *using(at, tiny_llama))
    return at


def using(at: Path, model: Path) -> list[object]:
    return ["--model", model, "--recipe", at / "loose.yaml"]


def create(at: Path, model: Path, channel: str, *requests: str, render: str | None = None) -> Any:
    adds = [word for request in requests for word in ("--add", request)]
    how = ["--render", render] if render else []
    return checked(at / "registry", "release", "create", channel, *adds, *how, *using(at, model))


def test_svd_is_sealed_with_its_error_and_audited_as_it_is_served(
    home: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    exact = create(home, tiny_llama, "exact", ONE, TWO)
    made = create(home, tiny_llama, "small", ONE, TWO, render="svd:1")
    assert made["state"] == "ACTIVE"
    assert made["composition"]["render"] == "svd:1"
    assert made["composition"]["parts"] == exact["composition"]["parts"]
    assert made["composition"]["digest"] != exact["composition"]["digest"]
    assert made["audit"] != exact["audit"]
    (audit,) = [a for a in checked(home / "registry", "audit", "show") if a["digest"] == made["audit"]]
    assert audit["composition"] == made["composition"]["digest"]
    report = checked(home / "registry", "audit", "show", made["audit"])["document"]
    assert "Rendered as svd:1: an approximation" in report
    with Registry.open(home / "registry") as reg:
        parts = [Part(adapter_folder(reg, p["adapter"]), p["weight"]) for p in made["composition"]["parts"]]
        served = read_adapter(adapter_folder(reg, made["rendered"]))
    wanted = compress(parts, tmp_path / "wanted", rank=1)
    assert (served.digest, served.rank) == (wanted.digest, 1)
    adapter = checked(home / "registry", "adapter", "show", made["rendered"])
    assert wanted.error <= float(adapter["error_bound"]) <= wanted.error + 1e-8
    assert checked(home / "registry", "adapter", "show", exact["rendered"])["error_bound"] is None
    shown = efface("release", "show", "small", "--registry", home / "registry").out
    assert f"svd:1  (approximate: relative error at most {adapter['error_bound']})" in shown
    again = checked(home / "registry", "audit", "run", "--release", "small", *using(home, tiny_llama))
    assert again["report"]["digests"]["composition"] == made["composition"]["digest"]


def test_a_rollback_keeps_the_render_and_restores_the_composition(home: Path, tiny_llama: Path) -> None:
    first = create(home, tiny_llama, "back", ONE, render="error:0.3")
    both = create(home, tiny_llama, "back", TWO)
    assert both["composition"]["render"] == "error:0.3"
    why = ("--reason", "due", *using(home, tiny_llama))
    back = checked(home / "registry", "release", "rollback", "back", "--remove", TWO, *why)
    assert back["composition"] == first["composition"]
    assert back["rendered"] == first["rendered"]


def test_live_is_audited_and_nothing_is_rendered(home: Path, tiny_llama: Path) -> None:
    made = create(home, tiny_llama, "live", ONE, TWO, render="live")
    assert (made["state"], made["rendered"], made["verdict"]) == ("ACTIVE", None, "pass")


def test_what_is_served_is_rendered_another_way_and_back(home: Path, tiny_llama: Path) -> None:
    first = create(home, tiny_llama, "again", ONE, TWO)
    words = ("release", "render", "again")
    small = checked(home / "registry", *words, "svd:1", "--reason", "small slots", *using(home, tiny_llama))
    assert (small["state"], small["version"], small["composition"]["render"]) == ("ACTIVE", 2, "svd:1")
    assert small["composition"]["parts"] == first["composition"]["parts"]
    assert small["audit"] != first["audit"]
    left = checked(home / "registry", *words, "cat", "--no-activate", *using(home, tiny_llama))
    assert (left["state"], left["composition"]["digest"]) == ("CANDIDATE", first["composition"]["digest"])
    shown = checked(home / "registry", "release", "show", "again")
    assert shown["reason"] == "small slots"
    for wrong, said in (("svd:1", "got svd:1, as it is"), ("svd:0", "expected render to be one of")):
        ran = efface(*words, wrong, *using(home, tiny_llama), "--registry", home / "registry")
        assert (ran.code, said in " ".join(ran.err.split())) == (2, True)


def test_a_refused_rollback_names_options_that_it_has(home: Path, tiny_llama: Path) -> None:
    """The render that it offers, pasted behind the command that was refused."""
    both = create(home, tiny_llama, "slots", ONE, TWO)
    words = ("release", "rollback", "slots", "--reason", "due", *using(home, tiny_llama))
    where = ("--registry", home / "registry")
    refused = efface(*words, "--remove", ONE, "--max-lora-rank", 1, *where)
    assert (refused.code, refused.out) == (2, "")
    offered = re.search(r"--render (svd:[0-9]+)", refused.err)
    assert offered is not None
    done = checked(home / "registry", *words, "--remove", ONE, "--max-lora-rank", 1, "--render", offered[1])
    assert (done["state"], done["composition"]["render"]) == ("ACTIVE", "svd:1")
    back = checked(home / "registry", *words, "--to", 1, "--render", "svd:2")
    assert back["composition"]["parts"] == both["composition"]["parts"]
    assert back["composition"]["render"] == "svd:2"
    look = ("audit", "run", "--release", "slots", "--render", "svd:1", *using(home, tiny_llama))
    seen = checked(home / "registry", *look, "--without", ONE)
    assert seen["report"]["digests"]["composition"] == done["composition"]["digest"]
    alone = efface(*look, *where)
    assert (alone.code, "--render needs --without" in " ".join(alone.err.split())) == (2, True)


@pytest.mark.parametrize("render", ["ties:0.5:2", "dare:0.5:2", "knots:0.5:2"])
def test_merges_are_marked_approximate(home: Path, tiny_llama: Path, render: str) -> None:
    made = create(home, tiny_llama, render.partition(":")[0], ONE, TWO, render=render)
    assert (made["composition"]["render"], made["verdict"]) == (render, "pass")
    bound = checked(home / "registry", "adapter", "show", made["rendered"])["error_bound"]
    assert 0.0 < float(bound) < 10.0
    assert "an approximation" in checked(home / "registry", "audit", "show", made["audit"])["document"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--render", "svd:0"), "expected render to be one of cat, live, svd:R"),
        (("--render", "sum"), "expected render to be one of cat, live, svd:R"),
        (("--max-lora-rank", "3"), "from 1 to 3, got 4; render it as svd:3, which fits"),
        (("--set", "quantization=bf16"), "at that precision"),
    ],
)
def test_what_cannot_be_rendered_changes_nothing(
    home: Path, tiny_llama: Path, extra: tuple[str, str], said: str
) -> None:
    before = contents(home / "registry")
    wanted = ("--add", ONE, "--add", TWO, *using(home, tiny_llama), *extra)
    ran = efface("release", "create", "never", *wanted, "--registry", home / "registry")
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    after = {
        name: found for name, found in contents(home / "registry").items() if not name.startswith("cache")
    }
    assert after == {name: found for name, found in before.items() if not name.startswith("cache")}


def test_evidence_of_an_approximate_release_and_its_rollback_is_checked_elsewhere(
    home: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Served at rank 1, one taken off, exported and verified without the registry: each step by a user's command."""
    registry = home / "registry"
    create(home, tiny_llama, "shown", ONE, TWO, render="svd:1")
    why = ("--reason", "due", *using(home, tiny_llama))
    back = checked(registry, "release", "rollback", "shown", "--remove", ONE, *why)
    assert (back["requests"], back["composition"]["render"]) == ([TWO], "svd:1")
    verified = checked(registry, "verify", "--deep")
    assert verified["problems"] == []
    for about in ("shown", TWO):
        file = tmp_path / f"{about}.efface.zip"
        made = checked(registry, "bundle", "export", about, "--out", file)
        found = checked(None, "bundle", "verify", file)
        assert (found["ok"], found["problems"], found["digest"]) == (True, [], made["digest"])
        assert found["id"] == about


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_channel_is_merged_stored_quantized_and_audited_as_that(
    home: Path, tiny_llama: Path, tmp_path: Path, form: str
) -> None:
    registry, out = home / "registry", tmp_path / "merged"
    create(home, tiny_llama, f"merge-{form}", ONE, TWO)
    merge = ("merge", f"merge-{form}", "--out", out, "--requantize", form, *using(home, tiny_llama))
    done = checked(registry, *merge)
    assert (done["requantized"], done["precision"], done["verdict"]) == (form, form, "pass")
    audit = checked(registry, "audit", "show", done["audit"])
    assert (audit["precision"], audit["requests"]) == (form, [ONE, TWO])
    assert json.loads((out / "efface_merge.json").read_text())["requantized"] == form
    model = AutoModelForCausalLM.from_pretrained(out)
    assert getattr(model, f"is_loaded_in_{'4bit' if form == 'nf4' else '8bit'}")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    never = tmp_path / "never"
    other = ("--out", never, "--requantize", form, "--precision", "bf16", *using(home, tiny_llama))
    refused = efface("merge", f"merge-{form}", *other, "--registry", registry)
    assert (refused.code, refused.out, never.exists()) == (2, "", False)
    assert f"expected an audit at {form}" in refused.err
    assert checked(registry, "verify", "--deep")["problems"] == []
