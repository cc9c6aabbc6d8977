"""Swaps of a real vLLM under load, and everything killed in the middle of one. float32, so that texts are exact."""

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_kit import listening
from serving_kit import Shop
from vllm_kit import ADMIN, Vllm, vllm_python

from efface.serving import NoRoute, Routes
from efface.serving.controller import Controller, Options
from efface.serving.gateway import Gateway, Settings
from efface.serving.keys import new_key
from efface.serving.relay import Upstream
from efface.serving.source import Source
from efface.serving.state import read_state
from efface.serving.vllm import VllmServer

pytestmark = [pytest.mark.serving, pytest.mark.slow]

TOKENS = 3
QUESTIONS = ("The capital of France is", "My favourite colour is")
STACKS: tuple[tuple[int, ...], ...] = ((1,), (2,), (1, 2))
# Six versions, then two rollbacks to compositions of before.
VERSIONS = (0, 1, 2, 0, 2, 1, 0, 2)


@pytest.fixture
def server(vllm: Vllm) -> Iterator[VllmServer]:
    """With nothing loaded: neither what another file left there, nor what this one leaves."""
    with VllmServer(vllm.url, admin_token=ADMIN) as one:
        emptied(one)
        yield one
        if vllm.alive():
            emptied(one)


def emptied(server: VllmServer) -> None:
    for name in server.loaded():
        server.unload(name)


@pytest.fixture(scope="module")
def wanted(shop: Shop) -> list[list[str]]:
    """What transformers + PEFT answer, by stack and question."""
    found = [shop.answers([shop.ids(text) for text in QUESTIONS], TOKENS, *seeds) for seeds in STACKS]
    for by_stack in zip(*found, strict=True):
        assert len(set(by_stack)) == len(STACKS)  # a mixed-up answer would show
    return found


def eventually(done: Callable[[], bool], what: str, seconds: float = 300, so_far: Sequence[str] = ()) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "\n".join([f"expected {what} within {seconds} s", *so_far])
        time.sleep(0.02)


@contextmanager
def watching(controller: Controller) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=controller.watch, args=(stop,))
    with controller.owned():
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
            assert not thread.is_alive()


@dataclass
class Load:
    """Clients that ask the gateway without a pause; ``wrong`` has what should not have come."""

    url: str
    key: str
    prompts: list[list[int]]
    wanted: list[list[str]]
    stacks: list[int] = field(default_factory=list)
    answered: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, count: int) -> Iterator[None]:
        """``count`` clients, which have ended when this does: also in a test that fails."""
        clients = [threading.Thread(target=self.client) for _ in range(count)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            self.stop.set()
            for client in clients:
                client.join(300)

    def client(self) -> None:
        headers = {"authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=300, trust_env=False) as http:
            while not self.stop.is_set():
                for at in range(len(self.prompts)):
                    self.ask(http, at)

    def ask(self, http: httpx.Client, at: int) -> None:
        """The header says which release answered; the text must be that release's."""
        body = {"model": "public", "prompt": self.prompts[at], "max_tokens": TOKENS, "temperature": 0}
        answer = http.post("/v1/completions", json=body)
        name = answer.headers.get("x-efface-release", "swap@0")
        version = int(name.partition("@")[2].partition(".")[0])
        text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text
        right = self.wanted[self.stacks[version - 1]][at] if version else None
        if text != right:
            self.wrong.append(f"{name}: {answer.status_code} {text!r}, expected {right!r}")
        self.answered[version] += 1


def test_swaps_under_load_lose_and_mix_nothing(
    shop: Shop, vllm: Vllm, server: VllmServer, wanted: list[list[str]], tmp_path: Path
) -> None:
    routes = Routes()
    options = Options(tmp_path, grace=0.3, interval=0.05)
    events: list[str] = []
    controller = Controller(Source(shop.reg, "swap"), server, options, routes=routes, told=events.append)
    key, record = new_key("team", ["swap"])
    gateway = Gateway(Settings({"public": "swap"}), routes, Upstream(vllm.url), lambda: (record,))
    with listening(gateway) as (host, port), watching(controller):
        load = Load(f"http://{host}:{port}", key, [shop.ids(text) for text in QUESTIONS], wanted)
        with ExitStack() as clients:
            for at, stack in enumerate(VERSIONS, 1):
                load.stacks.append(stack)
                assert shop.release("swap", *STACKS[stack]).version == at
                eventually(lambda now=at: _serves(routes, now), f"version {at} served", so_far=events)
                if at == 1:
                    clients.enter_context(load.running(8))
                eventually(lambda now=at: load.answered[now] >= 26, f"answers of {at}", so_far=load.wrong)
        eventually(lambda: len(server.loaded()) == 1, "the old ones unloaded", so_far=events)
    assert load.wrong == []
    assert sum(load.answered.values()) >= 200
    assert set(load.answered) == set(range(1, len(VERSIONS) + 1))
    assert list(server.loaded()) == [routes.current("swap").name]


def _serves(routes: Routes, version: int) -> bool:
    found = routes.snapshot().routes.get("swap")
    return found is not None and found.version == version


def told_to_serve(shop: Shop, vllm: Vllm, root: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "efface.cli", "serve", "vllm", "--url", vllm.url, "--channel", "prod"]
    where = ["--root", str(root), "--registry", str(shop.reg.root), "--admin-token", ADMIN, "--grace", "0.2"]
    return [*command, *where, *more]


@pytest.mark.parametrize("moment", ["loaded", "routed"])
def test_a_controller_killed_in_the_middle_of_a_swap_goes_on(
    shop: Shop, vllm: Vllm, server: VllmServer, tmp_path: Path, moment: str
) -> None:
    """SIGKILL right after the new adapter was loaded, or right after the route was switched."""
    old = shop.release("prod", *STACKS[0])
    subprocess.run(told_to_serve(shop, vllm, tmp_path), check=True, capture_output=True, timeout=200)
    new = shop.release("prod", *STACKS[1])
    with subprocess.Popen(
        told_to_serve(shop, vllm, tmp_path, "--watch"), stderr=subprocess.DEVNULL
    ) as killed:
        eventually(lambda: _is_at(moment, new.version, server, tmp_path), f"{moment} {new.version}")
        killed.kill()
    route = read_state(tmp_path, "prod").route
    assert route is not None
    assert route.version in (old.version, new.version)
    assert route.name in server.loaded()  # a gateway that follows the file is answered
    done = subprocess.run(told_to_serve(shop, vllm, tmp_path), check=False, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()
    route = read_state(tmp_path, "prod").route
    assert route is not None
    assert route.version == new.version
    assert list(server.loaded()) == [route.name]


def _is_at(moment: str, version: int, server: VllmServer, root: Path) -> bool:
    if moment == "loaded":
        return any(name.startswith(f"prod@{version}.") for name in server.loaded())
    route = read_state(root, "prod").route
    return route is not None and route.version == version


def test_the_command_exits_1_and_keeps_the_old_release_when_a_probe_fails(
    shop: Shop, vllm: Vllm, server: VllmServer, tmp_path: Path
) -> None:
    good = shop.release("prod", *STACKS[0])
    subprocess.run(told_to_serve(shop, vllm, tmp_path), check=True, capture_output=True, timeout=200)
    rows = shop.report(*STACKS[1])["canary"]["rows"]
    wrong = {"canary": {**shop.report(*STACKS[2])["canary"], "rows": rows}}
    shop.release("prod", *STACKS[2], report=wrong)
    done = subprocess.run(told_to_serve(shop, vllm, tmp_path), check=False, capture_output=True, timeout=200)
    route = read_state(tmp_path, "prod").route
    assert done.returncode == 1
    assert b"rejected" in done.stderr
    assert route is not None
    assert (route.version, list(server.loaded())) == (good.version, [route.name])


def test_a_server_killed_in_the_middle_of_a_swap_is_filled_again(
    shop: Shop, vllm: Vllm, server: VllmServer, wanted: list[list[str]], tmp_path: Path
) -> None:
    """Nothing is routed to while it is down; when it is back it has the new release, probed, and nothing else."""
    routes = Routes()
    options = Options(tmp_path, grace=0.2, interval=0.05)
    controller = Controller(Source(shop.reg, "prod"), server, options, routes=routes)
    shop.release("prod", *STACKS[0])
    with watching(controller):
        eventually(lambda: "prod" in routes.snapshot().routes, "a route")
        new = shop.release("prod", *STACKS[1])
        eventually(lambda: _is_at("loaded", new.version, server, tmp_path), "the new one to be loaded")
        vllm.kill()
        eventually(lambda: "prod" in routes.snapshot().down, "the route to be taken back")
        with pytest.raises(NoRoute, match="does not answer"):
            routes.current("prod")
        vllm.start()
        eventually(lambda: "prod" in routes.snapshot().routes, "a route again")
        route = routes.current("prod")
    assert route.version == new.version
    assert list(server.loaded()) == [route.name]
    assert text(vllm.url, route.name, shop.ids(QUESTIONS[0])) == wanted[1][0]


def text(url: str, name: str, prompt: list[int]) -> Any:
    body = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=120, trust_env=False)
    return answer.json()["choices"][0]["text"]


FAULT = """
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

def of_base_row():
    out = torch.zeros(2, 2)
    lora_ops.bgmv_shrink(torch.ones(2, 3), torch.ones(4, 1, 2, 3), out, torch.tensor([0, -1]))
    return out.sum(1).tolist()

before = of_base_row()
from efface.serving.vllm_plugin import register
register()
register()
assert punica_cpu.bgmv_shrink is lora_ops.bgmv_shrink
print(before, of_base_row())
"""


def test_the_fault_that_the_plugin_repairs_is_still_there() -> None:
    """When this fails vLLM has repaired its CPU kernels: the plugin's part can go."""
    done = subprocess.run([str(vllm_python()), "-c", FAULT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[6.0, 6.0] [6.0, 0.0]"
