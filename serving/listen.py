"""How the gateway listens: uvicorn with nothing that it does not need."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn

from .errors import ServingError

_LARGEST_HEAD = 16 << 10


def config(app: Any, host: str = "127.0.0.1", port: int = 0, *, at_once: int = 256) -> uvicorn.Config:
    """No websockets, no forwarded headers, no access log (paths are the user's), a parser that keeps to the RFC.

    ``at_once``: requests that the application takes; some more may wait here, the rest gets 503.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http="h11",
        ws="none",
        loop="asyncio",
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

    With its protocol named: only then asyncio sets TCP_NODELAY on what it accepts, without which every answer waits
    40 ms for an acknowledgement between head and body.
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
