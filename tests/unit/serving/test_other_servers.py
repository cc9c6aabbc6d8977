"""Clients of SGLang and LoRAX against stubs of their documented HTTP APIs: neither server runs here.

The stubs answer what the documents name and refuse every field that they do not. What only a real server shows is not
tested: that is what "stub" in the names says.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from efface.serving import LoraServer, ProbeFailed, ServerError
from efface.serving.lorax import LoraxServer
from efface.serving.probe import ProbeSet, probe
from efface.serving.sglang import SglangServer

Handle = Callable[[str, str, Any], tuple[int, Any]]
PROMPTS = ((1, 2), (3,))
WANTED = ProbeSet("sha256:" + "0" * 64, "fp32", PROMPTS, ({7: -0.5, 8: -1.5}, {9: -0.25, 3: -2.0}))


@contextmanager
def stub(handle: Handle) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(handle("GET", self.path, None))

        def do_POST(self) -> None:
            self._say(
                handle("POST", self.path, json.loads(self.rfile.read(int(self.headers["content-length"]))))
            )

        def _say(self, said: tuple[int, Any]) -> None:
            status, value = said
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class SglangStub:
    """SGLang's names, ``/generate`` with log-probabilities, and metrics."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.metrics = (
            'sglang:num_running_reqs{model_name="m"} 0.0\nsglang:num_queue_reqs{model_name="m"} 0.0\n'
        )
        self.off = 0.0

    def __call__(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        match method, path:
            case "GET", "/health":
                return 200, ""
            case "GET", "/metrics":
                return (200, self.metrics) if self.metrics else (404, "")
            case "GET", "/v1/models":
                cards = [{"id": name, "root": root, "parent": "m"} for name, root in self.names.items()]
                return 200, {"object": "list", "data": [{"id": "m", "root": "m", "parent": None}, *cards]}
            case "POST", "/load_lora_adapter":
                assert set(body) == {"lora_name", "lora_path"}
                if body["lora_name"] in self.names:
                    return 400, {"success": False, "error_message": "already loaded"}
                self.names[body["lora_name"]] = body["lora_path"]
                return 200, {"success": True, "loaded_adapters": self.names}
            case "POST", "/unload_lora_adapter":
                assert set(body) == {"lora_name"}
                there = self.names.pop(body["lora_name"], None) is not None
                return (200 if there else 400), {"success": there}
            case "POST", "/generate":
                return self._generate(body)
        return 404, {}

    def _generate(self, body: Any) -> tuple[int, Any]:
        assert set(body) == {
            "input_ids",
            "sampling_params",
            "return_logprob",
            "top_logprobs_num",
            "lora_path",
        }
        assert body["sampling_params"] == {"max_new_tokens": 1, "temperature": 0}
        assert body["input_ids"] == [list(prompt) for prompt in PROMPTS]
        if not set(body["lora_path"]) <= set(self.names):
            return 400, {"error": {"message": "not loaded"}}
        rows = [
            [[logprob + self.off, token, None] for token, logprob in row.items()] for row in WANTED.expected
        ]
        return 200, [{"text": "x", "meta_info": {"output_top_logprobs": [row]}} for row in rows]


class LoraxStub:
    """LoRAX's ``/generate`` with a local adapter: the chosen token's log-probability and no other."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.off = 0.0

    def __call__(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "GET":
            return (200, {"model_id": "m"}) if path in ("/info", "/health") else (404, {})
        assert path == "/generate"
        assert set(body) == {"inputs", "parameters"}
        parameters = body["parameters"]
        assert set(parameters) == {"adapter_id", "adapter_source", "details", "max_new_tokens"}
        assert parameters["adapter_source"] == "local"
        self.asked.append(body)
        if not parameters["adapter_id"].startswith("/adapters/"):
            return 424, {"error": "Request failed during generation", "error_type": "generation"}
        token, logprob = {"3": (9, -0.25)}.get(body["inputs"], (7, -0.5))
        tokens = [{"id": token, "text": "x", "logprob": logprob + self.off, "special": False}]
        return 200, {"generated_text": "x", "details": {"tokens": tokens}}


def decode(prompt: tuple[int, ...]) -> str:
    return " ".join(map(str, prompt))


@pytest.fixture
def sglang_stub() -> Iterator[tuple[SglangStub, SglangServer]]:
    handle = SglangStub()
    with stub(handle) as url:
        server = SglangServer(url)
        yield handle, server
        server.close()


@pytest.fixture
def lorax_stub() -> Iterator[tuple[LoraxStub, LoraxServer]]:
    handle = LoraxStub()
    with stub(handle) as url:
        server = LoraxServer(url, decode=decode)
        yield handle, server
        server.close()


def test_sglang_stub_loads_probes_and_unloads(sglang_stub: tuple[SglangStub, SglangServer]) -> None:
    handle, server = sglang_stub
    one: LoraServer = server
    assert one.alive()
    one.load("prod@1", Path("/adapters/one"))
    assert one.loaded() == {"prod@1": Path("/adapters/one")}
    assert probe(one, "prod@1", WANTED) == 0
    handle.off = -0.1
    with pytest.raises(ProbeFailed):
        probe(one, "prod@1", WANTED)
    one.unload("prod@1")
    one.unload("prod@1")
    assert one.loaded() == {}


def test_sglang_stub_refuses_and_says_so(sglang_stub: tuple[SglangStub, SglangServer]) -> None:
    _, server = sglang_stub
    server.load("prod@1", Path("/adapters/one"))
    with pytest.raises(ServerError, match="/load_lora_adapter to work, got 400") as error:
        server.load("prod@1", Path("/adapters/two"))
    assert error.value.status == 400
    with pytest.raises(ServerError, match="/generate"):
        server.first_token_logprobs("prod@2", PROMPTS)


@pytest.mark.parametrize(
    ("metrics", "busy"),
    [
        ("sglang:num_running_reqs 0.0\nsglang:num_queue_reqs 0.0\n", False),
        ('sglang:num_running_reqs{a="b"} 1.0\nsglang:num_queue_reqs 0.0\n', True),
        ("sglang:num_running_reqs 0.0\nsglang:num_queue_reqs 2.0\n", True),
        ("sglang:num_running_reqs soon\n", True),
        ("nothing_of_it 0.0\n", True),
        ("", True),
    ],
)
def test_sglang_stub_is_busy_unless_it_says_otherwise(
    sglang_stub: tuple[SglangStub, SglangServer], metrics: str, busy: bool
) -> None:
    handle, server = sglang_stub
    handle.metrics = metrics
    assert server.busy("prod@1") is busy


def test_lorax_stub_loads_by_asking_and_probes_one_token(lorax_stub: tuple[LoraxStub, LoraxServer]) -> None:
    handle, server = lorax_stub
    one: LoraServer = server
    assert one.alive()
    one.load("prod@1", Path("/adapters/one"))
    assert one.loaded() == {"prod@1": Path("/adapters/one")}
    assert probe(one, "prod@1", WANTED) == 0
    assert [body["inputs"] for body in handle.asked] == ["a", "1 2", "3"]
    handle.off = -0.1
    with pytest.raises(ProbeFailed):
        probe(one, "prod@1", WANTED)
    assert one.busy("prod@1")
    one.unload("prod@1")
    assert one.loaded() == {}
    with pytest.raises(ServerError):
        one.first_token_logprobs("prod@1", PROMPTS)


def test_lorax_stub_keeps_no_name_of_what_did_not_load(lorax_stub: tuple[LoraxStub, LoraxServer]) -> None:
    _, server = lorax_stub
    with pytest.raises(ServerError, match="424"):
        server.load("prod@1", Path("/elsewhere"))
    assert server.loaded() == {}
    server.load("prod@1", Path("/adapters/one"))
    with pytest.raises(ServerError, match="never replaced"):
        server.load("prod@1", Path("/adapters/two"))


@pytest.mark.parametrize(
    "value", ["no JSON", [], {}, {"data": 1}, {"data": [1]}, {"details": {"tokens": []}}]
)
def test_stubs_that_answer_something_else(value: Any) -> None:
    with stub(lambda *_: (200, value)) as url:
        servers = (SglangServer(url), LoraxServer(url, decode=decode))
        with pytest.raises(ServerError):
            servers[0].loaded()
        with pytest.raises(ServerError):
            servers[0].first_token_logprobs("prod@1", PROMPTS)
        with pytest.raises(ServerError):
            servers[1].load("prod@1", Path("/adapters/one"))
        for server in servers:
            server.close()


def test_nobody_there() -> None:
    for server in (SglangServer("http://127.0.0.1:9"), LoraxServer("http://127.0.0.1:9", decode=decode)):
        assert not server.alive()
        with pytest.raises(ServerError, match="is it running"):
            server.loaded()
        server.close()
