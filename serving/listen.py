"""How the gateway listens: uvicorn with nothing that it does not need."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ServingError

_LARGEST_HEAD = 16 << 10


class Patient(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for a head, and for a client that does not read.

    Both would be held by whoever wants to: a connection out of `config`'s number, and with it a lease, for which the
    release before could never be unloaded. While a request is being answered only reading is timed.
    """

    HEAD_S: ClassVar[float] = 10.0
    """Seconds from the first byte of a head (or the connection) to its last; also for a body that nobody reads."""
    STALL_S: ClassVar[float] = 60.0
    """Seconds that a client may leave the write buffer full."""
    _head: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time for the first head begins."""
        super().connection_made(transport)
        self._head = self.loop.call_later(self.HEAD_S, self._late)

    def data_received(self, data: bytes) -> None:
        """A whole head ends its time; anything else between two requests begins it."""
        super().data_received(data)
        if self._answering():
            self._head = _cancelled(self._head)
        elif self._head is None:
            self._head = self.loop.call_later(self.HEAD_S, self._late)

    def pause_writing(self) -> None:
        """The client's time to read begins."""
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self.STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._stall = _cancelled(self._stall)

    def timeout_keep_alive_handler(self) -> None:
        """Closing waits for what is not read yet: not for ever either."""
        super().timeout_keep_alive_handler()
        self._stall = self._stall or self.loop.call_later(self.STALL_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """No time runs any more."""
        super().connection_lost(exc)
        self._head, self._stall = _cancelled(self._head), _cancelled(self._stall)

    def _answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _late(self) -> None:
        self._head = None
        if not self._answering():
            self.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def config(app: Any, host: str = "127.0.0.1", port: int = 0, *, at_once: int = 256) -> uvicorn.Config:
    """No websockets, no forwarded headers, no access log (paths are the user's), a parser that keeps to the RFC.

    ``at_once``: requests that the application takes; some more may wait here, the rest gets 503.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Patient,
        ws="none",
        loop="auto",  # uvloop, where it is installed
        lifespan="on",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=2 * at_once + 64,
        h11_max_incomplete_event_size=_LARGEST_HEAD,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=30,
    )


def serve(app: Any, host: str, port: int, *, at_once: int = 256) -> None:
    """Listen until SIGINT or SIGTERM; answers that have begun are finished. Raises `ServingError` for a taken port."""
    with listener(host, port) as holder:
        uvicorn.Server(config(app, host, port, at_once=at_once)).run(sockets=[holder])


def listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ServingError` for a taken port.

    With its protocol named: only then asyncio (uvloop always) sets TCP_NODELAY on what it accepts, without which every
    answer waits 40 ms for an acknowledgement between head and body.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
        holder.listen(2048)
    except OSError as error:
        holder.close()
        raise ServingError(
            f"expected to listen on {host} port {port}, got {error.strerror}; choose another --listen"
        ) from None
    return holder
