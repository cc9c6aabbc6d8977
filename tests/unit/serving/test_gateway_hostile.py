"""Requests that try to reach the base, another adapter or the server itself: none is passed on, whatever the server is.

Behind the gateway is a recorder that answers anything. What it saw is what leaked.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_kit import CHAT, LEAK, World, hello, world
from hostile_kit import BODIES, HEADERS, NAMES, PATHS, SERVED


@pytest.fixture(scope="module")
def up() -> Iterator[World]:
    with world(largest=1 << 16) as found:
        yield found


@pytest.mark.parametrize("what", NAMES)
def test_only_public_names_are_models(up: World, what: str) -> None:
    refused(up, up.ask(hello(NAMES[what])), 404)
    body = {"model": NAMES[what], "prompt": "hello", "stream": True}
    refused(up, up.ask(body, path="/v1/completions"), 404)


@pytest.mark.parametrize("what", BODIES)
def test_bodies_that_two_parsers_could_read_differently(up: World, what: str) -> None:
    body, status = BODIES[what]
    refused(up, up.ask(body), status)


@pytest.mark.parametrize("what", PATHS)
def test_other_endpoints_and_other_spellings(up: World, what: str) -> None:
    method, path = PATHS[what]
    for key in (up.key, up.both, ""):
        refused(up, up.ask(hello(), path=path, method=method, key=key), 400, 401, 404, 405)


@pytest.mark.parametrize("what", HEADERS)
def test_heads_that_are_not_plain(up: World, what: str) -> None:
    headers, status = HEADERS[what]
    filled = [(name, value.replace("KEY", up.key)) for name, value in headers]
    refused(up, up.ask(hello(), headers=filled), *status)


TRICKS = [
    ("X-HTTP-Method-Override", "DELETE"),
    ("X-Original-URL", "/v1/load_lora_adapter"),
    ("X-Rewrite-URL", "/adapters"),
    ("X-Forwarded-Path", "/collective_rpc"),
    ("X-Forwarded-Host", "evil"),
    ("X-Forwarded-For", "127.0.0.1"),
    ("Forwarded", "for=127.0.0.1;host=evil"),
    ("X-Model", "base"),
    ("X-Efface-Admin", "guess"),
    ("X-Efface-Release", "base"),
    ("X-Request-Id", "../../evil"),
    ("Accept-Encoding", "gzip"),
    ("Cookie", "a=b"),
    ("X-Data-Parallel-Rank", "1"),
    ("X-Session-ID", "a"),
    ("Traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
    ("Upgrade", "websocket"),
    ("Upgrade", "h2c"),
    ("Connection", "X-Efface-Admin"),
    ("Range", "bytes=0-1"),
    ("Expect", "100-continue"),
]


@pytest.mark.parametrize("trick", TRICKS, ids=[f"{name}: {value[:12]}" for name, value in TRICKS])
def test_headers_of_the_user_do_not_travel(up: World, trick: tuple[str, str]) -> None:
    up.recorder.seen.clear()
    answer = up.ask(hello(), headers=[trick, ("Host", "evil")])
    assert (answer.status, answer.headers["x-efface-release"]) == (200, SERVED)
    ((method, path, headers, body),) = up.recorder.seen
    assert (method, path, json.loads(body)["model"]) == ("POST", CHAT, SERVED)
    assert set(headers) == {
        *("host", "accept", "accept-encoding", "content-length", "content-type", "user-agent"),
    }
    assert headers["host"].startswith("127.0.0.1:")
    assert headers["accept-encoding"] == "identity"


def test_a_websocket_is_no_way_in(up: World) -> None:
    up.recorder.seen.clear()
    head = (
        f"GET {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {up.key}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    assert up.raw(head.encode(), end=True).startswith(b"HTTP/1.1 405")
    assert up.recorder.seen == []


def test_a_request_behind_another_is_a_request_of_its_own(up: World) -> None:
    """Smuggling: what comes after a body is read as the next request, and refused as such."""
    up.recorder.seen.clear()
    body = json.dumps(hello()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {up.key}\r\nContent-Type: application/json\r\n"
    second = (
        b"POST /v1/load_lora_adapter HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    came = up.raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + second)
    assert [path for _, path, _, _ in up.recorder.seen] == [CHAT]
    assert b"HTTP/1.1 404" in came or came.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/0.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 999,
    ],
)
def test_what_is_no_request(up: World, data: bytes) -> None:
    up.recorder.seen.clear()
    came = up.raw(data, end=True)
    assert not came or came.split(b" ")[1][:1] == b"4"
    assert up.recorder.seen == []


def refused(up: World, answer: Any, *status: int) -> None:
    """With one of these statuses, nothing of the base in it, and nothing at all at the server."""
    assert answer.status in status
    assert LEAK.encode() not in answer.body
    seen, up.recorder.seen[:] = list(up.recorder.seen), []
    assert seen == []


def test_the_recorder_would_have_answered(up: World) -> None:
    """So that the tests above can fail: asked without the gateway, the base answers, and loading does."""
    import httpx

    place = up.gateway._upstream._lines._place
    at = f"http://{place.host}:{place.port}"
    for path in (CHAT, "/v1/load_lora_adapter"):
        assert LEAK in httpx.post(at + path, json={"model": None}).text
    assert len(up.recorder.seen) == 2
    up.recorder.seen.clear()
