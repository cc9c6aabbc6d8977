"""A real vLLM in float32: what it answers is what transformers and PEFT answer, and never the base's by mistake."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_kit import Shop, random_lora
from vllm_kit import ADMIN, Vllm

from efface.serving import ServerError
from efface.serving.controller import Controller, Options
from efface.serving.source import Source
from efface.serving.vllm import VllmServer

pytestmark = [pytest.mark.serving, pytest.mark.slow]

QUESTIONS = ("The capital of France is", "My favourite colour is", "One, two, three,")
TOKENS = 12


@pytest.fixture
def server(vllm: Vllm) -> Iterator[VllmServer]:
    with VllmServer(vllm.url, admin_token=ADMIN) as one:
        yield one
        for name in one.loaded():
            one.unload(name)


def text(url: str, model: str, prompt: list[int], *, admin: bool = True) -> str:
    headers = {"x-efface-admin": ADMIN} if admin else {}
    asked = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def control(shop: Shop, server: VllmServer, root: Path, channel: str, **options: Any) -> Controller:
    settings = Options(root, grace=0, interval=0.05, **options)
    return Controller(Source(shop.reg, channel), server, settings)


def test_greedy_texts_equal_transformers_and_peft(shop: Shop, vllm: Vllm, server: VllmServer) -> None:
    stacks: dict[str, tuple[int, ...]] = {"base": (), "a@1": (1,), "b@1": (2,), "stack@1": (1, 2, 3)}
    for name, seeds in stacks.items():
        if seeds:
            server.load(name, shop.rendered(*seeds))
    prompts = [shop.ids(question) for question in QUESTIONS]
    jobs = [(name, prompt) for name in stacks for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        came = list(pool.map(lambda job: text(vllm.url, *job), jobs))
    wanted = [answer for seeds in stacks.values() for answer in shop.answers(prompts, TOKENS, *seeds)]
    assert came == wanted
    assert len(set(came)) == len(came)  # else equality says little


def test_base_rows_in_a_full_mixed_batch_stay_the_base(shop: Shop, vllm: Vllm, server: VllmServer) -> None:
    """Without the plugin these rows get the adapter of the last slot, as soon as all slots are filled."""
    for seed in (1, 2, 3, 4):
        server.load(f"slot@{seed}", shop.rendered(seed))
        text(vllm.url, f"slot@{seed}", shop.ids("fill"))
    prompt = shop.ids(QUESTIONS[0])
    wanted = shop.answers([prompt], TOKENS)[0]
    names = ["slot@1", "base", "slot@4", "base", "slot@2", "base", "slot@3", "base"]
    with ThreadPoolExecutor(8) as pool:
        came = list(pool.map(lambda name: text(vllm.url, name, prompt), names))
    assert [one for name, one in zip(names, came, strict=True) if name == "base"] == [wanted] * 4
    assert len({one for name, one in zip(names, came, strict=True) if name != "base"} - {wanted}) == 4


def test_a_poisoned_adapter_is_refused_by_the_server_itself(
    shop: Shop, vllm: Vllm, server: VllmServer, tmp_path: Path
) -> None:
    """Who loads around the controller meets the plugin; without it every later answer of the server is empty."""
    folder = random_lora(shop.bench.base.model, tmp_path / "nan", 9, 8, "x", nan=True)
    with pytest.raises(ServerError, match="expected finite LoRA weights"):
        server.load("nan@1", folder)
    assert "nan@1" not in server.loaded()
    prompt = shop.ids(QUESTIONS[0])
    assert text(vllm.url, "base", prompt) == shop.answers([prompt], TOKENS)[0]


def test_in_place_loads_do_not_stick(shop: Shop, vllm: Vllm, server: VllmServer, tmp_path: Path) -> None:
    """Without the plugin the files are read again at every step, and a change of them is served."""
    folder = Path(shutil.copytree(shop.rendered(1), tmp_path / "once"))
    body = {"lora_name": "once@1", "lora_path": str(folder), "load_inplace": True}
    headers = {"x-efface-admin": ADMIN}
    done = httpx.post(
        f"{vllm.url}/v1/load_lora_adapter", json=body, headers=headers, timeout=60, trust_env=False
    )
    assert done.status_code == 200
    prompt = shop.ids(QUESTIONS[1])
    before = text(vllm.url, "once@1", prompt)
    shutil.copyfile(shop.rendered(2) / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    assert (
        text(vllm.url, "once@1", shop.ids(QUESTIONS[2]))
        == shop.answers([shop.ids(QUESTIONS[2])], TOKENS, 1)[0]
    )
    assert text(vllm.url, "once@1", prompt) == before == shop.answers([prompt], TOKENS, 1)[0]


def test_a_release_is_loaded_probed_routed_and_the_old_one_unloaded(
    shop: Shop, vllm: Vllm, server: VllmServer, tmp_path: Path
) -> None:
    prompt = shop.ids(QUESTIONS[0])
    versions = [shop.release("prod", 1).version]
    controller = control(shop, server, tmp_path, "prod")
    with controller.owned():
        assert controller.settle(60)
        first = controller.state.route
        versions.append(shop.release("prod", 1, 2).version)
        assert controller.settle(60)
        second = controller.state.route
    assert first is not None
    assert second is not None
    assert [first.version, second.version] == versions
    assert dict(server.loaded()) == {second.name: tmp_path / "prod" / second.name}
    assert [entry.name for entry in (tmp_path / "prod").iterdir()] == [second.name]
    assert text(vllm.url, second.name, prompt, admin=False) == shop.answers([prompt], TOKENS, 1, 2)[0]


def test_a_release_that_answers_otherwise_is_not_routed_to(
    shop: Shop, server: VllmServer, tmp_path: Path
) -> None:
    """Its audit says what another stack answers: as if the server had another base, or the wrong file."""
    shop.release("prod", 1)
    controller = control(shop, server, tmp_path, "prod")
    assert controller.settle(60)
    good = controller.state.route
    with shop.wearing(3) as model:
        from efface.recipes.canary import canary

        other = canary(shop.bench, model, shop.composition(2)).to_json()
    shop.release("prod", 2, report={"canary": other})
    assert controller.settle(60)
    assert controller.state.route == good
    (why,) = controller.state.rejected.values()
    assert "expected log-probabilities within 0.01" in why
    assert good is not None
    assert list(server.loaded()) == [good.name]


def test_a_channel_is_loaded_at_its_first_use(shop: Shop, vllm: Vllm, server: VllmServer) -> None:
    prompt = shop.ids(QUESTIONS[2])
    release = shop.release("res", 3)
    time.sleep(0.6)  # `Inside.fresh`: that nothing was active is known for half a second
    name = Source(shop.reg, "res").named
    assert text(vllm.url, "res", prompt, admin=False) == shop.answers([prompt], TOKENS, 3)[0]
    (loaded,) = server.loaded()
    assert name(loaded).version == release.version
    for hostile in ("res@99", "../res", "res@1/../..", f"{loaded}x"):
        assert ask(vllm.url, {"model": hostile, "prompt": prompt}).status_code == 404
    assert list(server.loaded()) == [loaded]


def ask(url: str, body: Any, path: str = "/v1/completions", **more: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=60, trust_env=False, **more)


def test_the_base_cannot_be_asked_past_the_middleware(shop: Shop, vllm: Vllm, server: VllmServer) -> None:
    server.load("prod@9", shop.rendered(1))
    for model in ("base", None, "", 7, ["prod@9"], {"x": 1}, "Base", "base ", str(vllm.model), "other"):
        assert ask(vllm.url, {"model": model, "prompt": "x"}).status_code == 404, model
    assert ask(vllm.url, {"prompt": "x"}).status_code == 404
    for path in (
        "/v1/load_lora_adapter",
        "/adapters",
        "/tokenize",
        "/v1/embeddings",
        "/v1/responses",
        "/invocations",
    ):
        assert ask(vllm.url, {"model": "base", "prompt": "x"}, path).status_code == 404, path
    for token in ("", "wrong", ADMIN + "x"):
        headers = {"x-efface-admin": token}
        assert ask(vllm.url, {"model": "base", "prompt": "x"}, headers=headers).status_code == 404
    listed = httpx.get(f"{vllm.url}/v1/models", trust_env=False).json()["data"]
    assert [card["id"] for card in listed] == ["prod@9"]
    assert str(vllm.model) not in str(listed)
    answer = ask(vllm.url, {"model": "prod@9", "prompt": "x", "max_tokens": 1})
    assert (answer.status_code, answer.headers["x-efface-release"]) == (200, "prod@9")
