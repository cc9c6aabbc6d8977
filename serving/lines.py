"""Connections to one HTTP/1.1 server, kept between questions: h11 speaks the protocol, asyncio carries the bytes.

A gateway adds what its client costs: httpx takes 2.2 ms of CPU for a small answer, this 0.25 (docs/LOG.md). aiohttp is
as fast, but hands bytes that a server sent unasked to whoever asks next on that connection, and waits for ever where
a body breaks or a server does not read; a gateway between users must not.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import h11

from .tls import tls_context

_AHEAD = 256 << 10
"""Bytes that may wait here for whoever reads an answer, before the server has to wait."""
_HEAD = 64 << 10
_CONNECT_S = 5.0
# Below the five seconds after which vLLM's server closes an idle connection, perhaps under a question.
_KEPT_S = 4.0

Headers = Sequence[tuple[bytes, bytes]]


class Unreachable(Exception):
    """No connection: nobody listens there, or all that are allowed are in use."""


class Broken(Exception):
    """The other side hung up, or said what is no HTTP."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the server listens: ``path`` of a unix socket, else ``host`` and ``port``, with TLS or without."""

    host: str = "server"
    port: int = 80
    tls: bool = False
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; names of headers in lower case. ``line`` has its body."""

    status: int
    headers: Headers
    line: Line

    def header(self, name: bytes) -> bytes:
        """All values of a header, as one; empty where there is none."""
        return b",".join(value for key, value in self.headers if key == name)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `Broken`, also where it ends too soon, and TimeoutError."""
        while type(event := await self.line.event()) is not h11.EndOfMessage:
            if type(event) is h11.Data:
                yield bytes(event.data)


class Lines:
    """At most ``most`` connections to ``place``. ``timeout``: seconds without a byte either way."""

    def __init__(self, place: Place, *, most: int, timeout: float) -> None:
        self._place, self._timeout = place, timeout
        self._tls = tls_context() if place.tls else None
        self._free = asyncio.Semaphore(most)
        self._idle: list[Line] = []

    @asynccontextmanager
    async def ask(self, path: bytes, headers: Headers, body: bytes) -> AsyncGenerator[Answer]:
        """POST ``body``; the connection is kept where all of the answer was read.

        Raises `Unreachable`, and as `Answer.pieces` does.
        """
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._free.acquire()
        except TimeoutError:
            raise Unreachable from None
        line: Line | None = None
        try:
            line = self._kept() or await self._connected()
            yield await line.ask(path, headers, body)
        finally:
            if line is not None:
                self._back(line)
            self._free.release()

    def close(self) -> None:
        """Close what is kept; a connection in use closes with its question."""
        for line in self._idle:
            line.abort()
        self._idle.clear()

    def _kept(self) -> Line | None:
        while self._idle:
            if (line := self._idle.pop()).fresh():
                return line
            line.abort()
        return None

    async def _connected(self) -> Line:
        loop, place = asyncio.get_running_loop(), self._place
        try:
            async with asyncio.timeout(_CONNECT_S):
                if place.path is not None:
                    made = await loop.create_unix_connection(self._line, place.path)
                else:
                    made = await loop.create_connection(self._line, place.host, place.port, ssl=self._tls)
        except (OSError, TimeoutError):
            raise Unreachable from None
        return made[1]

    def _line(self) -> Line:
        return Line(self._timeout)

    def _back(self, line: Line) -> None:
        for one in [one for one in self._idle if not one.fresh()]:
            self._idle.remove(one)
            one.abort()
        if line.rest():
            self._idle.append(line)
        else:
            line.abort()


class Line(asyncio.Protocol):
    """One connection, one question at a time. What comes while nobody has asked ends it."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._resting = True
        self._gone = self._full = self._held = False
        self._ahead = 0
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio has it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        if self._resting:
            self.abort()
            return
        self._ahead += len(data)
        if self._ahead > _AHEAD and self._transport is not None:
            self._held = True
            self._transport.pause_reading()
        self._http.receive_data(data)
        self._wake()

    def eof_received(self) -> None:
        """The server ends its side: what it said may be whole."""
        if not self._resting and not self._gone:
            self._http.receive_data(b"")
        self._gone = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it; an end that nobody announced is one too soon."""
        if not self._gone and exc is None and not self._resting:
            self._http.receive_data(b"")
        self._gone = True
        self._wake()

    def pause_writing(self) -> None:
        """As asyncio has it."""
        self._full = True

    def resume_writing(self) -> None:
        """As asyncio has it."""
        self._full = False
        self._wake()

    async def ask(self, path: bytes, headers: Headers, body: bytes) -> Answer:
        """Send a question; the head of its answer, which may come before all of the question is sent."""
        self._resting = False
        question = h11.Request(method=b"POST", target=path, headers=list(headers))
        parts = [self._http.send(event) for event in (question, h11.Data(data=body), h11.EndOfMessage())]
        if self._transport is None or self._gone:
            raise Broken
        self._transport.write(b"".join(part for part in parts if part))
        while self._full and not self._ahead and not self._gone:
            await self._more()
        while type(event := await self.event()) is h11.InformationalResponse:
            pass
        if type(event) is not h11.Response:
            raise Broken
        return Answer(event.status_code, [(name.lower(), value) for name, value in event.headers], self)

    async def event(self) -> h11.Event:
        """The next part of the answer. Raises `Broken`, and TimeoutError after ``timeout`` without a byte."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError:
                raise Broken from None
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED or self._gone:
                raise Broken
            await self._more()

    def fresh(self) -> bool:
        """Whether it may be asked again: open, silent, and the server does not close it yet."""
        if self._gone or self._transport is None or self._loop.time() - self._since > _KEPT_S:
            return False
        # What the kernel has is not here yet, and would be taken for the next answer.
        return not _readable(self._transport.get_extra_info("socket"))

    def rest(self) -> bool:
        """Be kept for the next question; False where this one was not answered to its end, or more came with it."""
        http, sent = self._http, self._transport is not None and not self._transport.get_write_buffer_size()
        if self._gone or not sent or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        if http.trailing_data != (b"", False):
            return False
        http.start_next_cycle()
        self._read_on()
        self._resting, self._since = True, self._loop.time()
        return True

    def abort(self) -> None:
        """Close it now: nothing that is not sent yet matters any more."""
        self._gone = True
        if self._transport is not None:
            self._transport.abort()

    async def _more(self) -> None:
        self._read_on()
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(self._timeout):
                await self._waiter
        finally:
            self._waiter = None

    def _read_on(self) -> None:
        self._ahead = 0
        if self._held and self._transport is not None:
            self._held = False
            self._transport.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _readable(socket: Any) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))
