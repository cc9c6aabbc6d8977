"""The little of ASGI that the gateway needs: https://asgi.readthedocs.io/en/latest/specs/www.html"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class BodyTooLarge(Exception):
    """More bytes came than are read; the rest is not."""


class Disconnected(Exception):
    """The client hung up before its request was there."""


def header(scope: Message, name: bytes) -> bytes | None:
    """The value of a header that is there once, None where it is not. Raises ValueError for one that is repeated."""
    found = [value for key, value in scope["headers"] if key.lower() == name]
    if len(found) > 1:
        raise ValueError("a header that is there once")
    return found[0] if found else None


async def read_body(receive: Receive, largest: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as more than ``largest`` bytes came, and `Disconnected`."""
    parts, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        part = bytes(message.get("body", b""))
        size += len(part)
        if size > largest:
            raise BodyTooLarge
        parts.append(part)
        more = bool(message.get("more_body", False))
    return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Return when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Begin an answer."""
    pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def respond(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """A whole answer, JSON unless ``headers`` says otherwise."""
    sized = {"content-type": "application/json", **headers, "content-length": str(len(body))}
    await start(send, status, sized)
    await send({"type": "http.response.body", "body": body})


def dumped(value: Any) -> bytes:
    """JSON in ASCII; raises ValueError for NaN and infinity (``1e999`` is read as one)."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
