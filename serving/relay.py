"""The gateway's side towards the server: one question out, one answer back, both of known form.

Nothing of the user's request travels but the checked body; nothing of the server's answer but JSON in which ``model``
is the adapter that was asked. An answer by any other is thrown away: the user gets an error and never another model.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast
from urllib.parse import urlsplit

from .asgi import dumped
from .errors import ServingError
from .lines import Answer, Broken, Lines, Place, Unreachable
from .rules import Refusal

_LARGEST_ANSWER = 64 << 20
_LARGEST_EVENT = 4 << 20
_LONGEST_MESSAGE = 400
_DONE = "[DONE]"
_UNIX = "unix:"

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
    ``connections``: at once; who finds none free for five seconds is told to come again.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, timeout: float = 600.0, connections: int = 256
    ) -> None:
        place, self._prefix, host = _place(url)
        # No proxy, cookie or redirect, and nothing packed: this server and no other.
        self.headers = [
            (b"host", host),
            (b"accept-encoding", b"identity"),
            (b"user-agent", b"efface-gateway"),
            (b"content-type", b"application/json"),
        ]
        if api_key:
            self.headers.append((b"authorization", b"Bearer " + _key(api_key)))
        self._lines = Lines(place, most=connections, timeout=timeout)

    async def close(self) -> None:
        """Close the connections."""
        self._lines.close()

    @asynccontextmanager
    async def ask(self, path: str, body: bytes, *, stream: bool) -> AsyncGenerator[Answer]:
        """The server's answer to ``body``, its head checked. Raises `Failed`."""
        accept = b"text/event-stream" if stream else b"application/json"
        headers = [*self.headers, (b"accept", accept), (b"content-length", b"%d" % len(body))]
        with _told():
            async with self._lines.ask(self._prefix + path.encode("ascii"), headers, body) as answer:
                if answer.status != 200:
                    raise Failed(await _refusal(answer))
                kind = answer.header(b"content-type").partition(b";")[0].strip().lower()
                if kind != accept or answer.header(b"content-encoding") not in (b"", b"identity"):
                    raise Failed(BROKEN)
                yield answer


def _place(url: str) -> tuple[Place, bytes, bytes]:
    """Where to connect, what paths begin with, and the Host header. Raises `ServingError`."""
    if url.startswith(_UNIX) and len(url) > len(_UNIX):
        return Place(path=url.removeprefix(_UNIX)), b"", b"server"
    with suppress(ValueError):
        parts = urlsplit(url)
        host, tls = parts.hostname, parts.scheme == "https"
        plain = not (parts.username or parts.password or parts.query or parts.fragment)
        if url.isascii() and url.isprintable() and host and plain and parts.scheme in ("http", "https"):
            place = Place(host, parts.port or (443 if tls else 80), tls)
            return place, parts.path.rstrip("/").encode(), parts.netloc.encode()
    raise ServingError(
        "expected --upstream as http://HOST:PORT, https://… or unix:/PATH without user or query, got another; "
        "correct it"
    )


def _key(text: str) -> bytes:
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ServingError(
            "expected the server's key in printable ASCII without spaces or line ends, got another; correct it"
        )
    return text.encode("ascii")


async def whole(answer: Answer, name: str, public: str) -> bytes:
    """The answer as JSON that names ``public`` where the server said ``name``. Raises `Failed`."""
    return _renamed(await _bytes(answer, _LARGEST_ANSWER), name, public)


async def events(answer: Answer, name: str, public: str) -> AsyncGenerator[bytes]:
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


async def _raw(answer: Answer) -> AsyncIterator[bytes]:
    with _told():
        async for piece in answer.pieces():
            yield piece


@contextmanager
def _told() -> Generator[None]:
    """What went wrong on the way, as the user is told it."""
    try:
        yield
    except Unreachable:
        raise Failed(BUSY) from None
    except TimeoutError:
        raise Failed(SLOW) from None
    except Broken:
        raise Failed(BROKEN) from None


async def _datas(answer: Answer) -> AsyncIterator[str]:
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


async def _bytes(answer: Answer, largest: int) -> bytes:
    parts, size = list[bytes](), 0
    async for part in _raw(answer):
        size += len(part)
        if size > largest:
            raise Failed(BROKEN)
        parts.append(part)
    return b"".join(parts)


async def _refusal(answer: Answer) -> Refusal:
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
