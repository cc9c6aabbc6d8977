"""Clients that take their time: none of them holds a connection, a release or the server for ever."""

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from gateway_kit import CHAT, World, hello, world

from efface.serving.listen import Patient

SERVED = "prod@7.0123456789ab"


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(Patient, "HEAD_S", 0.4)
    monkeypatch.setattr(Patient, "STALL_S", 0.4)
    with world() as found:
        yield found


def closed(connection: socket.socket) -> bool:
    """Whether the gateway ends the connection within some seconds; what it sends before is of no interest."""
    connection.settimeout(10)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def head(up: World, length: int) -> bytes:
    lines = (
        f"POST {CHAT} HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {up.key}",
        f"Content-Length: {length}",
    )
    return "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_head_that_never_ends_is_not_waited_for(up: World, sent: bytes) -> None:
    with socket.create_connection(up.at) as connection:
        connection.sendall(sent)
        assert closed(connection)


def test_a_second_head_that_trickles_in_is_not_waited_for_either(up: World) -> None:
    body = json.dumps(hello()).encode()
    with socket.create_connection(up.at) as connection:
        connection.sendall(head(up, len(body)) + body)
        assert b"200" in connection.recv(100)
        assert trickled(connection, b"POST ")


def test_a_body_that_nobody_wants_is_not_read_for_ever(up: World) -> None:
    """Answered 401 by its head; the megabytes that it announced may not trickle in for days."""
    with socket.create_connection(up.at) as connection:
        connection.sendall(head(up, 1 << 19).replace(b"Bearer ", b"Bearer x"))
        assert b"401" in connection.recv(100)
        assert trickled(connection, b"x" * 200)


def trickled(connection: socket.socket, data: bytes) -> bool:
    """Whether a byte each 50 ms ends in a closed connection."""
    end = time.monotonic() + 10
    try:
        for at in range(len(data) * 40):
            connection.sendall(data[at % len(data) :][:1])
            time.sleep(0.05)
            if time.monotonic() > end:
                return False
    except OSError:
        return True
    return closed(connection)


def test_a_request_that_takes_long_is_not_cut(up: World) -> None:
    """The limits are for heads and for who does not read; a server may think for as long as --timeout."""
    up.recorder.hold = threading.Event()
    threading.Timer(1.2, up.recorder.hold.set).start()
    answer = up.ask(hello(stream=True))
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_who_does_not_read_frees_the_release_and_the_server(up: World) -> None:
    """Its stream fills every buffer on the way; without an end the old release could never be unloaded."""
    up.recorder.words = ["x" * (1 << 16)] * 1000
    body = json.dumps(hello(stream=True)).encode()
    with socket.create_connection(up.at) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(head(up, len(body)) + body)
        while up.routes.in_flight(SERVED) == 0:
            time.sleep(0.005)
        assert up.routes.wait_idle(SERVED, 15)
