"""The gateway's side towards the server: one question out, one answer back, both of known form.

Nothing of the user's request travels but the checked body; nothing of the server's answer but JSON in which ``model``
is the adapter that was asked. An answer by any other is thrown away: the user gets an error and never another model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
from yarl import URL

from .asgi import dumped
from .errors import ServingError
from .rules import Refusal

_LARGEST_ANSWER = 64 << 20
_LARGEST_EVENT = 4 << 20
_LONGEST_MESSAGE = 400
_DONE = "[DONE]"
_UNIX = "unix:"
_CONNECT_S = 5.0
# Below the five seconds after which vLLM's server closes an idle connection, perhaps under a question.
_KEPT_S = 4.0
_NO_ANSWER = (aiohttp.ClientError, TimeoutError)

NOT_LOADED = Refusal(
    503, "not_served", "expected the release at the server, which does not have it now; try again"
)
BUSY = Refusal(503, "upstream_busy", "expected a free server, got one with too much to do; try again")
BROKEN = Refusal(502, "upstream_error", "expected an answer from the server, got something else; try again")
WRONG_MODEL = Refusal(
    502, "wrong_model", "expected an answer by the active release, got another's; it is not shown"
)
SLOW = Refusal(504, "upstream_timeout", "expected an answer in time, got none; try again, or ask for less")


class Failed(Exception):
    """No answer that may be shown. ``refusal``: what the user is told."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


class Upstream:
    """The server at ``url`` (``http://host:port`` or ``unix:/path``). Only the gateway should be able to reach it.

    ``api_key``: the server's own. ``timeout``: seconds between two bytes of an answer, and until the first.

    Over aiohttp, whose client takes a fifth of the CPU time of httpx's (docs/LOG.md): most of what a gateway adds.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 600.0, connections: int = 256
    ) -> None:
        self._unix = url.removeprefix(_UNIX) if url.startswith(_UNIX) else None
        self._at = "http://server" if self._unix else _checked(url)
        self._headers = {"accept-encoding": "identity", "user-agent": "efface-gateway"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_S, sock_read=timeout)
        self._connections = connections
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    @asynccontextmanager
    async def ask(self, path: str, body: bytes, *, stream: bool) -> AsyncGenerator[aiohttp.ClientResponse]:
        """The server's answer to ``body``, its head checked. Raises `Failed`."""
        accept = "text/event-stream" if stream else "application/json"
        headers = {"content-type": "application/json", "accept": accept}
        url = URL(self._at + path, encoded=True)
        try:
            async with self._session().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise Failed(await _refusal(answer))
                kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind != accept or answer.headers.get("content-encoding", "identity") != "identity":
                    raise Failed(BROKEN)
                yield answer
        except _NO_ANSWER as error:
            raise Failed(_of(error)) from None

    def _session(self) -> aiohttp.ClientSession:
        """Made at the first question: it belongs to the loop that runs then."""
        if self._http is None:
            most = {"limit": self._connections, "keepalive_timeout": _KEPT_S}
            # No proxy, credentials or cookies but the server's key, and nothing unpacked: this server and no other.
            self._http = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._unix, **most)
                if self._unix
                else aiohttp.TCPConnector(**most),
                headers=self._headers,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._http


def _checked(url: str) -> str:
    try:
        at = URL(url)
        if at.scheme in ("http", "https") and at.host and not at.query_string and not at.fragment:
            return str(at).rstrip("/")
    except ValueError:
        pass
    raise ServingError(
        "expected --upstream as http://HOST:PORT, https://… or unix:/PATH, got another; correct it"
    )


async def whole(answer: aiohttp.ClientResponse, name: str, public: str) -> bytes:
    """The answer as JSON that names ``public`` where the server said ``name``. Raises `Failed`."""
    return _renamed(await _bytes(answer, _LARGEST_ANSWER), name, public)


async def events(answer: aiohttp.ClientResponse, name: str, public: str) -> AsyncGenerator[bytes]:
    """The server-sent events of a streamed answer, one at a time, each renamed and written anew. Raises `Failed`."""
    async for data in _datas(answer):
        if data == _DONE:
            yield b"data: [DONE]\n\n"
            return
        yield b"data: " + _renamed(data.encode(), name, public) + b"\n\n"
    raise Failed(BROKEN)  # cut off: the last event of every whole stream is [DONE]


def error_event(refusal: Refusal) -> bytes:
    """What ends a stream that went wrong after its first event."""
    return b"data: " + refusal.body() + b"\n\n"


async def _raw(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.content.iter_any():
            yield piece
    except _NO_ANSWER as error:
        raise Failed(_of(error)) from None


def _of(error: Exception) -> Refusal:
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return BUSY
    return SLOW if isinstance(error, TimeoutError) else BROKEN


async def _datas(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The ``data`` of each event (https://html.spec.whatwg.org/multipage/server-sent-events.html); no other field."""
    held = b""
    data: list[str] = []
    async for piece in _raw(answer):
        *lines, held = (held + piece).split(b"\n")
        if len(held) + sum(map(len, data)) > _LARGEST_EVENT:
            raise Failed(BROKEN)
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if line.startswith("data:"):
                data.append(line[5:].removeprefix(" "))
            elif not line and data:
                yield "\n".join(data)
                data = []


def _renamed(data: bytes, name: str, public: str) -> bytes:
    """The object in ``data`` written anew; NaN and infinity, which a sick model gives, are no answer."""
    value = _object(data)
    if "error" in value:
        raise Failed(BROKEN)
    if value.get("model") != name:
        raise Failed(WRONG_MODEL)
    try:
        return dumped({**value, "model": public})
    except (ValueError, RecursionError):
        raise Failed(BROKEN) from None


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Failed(BROKEN) from None
    if not isinstance(value, dict):
        raise Failed(BROKEN)
    return cast("dict[str, Any]", value)


async def _bytes(answer: aiohttp.ClientResponse, largest: int) -> bytes:
    parts, size = list[bytes](), 0
    async for part in _raw(answer):
        size += len(part)
        if size > largest:
            raise Failed(BROKEN)
        parts.append(part)
    return b"".join(parts)


async def _refusal(answer: aiohttp.ClientResponse) -> Refusal:
    """What the user is told of an error of the server: its words only where the question itself was wrong.

    Words about LoRA are about files of the server, which has lost them: nothing that a user could correct.
    """
    status = answer.status
    if status in (400, 413, 422):
        words = _words(await _bytes(answer, 1 << 20))
        return NOT_LOADED if "lora" in words.lower() else Refusal(400, "upstream_refused", words)
    return {404: NOT_LOADED, 429: BUSY, 503: BUSY, 504: SLOW}.get(status, BROKEN)


def _words(data: bytes) -> str:
    try:
        error = json.loads(data)["error"]
        text = error if isinstance(error, str) else error["message"]
        return " ".join(str(text).split())[:_LONGEST_MESSAGE]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "expected another question, says the server; correct it"
