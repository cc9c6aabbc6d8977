"""A gateway on a real socket, and behind it a server that answers anything at all and writes down what it was asked."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from efface.serving import Route, Routes
from efface.serving.gateway import Gateway, Settings
from efface.serving.keys import ApiKey, new_key
from efface.serving.listen import config, listener
from efface.serving.relay import Upstream

LEAK = "the base says"
CHAT = "/v1/chat/completions"


@dataclass
class Recorder:
    """Answers every request, whatever it asks for, as the model that was named, or as the base.

    ``says``: other answers to give, by what the test wants to see: status, raw body, content type.
    """

    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    says: tuple[int, bytes, str] | None = None
    adds: list[tuple[bytes, bytes]] = field(default_factory=list)
    words: Sequence[str] = ("one", " two", " three")
    hold: threading.Event | None = None
    cut: bool = False
    gone: threading.Event = field(default_factory=threading.Event)
    model: str | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        if scope["type"] != "http":
            self.seen.append((scope["type"], scope["path"], {}, b""))
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.seen.append((scope["method"], scope["path"], headers, body))
        try:
            asked = json.loads(body)
        except ValueError:
            asked = {}
        asked = asked if isinstance(asked, dict) else {}
        model = self.model or asked.get("model") or "base"
        if self.says is not None:
            status, data, kind = self.says
            await self._send(send, status, kind, [data])
        elif asked.get("stream"):
            await self._stream(send, receive, model)
        else:
            await self._wait(receive)
            text = LEAK if model == "base" else "".join(self.words)
            data = {
                "id": "x",
                "model": model,
                "choices": [{"index": 0, "text": text, "message": {"content": text}}],
            }
            await self._send(send, 200, "application/json", [json.dumps(data).encode()])

    async def _stream(self, send: Any, receive: Any, model: str) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index, word in enumerate(self.words):
            event = json.dumps({"model": model, "choices": [{"delta": {"content": word}}]}).encode()
            await send({"type": "http.response.body", "body": b"data: " + event + b"\n\n", "more_body": True})
            if index == 0:
                await self._wait(receive)
        if self.cut:
            raise RuntimeError("cut off")
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async def _wait(self, receive: Any = None) -> None:
        gone = asyncio.ensure_future(receive()) if receive else None
        while self.hold is not None and not self.hold.is_set():
            await asyncio.sleep(0.005)
            if gone is not None and gone.done():
                self.gone.set()
                return
        if gone is not None:
            gone.cancel()

    async def _send(self, send: Any, status: int, kind: str, parts: list[bytes]) -> None:
        headers = [(b"content-type", kind.encode()), *self.adds]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": False})


@contextmanager
def listening(app: Any, holder: socket.socket | None = None) -> Generator[tuple[str, int]]:
    """``app`` in uvicorn on a free port of the loopback (or on ``holder``), as `efface serve gateway` runs it."""
    holder = holder or listener("127.0.0.1", 0)
    server = uvicorn.Server(config(app, at_once=64))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [holder]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.002)
    try:
        yield holder.getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join(20)
        holder.close()


def route(channel: str = "prod", version: int = 7) -> Route:
    name = f"{channel}@{version}.0123456789ab"
    return Route(channel, version, name, "sha256:" + "c" * 64, "sha256:" + "d" * 64, "2026-11-23T00:00:00Z")


@dataclass
class World:
    """A gateway for `support` (channel prod) and `beta` (channel next), with a key for prod and one for both."""

    routes: Routes
    recorder: Recorder
    gateway: Gateway
    at: tuple[str, int]
    key: str
    both: str
    keys: list[ApiKey]

    def raw(self, data: bytes, *, end: bool = False) -> bytes:
        """All that comes back for these bytes on a connection of their own; ``end``: say that no more will come."""
        with socket.create_connection(self.at, timeout=20) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            parts = []
            while part := connection.recv(65536):
                parts.append(part)
        return b"".join(parts)

    def ask(
        self,
        body: Any = None,
        *,
        path: str = CHAT,
        method: str = "POST",
        key: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> "Answer":
        """One request, written by hand so that nothing tidies it up."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        names = {name.lower() for name, _ in headers}
        lines = [f"{method} {path} HTTP/1.1", "Connection: close"]
        lines += [] if "host" in names else ["Host: gateway"]
        lines += [] if "authorization" in names or key == "" else [f"Authorization: Bearer {key or self.key}"]
        lines += [] if "content-type" in names else ["Content-Type: application/json"]
        lines += [] if names & {"content-length", "transfer-encoding"} else [f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return parsed(self.raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + data))


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parsed(data: bytes) -> Answer:
    """The first response in ``data``; chunks put together."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        head, _, rest = rest.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        rest = body
    return Answer(int(first.split()[1]) if first else 0, headers, rest)


@contextmanager
def world(**settings: Any) -> Generator[World]:
    """Everything up, with a release routed on `prod` and none on `next`."""
    (text, mine), (other, both) = new_key("team-a", ["prod"]), new_key("ops", ["prod", "next"], metrics=True)
    keys, routes, recorder = [mine, both], Routes(), Recorder()
    routes.publish(route())
    with listening(recorder) as (host, port):
        upstream = Upstream(f"http://{host}:{port}", timeout=settings.pop("timeout", 20.0))
        chosen = Settings({"support": "prod", "beta": "next"}, **settings)
        gateway = Gateway(chosen, routes, upstream, lambda: tuple(keys))
        with listening(gateway) as at:
            yield World(routes, recorder, gateway, at, text, other, keys)


def hello(model: Any = "support", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
