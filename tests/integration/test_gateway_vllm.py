"""The gateway in front of a real vLLM: hostile requests reach nothing there, and good ones are answered by the release.

vLLM's own count of requests says what reached it. Its middleware is passed over with the admin token, so that the
gateway alone is what stands in the way.
"""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from gateway_kit import Recorder, World, listening
from hostile_kit import BODIES, HEADERS, NAMES, PATHS
from serving_kit import Shop
from vllm_kit import ADMIN, Vllm

from efface.serving import Routes
from efface.serving.controller import Controller, Options
from efface.serving.gateway import Gateway, Settings
from efface.serving.keys import new_key
from efface.serving.relay import Upstream
from efface.serving.source import Source
from efface.serving.vllm import VllmServer

pytestmark = [pytest.mark.serving, pytest.mark.slow]
QUESTION = "The capital of France is"


@pytest.fixture(scope="module")
def up(shop: Shop, vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The release of one random adapter on `prod`, loaded, probed and routed by the controller."""
    (text, mine), (other, both) = new_key("team-a", ["prod"]), new_key("ops", ["prod", "next"], metrics=True)
    keys, routes = [mine, both], Routes()
    shop.release("prod", 1)
    with VllmServer(vllm.url, admin_token=ADMIN) as server:
        options = Options(tmp_path_factory.mktemp("gateway"), grace=0, interval=0.05)
        controller = Controller(Source(shop.reg, "prod"), server, options, routes=routes)
        with controller.owned():
            assert controller.settle(120)
            upstream = Upstream(vllm.url)
            upstream.headers.append((b"x-efface-admin", ADMIN.encode()))  # past the middleware
            gateway = Gateway(
                Settings({"support": "prod", "beta": "next"}, largest=1 << 16),
                routes,
                upstream,
                lambda: tuple(keys),
            )
            with listening(gateway) as at:
                yield World(routes, Recorder(), gateway, at, text, other, keys)


def asked(vllm: Vllm) -> float:
    """How many requests vLLM's API has taken, but for health and metrics."""
    text = httpx.get(f"{vllm.url}/metrics", trust_env=False).text
    found = re.findall(r'^http_requests_total\{handler="(?!/metrics|/health)[^}]*\} (\S+)', text, re.M)
    return sum(map(float, found))


def test_the_base_is_reachable_without_the_gateway(vllm: Vllm) -> None:
    """With the token, so that the tests here can fail: the count moves, and the base answers."""
    before = asked(vllm)
    body = {"model": "base", "prompt": QUESTION, "max_tokens": 1}
    headers = {"x-efface-admin": ADMIN}
    answer = httpx.post(f"{vllm.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)
    assert (answer.status_code, answer.json()["model"]) == (200, "base")
    assert asked(vllm) == before + 1


def test_no_hostile_request_reaches_vllm(up: World, vllm: Vllm) -> None:
    before, answers = asked(vllm), list[Any]()
    for name in NAMES.values():
        answers.append(up.ask({"model": name, "prompt": QUESTION}, path="/v1/completions"))
    answers += [up.ask(body) for body, _ in BODIES.values()]
    answers += [up.ask({"model": "support"}, path=path, method=method) for method, path in PATHS.values()]
    for headers, _ in HEADERS.values():
        answers.append(
            up.ask({"model": "support"}, headers=[(n, v.replace("KEY", up.key)) for n, v in headers])
        )
    assert len(answers) >= 40
    assert {answer.status // 100 for answer in answers} <= {4, 5}
    assert asked(vllm) == before


def test_answers_are_those_of_the_release_streamed_or_not(up: World, shop: Shop) -> None:
    prompt = shop.ids(QUESTION)
    wanted = shop.answers([prompt], 12, 1)[0]
    body = {"model": "support", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    answer = up.ask(body, path="/v1/completions")
    name = up.routes.current("prod").name
    assert (answer.json["choices"][0]["text"], answer.json["model"]) == (wanted, "support")
    assert answer.headers["x-efface-release"] == name
    streamed = up.ask({**body, "stream": True}, path="/v1/completions")
    lines = [line[6:] for line in streamed.body.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    assert "".join(json_text(line) for line in lines) == wanted
    assert streamed.headers["x-efface-release"] == name


def test_chat_and_the_limits_of_vllm_come_through(up: World) -> None:
    chat = up.ask({"model": "support", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3})
    assert (chat.status, chat.json["model"]) == (200, "support")
    long = up.ask({"model": "support", "prompt": [5] * 4000, "max_tokens": 3}, path="/v1/completions")
    assert (long.status, long.json["error"]["code"]) == (400, "upstream_refused")


def test_a_release_that_vllm_forgot_is_not_answered_by_another(up: World, shop: Shop, vllm: Vllm) -> None:
    """The plugin's resolver brings that very version back, out of the registry; nothing else may answer."""
    prompt = shop.ids(QUESTION)
    wanted = shop.answers([prompt], 12, 1)[0]
    route = up.routes.current("prod")
    body = {"model": "support", "prompt": prompt, "max_tokens": 12, "temperature": 0}
    with VllmServer(vllm.url, admin_token=ADMIN) as server:
        server.unload(route.name)
        answer = up.ask(body, path="/v1/completions")
        assert (answer.status, answer.json["choices"][0]["text"]) == (200, wanted)
        assert answer.headers["x-efface-release"] == route.name
        assert route.name in server.loaded()


def json_text(line: str) -> str:
    import json

    return str(json.loads(line)["choices"][0]["text"])
