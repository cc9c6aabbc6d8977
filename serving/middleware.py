"""ASGI middleware for an inference server's own process: the base cannot be asked around the gateway.

    EFFACE_CHANNELS=prod EFFACE_ADMIN_TOKEN=… vllm serve … --middleware efface.serving.middleware.LoraOnly

vLLM serves its base under its name and, to a request without one, by default; nothing in it turns that off. This lets
through what `rules.refused` allows, for the channels in `inside`: a channel's name becomes that of its active adapter,
the list of models has no base, and loading and unloading need the admin token. Whatever else comes is refused.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .headers import ADMIN_HEADER, RELEASE_HEADER
from .inside import Inside, of
from .rules import LARGEST_BODY, NO_MODEL, Refusal, parse_body, refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_log = logging.getLogger("vllm.efface")
_PLUGIN = "efface.serving.vllm_plugin"
_TOO_LARGE = Refusal(413, "request_too_large", f"expected a body of at most {LARGEST_BODY} bytes; shorten it")


class LoraOnly:
    """Let through what may be asked of the channels' adapters; refuse the rest, and everything but HTTP."""

    def __init__(self, app: App, settings: Inside | None = None) -> None:
        self._app, self._inside = app, of(os.environ) if settings is None else settings
        if settings is None and _PLUGIN not in sys.modules:
            # VLLM_PLUGINS without it, or other metadata of efface (a checkout's) before the installed ones.
            _log.warning(
                "efface: expected its plugin in this vLLM, got none: no repairs, no resolver, and NaN is loaded; look "
                "at VLLM_PLUGINS and at the folder that the server was started in"
            )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and self._is_admin(scope):
            self._inside.look()  # the controller's checks of health see every switch
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        refusal = _TOO_LARGE if body is None else self._refused(scope, body)
        if body is None or refusal is not None:
            await _answer(send, refusal or _TOO_LARGE)
        elif scope["path"] == "/v1/models":
            await self._models(scope, send)
        elif not body:
            await self._app(scope, _replay(b"", receive), send)
        else:
            await self._ask(scope, body, receive, send)

    def _refused(self, scope: Message, body: bytes) -> Refusal | None:
        return refused(scope["path"], scope["method"], body, serves=self._inside.serves)

    async def _ask(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        """Pass a question on, with the channel's name made that of its adapter, which the answer names."""
        asked = dict(parse_body(body))
        name = self._inside.resolved(asked["model"])
        if name is None:
            await _answer(send, NO_MODEL)
            return
        data = json.dumps({**asked, "model": name}).encode()
        sized = {**scope, "headers": _with_length(scope["headers"], len(data))}
        await self._app(sized, _replay(data, receive), _naming(name, send))

    async def _models(self, scope: Message, send: Send) -> None:
        """The list of models without the base and without paths of the server."""
        started: Message = {}
        parts: list[bytes] = []

        async def gather(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, _replay(b"", _never), gather)
        data = self._listed(b"".join(parts)) if started.get("status") == 200 else b""
        await _respond(send, int(started.get("status", 500)), b"" if scope["method"] == "HEAD" else data)

    def _listed(self, body: bytes) -> bytes:
        there = {card["id"] for card in json.loads(body)["data"] if card.get("parent") is not None}
        names = {name for name in there if self._inside.serves(name)}
        names |= {channel for channel in self._inside.channels if self._inside.active(channel) in there}
        cards = [
            {"id": name, "object": "model", "created": 0, "owned_by": "efface"} for name in sorted(names)
        ]
        return json.dumps({"object": "list", "data": cards}).encode()

    def _is_admin(self, scope: Message) -> bool:
        """Whether it carries the token, once. Without a token nobody is admin."""
        sent = [value for name, value in scope["headers"] if name.lower() == ADMIN_HEADER.encode()]
        token = self._inside.admin_token
        return token is not None and len(sent) == 1 and hmac.compare_digest(sent[0], token.encode())


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when it is larger than any that may pass."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and bool(message.get("more_body"))
        if len(body) > LARGEST_BODY:
            return None
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then what else comes (a client that hangs up)."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _never() -> Message:
    return {"type": "http.disconnect"}


def _naming(name: str, send: Send) -> Send:
    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [one for one in message.get("headers", []) if one[0].lower() != RELEASE_HEADER.encode()]
            message = {**message, "headers": [*kept, (RELEASE_HEADER.encode(), name.encode())]}
        await send(message)

    return named


def _with_length(headers: Any, length: int) -> list[tuple[bytes, bytes]]:
    kept = [(k, v) for k, v in headers if k.lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", str(length).encode())]


async def _answer(send: Send, refusal: Refusal) -> None:
    await _respond(send, refusal.status, refusal.body())


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
