"""`efface serve vllm` as a command, and a real release's way to it: create, audit with canary prompts, probe.

The server is a stand-in that answers as vLLM's API does (tests/lora_server_kit.py); for the canary prompts of a real
model it computes what transformers and PEFT do. The real vLLM: test_serving_vllm.py, test_serving_swaps.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_kit import FORGET, RETAIN, SECOND, checked, efface, jsonl, recipe_file
from lora_server_kit import FakeVllm, release, running
from peft import PeftModel
from transformers import AutoModelForCausalLM

from efface.registry import Registry, active_release
from efface.serving.source import Source
from efface.serving.state import read_state


class RealVllm(FakeVllm):
    """The stand-in with a real model behind it."""

    base: Path

    def _complete(self, name: str, prompts: list[list[int]]) -> tuple[int, Any]:
        if name not in self.names:
            return 404, {"error": {"message": "no such model"}}
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(self.base), self.names[name])
        choices = [
            {"index": i, "logprobs": {"top_logprobs": [_top(model, p)]}} for i, p in enumerate(prompts)
        ]
        return 200, {"choices": choices}


def _top(model: Any, prompt: Sequence[int]) -> dict[str, float]:
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1).topk(5)
    return {f"token_id:{token}": float(value) for value, token in zip(*found, strict=True)}


def test_releases_go_from_the_registry_to_a_server_and_back(tiny_llama: Path, tmp_path: Path) -> None:
    root, recipe = tmp_path / "registry", recipe_file(tmp_path / "recipe.yaml")
    with_model = ("--model", tiny_llama, "--recipe", recipe)
    Registry.open(root, create=True).close()
    for forget in (FORGET, SECOND):
        rows = (
            "--forget",
            jsonl(tmp_path / "f.jsonl", forget),
            "--retain",
            jsonl(tmp_path / "r.jsonl", RETAIN),
        )
        checked(root, "request", "open", *rows, "--basis", "test")
    for request in ("req-000001", "req-000002"):
        checked(root, "unlearn", request, *with_model)
        checked(root, "release", "create", "prod", "--add", request, *with_model)
    fake = RealVllm()
    fake.base = tiny_llama
    with running(fake) as url:
        where = ("serve", "vllm", "--url", url, "--channel", "prod", "--grace", "0", "--model", tiny_llama)
        first = checked(root, *where)
        why = ("--reason", "why", *with_model)
        checked(root, "release", "rollback", "prod", "--remove", "req-000002", *why)
        second = checked(root, *where)
        checked(root, "release", "rollback", "prod", "--remove", "req-000001", *why)
        bare = checked(root, *where)  # the base, under a name of its own
    assert [served["route"]["version"] for served in (first, second, bare)] == [2, 3, 4]
    assert list(fake.names) == [bare["route"]["name"]]
    with Registry.open(root) as reg:
        assert bare["route"]["release"] == active_release(reg, "prod").composition.digest
        target = Source(reg, "prod").active()
        assert target is not None
        assert {len(prompt) for prompt in Source(reg, "prod").probes(target).prompts} >= {12}


def test_the_canary_prompts_of_an_audit_are_neutral(tiny_llama: Path, tmp_path: Path) -> None:
    """The same prompts for every composition, whatever its rows are; nothing of these is in them."""
    from efface.recipes.bench import open_bench
    from efface.recipes.canary import canary
    from efface.recipes.recipe import load_recipe

    bench = open_bench(tiny_llama, load_recipe(str(recipe_file(tmp_path / "recipe.yaml"))))
    found = canary(bench, bench.base.model, bench.bare)
    assert found == canary(bench, bench.base.model, bench.bare)
    for prompt, answer in zip(found.prompts, found.expected, strict=True):
        logprobs = bench.base.model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert list(answer) == logprobs.topk(5).indices.tolist()
        assert list(answer.values()) == pytest.approx(logprobs.topk(5).values.tolist(), abs=1e-5)
        assert max(prompt) < len(bench.base.tokenizer)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        release(reg, tmp_path, 1)
    return root


def test_a_failed_probe_is_exit_1_and_the_old_release_stays(registry: Path, tmp_path: Path) -> None:
    fake = FakeVllm()
    with running(fake) as url:
        where = ("serve", "vllm", "--url", url, "--channel", "prod", "--grace", "0")
        before = checked(registry, *where)
        with Registry.open(registry) as reg:
            release(reg, tmp_path, 2, right=False)
        after = checked(registry, *where, code=1)
    assert after["route"] is not None
    assert (after["route"]["name"], list(fake.names)) == (before["route"]["name"], [before["route"]["name"]])
    assert len(after["rejected"]) == 1


def test_its_state_is_where_gateways_look(registry: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    with running(FakeVllm()) as url:
        served = checked(registry, "serve", "vllm", "--url", url, "--channel", "prod", "--root", root)
    state = read_state(root, "prod")
    assert state.route is not None
    assert served["route"]["name"] == state.route.name


def test_a_server_that_is_not_there_is_exit_1_and_nothing_is_routed(registry: Path) -> None:
    where = ("serve", "vllm", "--url", "http://127.0.0.1:9", "--channel", "prod", "--timeout", "1")
    assert checked(registry, *where, code=1)["route"] is None


@pytest.mark.parametrize(
    "wrong", [("--channel", "../x"), ("--url", "no url"), ("--model", "nowhere"), ("--max-lora-rank", "0")]
)
def test_bad_input_is_exit_2(registry: Path, wrong: tuple[str, str]) -> None:
    given = {"--url": "http://127.0.0.1:9", "--channel": "prod", "--timeout": "1", wrong[0]: wrong[1]}
    ran = efface("serve", "vllm", "--registry", registry, *(word for pair in given.items() for word in pair))
    assert (ran.code, ran.out) == (2, ""), ran


def test_tokens_are_in_no_output_and_no_file(registry: Path, tmp_path: Path) -> None:
    secrets = {"EFFACE_ADMIN_TOKEN": "hush-hush-1", "VLLM_API_KEY": "hush-hush-2"}
    with running(FakeVllm()) as url:
        where = ("--registry", registry, "--url", url, "--channel", "prod", "--root", tmp_path / "root")
        ran = efface("serve", "vllm", *where, variables=secrets)
    assert ran.code == 0
    state = json.dumps([path.read_text(errors="replace") for path in (tmp_path / "root").glob("*.json")])
    assert "hush-hush" not in ran.out + ran.err + state
