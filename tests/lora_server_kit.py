"""An HTTP server that keeps LoRA names as vLLM does, without a model: for what the real one takes minutes to show.

Answers of the documented API (names, folders, refusals, metrics); the log-probabilities come from the adapter's bytes.
The same things are tested against the real vLLM where they matter (tests marked `serving`).
"""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from registry_kit import answered, ask, audited, lora, seal, stack

from efface.registry import Registry, Release, activate_release, adapter_folder, create_release
from efface.serving.probe import ProbeSet

PROMPTS = ((1, 2, 3), (9, 8))


@dataclass
class FakeVllm:
    """``names``: what is loaded. ``broken``: paths that answer 500; ``deaf``: 404.

    ``noise`` is added to every log-probability; ``stats``: whether it counts what it runs.
    """

    names: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    deaf: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    noise: float = 0.0
    sick: bool = False
    stats: bool = True

    def handle(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        name = str(body.get("lora_name") or body.get("model") or "")
        self.calls.append((path, name))
        if path in self.broken:
            return 500, {"error": {"message": "Call to add_lora method failed"}}
        if path in self.deaf:
            return 404, {"error": {"message": "no such path"}}
        match path:
            case "/health":
                return (503 if self.sick else 200), ""
            case "/v1/models":
                cards = [{"id": key, "root": root, "parent": "base"} for key, root in self.names.items()]
                return 200, {"data": [{"id": "base", "root": "/base", "parent": None}, *cards]}
            case "/v1/load_lora_adapter":
                return self._load(name, str(body["lora_path"]), body)
            case "/v1/unload_lora_adapter":
                return (200 if self.names.pop(name, None) else 404), ""
            case "/v1/completions":
                return self._complete(name, body["prompt"])
            case "/metrics":
                labels = f'running_lora_adapters="{",".join(sorted(self.running))}",waiting_lora_adapters=""'
                if not self.stats:
                    return 200, "http_requests_total 1.0\n"
                info = f'vllm:lora_requests_info{{max_lora="4",{labels}}} 1.0\n'
                return 200, f'vllm:num_requests_running{{engine="0"}} 0.0\n{info}'
        return 404, {"error": {"message": "no such path"}}

    def _load(self, name: str, root: str, body: dict[str, Any]) -> tuple[int, Any]:
        assert not body.get("load_inplace")
        if name in self.names:
            return 400, {"error": {"message": "has already been loaded"}}
        if not (Path(root) / "adapter_config.json").exists():
            return 404, {"error": {"message": "no adapter found"}}
        self.names[name] = root
        return 200, "Success"

    def _complete(self, name: str, prompts: list[list[int]]) -> tuple[int, Any]:
        if name not in self.names:
            return 404, {"error": {"message": "no such model"}}
        weights = (Path(self.names[name]) / "adapter_model.safetensors").read_bytes()
        rows = [
            {f"token_id:{token}": lp + self.noise for token, lp in said(weights, p).items()} for p in prompts
        ]
        choices = [{"index": i, "logprobs": {"top_logprobs": [row]}} for i, row in enumerate(rows)]
        return 200, {"choices": choices}


def said(weights: bytes, prompt: list[int] | tuple[int, ...]) -> dict[int, float]:
    """What an adapter with these bytes answers to a prompt: any function of both will do."""
    digest = hashlib.sha256(weights + json.dumps(list(prompt)).encode()).digest()
    return {byte * 7 + at: -1.0 - at - byte / 256 for at, byte in enumerate(digest[:5])}


class UnixServer(ThreadingHTTPServer):
    """On a unix socket, as ``vllm serve --uds`` is."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)


@contextmanager
def running(fake: FakeVllm, unix: Path | None = None) -> Iterator[str]:
    """Serve it; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({})

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body: dict[str, Any]) -> None:
            status, value = fake.handle(self.path, body)
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    place: Any = ("127.0.0.1", 0) if unix is None else str(unix)
    server = (ThreadingHTTPServer if unix is None else UnixServer)(place, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}" if unix is None else f"unix:{unix}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def release(reg: Registry, work: Path, seed: int, *, probed: bool = True, right: bool = True) -> Release:
    """A release on prod whose rendered adapter has bytes of its own, audited with what `FakeVllm` answers to it."""
    _, trained = answered(reg, work, seed)
    composition = stack([trained])
    made_from = lora(work / f"rendered-{seed}", seed)
    rendered = seal(reg, made_from, [ask(reg)], kind="rendered", facts={"composition": composition.digest})
    made = create_release(reg, "prod", composition, rendered=rendered.digest, reason="why", actor="ana")
    weights = (adapter_folder(reg, rendered.digest) / "adapter_model.safetensors").read_bytes()
    answers = tuple(said(weights if right else b"other", prompt) for prompt in PROMPTS)
    canary = ProbeSet(composition.digest, "nf4", PROMPTS, answers).to_json()
    report = {"canary": canary} if probed else {"figures": 1}
    evidence = audited(reg, composition, report=json.dumps(report).encode())
    return activate_release(reg, "prod", made.version, audit=evidence.digest, approved_by="ben")
