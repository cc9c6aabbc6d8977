"""Requests that try to reach the base, another adapter or the server itself: none is passed on, whatever the server is.

Behind the gateway is a recorder that answers anything. What it saw is what leaked.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_kit import CHAT, LEAK, World, hello, world

SERVED = "prod@7.0123456789ab"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def up() -> Iterator[World]:
    with world(largest=1 << 16) as found:
        yield found


NAMES: dict[str, Any] = {
    "the base": "base",
    "the base by its folder": "/models/smollm2",
    "the adapter's own name": SERVED,
    "an old release": "prod@6.0123456789ab",
    "the channel": "prod",
    "a public name of another channel": "beta",
    "a path": "../adapters/ad3",
    "a path behind the name": "support/../base",
    "an absolute path": "/etc/passwd",
    "a URL": "http://evil/adapter",
    "another case": "Support",
    "upper case": "SUPPORT",
    "a space before": " support",
    "a space behind": "support ",
    "a line end": "support\n",
    "a NUL": "support\x00",
    "a NUL and the base": "support\x00base",
    "a Cyrillic letter": "suppоrt",
    "full width": "ｓｕｐｐｏｒｔ",
    "a joiner inside": "sup\u200dport",
    "a combining mark": "suppo\u0301rt",
    "a right-to-left mark": "\u202esupport",
    "a surrogate": "support\ud800",
    "an escape": "%73upport",
    "SGLang's way": "support:base",
    "empty": "",
    "null": None,
    "true": True,
    "zero": 0,
    "an array": ["support"],
    "an array of two": ["support", "base"],
    "an object": {"id": "support"},
    "very long": "support" * 5000,
}


@pytest.mark.parametrize("what", NAMES)
def test_only_public_names_are_models(up: World, what: str) -> None:
    refused(up, up.ask(hello(NAMES[what])), 404)
    body = {"model": NAMES[what], "prompt": "hello", "stream": True}
    refused(up, up.ask(body, path="/v1/completions"), 404)


BODIES: dict[str, tuple[bytes, int]] = {
    "no model": (json.dumps({"messages": MESSAGES}).encode(), 404),
    "two models, the base last": (b'{"model":"support","model":"base","messages":[]}', 400),
    "two models, the base first": (b'{"model":"base","model":"support","messages":[]}', 400),
    "two models, one escaped": (b'{"model":"support","mod\\u0065l":"base","messages":[]}', 400),
    "a name twice deep inside": (
        b'{"model":"support","messages":[{"role":"user","role":"x","content":""}]}',
        400,
    ),
    "another case beside it": (json.dumps({**hello(), "Model": "base"}).encode(), 400),
    "NaN": (b'{"model":"support","temperature":NaN,"messages":[]}', 400),
    "infinity by exponent": (b'{"model":"support","temperature":1e999,"messages":[]}', 400),
    "an array": (json.dumps([hello()]).encode(), 400),
    "a batch of bodies": (json.dumps(hello()).encode() + b"\n" + json.dumps(hello("base")).encode(), 400),
    "trailing bytes": (json.dumps(hello()).encode() + b"}", 400),
    "nothing": (b"", 400),
    "a string": (b'"support"', 400),
    "Latin-1": ('{"model":"support","messages":[{"role":"user","content":"é"}]}'.encode("latin-1"), 400),
    "UTF-16": (json.dumps(hello()).encode("utf-16"), 400),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + json.dumps(hello()).encode(), 400),
    "overlong UTF-8": (b'{"model":"support","messages":"\xc0\xae\xc0\xae"}', 400),
    "a comment": (b'{"model":"support"/*"*/,"messages":[]}', 400),
    "single quotes": (b"{'model':'support','messages':[]}", 400),
    "nested too deep": (b'{"model":"support","messages":' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    "nested 40 deep": (b'{"model":"support","tools":' + b"[" * 40 + b"]" * 40 + b',"messages":[]}', 400),
    "a number of 5000 digits": (b'{"model":"support","seed":' + b"9" * 5000 + b',"messages":[]}', 400),
    "too large": (json.dumps(hello(user="x" * (1 << 16))).encode(), 413),
    "SGLang's field": (json.dumps(hello(lora_path="base")).encode(), 400),
    "LoRAX's field": (json.dumps(hello(adapter_id="base")).encode(), 400),
    "vLLM's cache transfer": (json.dumps(hello(kv_transfer_params={"remote": "evil"})).encode(), 400),
    "vLLM's own arguments": (json.dumps(hello(vllm_xargs={"lora": None})).encode(), 400),
    "a template": (json.dumps(hello(chat_template="{{ 7*7 }}")).encode(), 400),
    "an image to fetch": (
        json.dumps(
            {
                "model": "support",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/admin"}}],
                    }
                ],
            }
        ).encode(),
        400,
    ),
    "a file to read": (
        json.dumps(
            {"model": "support", "messages": [{"role": "user", "content": [{"type": "file", "text": "/x"}]}]}
        ).encode(),
        400,
    ),
    "a role that there is not": (
        json.dumps({"model": "support", "messages": [{"role": "root"}]}).encode(),
        400,
    ),
    "a prompt for chat": (json.dumps({"model": "support", "prompt": "hello"}).encode(), 400),
    "both": (json.dumps(hello(prompt="hello")).encode(), 400),
    "a million answers": (json.dumps(hello(n=1_000_000)).encode(), 400),
    "streaming by text": (json.dumps(hello(stream="true")).encode(), 400),
}


@pytest.mark.parametrize("what", BODIES)
def test_bodies_that_two_parsers_could_read_differently(up: World, what: str) -> None:
    body, status = BODIES[what]
    refused(up, up.ask(body), status)


PATHS = {
    "loading": ("POST", "/v1/load_lora_adapter"),
    "unloading": ("POST", "/v1/unload_lora_adapter"),
    "SageMaker's loading": ("POST", "/adapters"),
    "SageMaker's unloading": ("DELETE", "/adapters/prod"),
    "SageMaker's asking": ("POST", "/invocations"),
    "RPC": ("POST", "/collective_rpc"),
    "sleep": ("POST", "/sleep?level=2"),
    "wake up": ("POST", "/wake_up"),
    "the cache": ("POST", "/reset_prefix_cache"),
    "server info": ("GET", "/server_info"),
    "weights": ("POST", "/update_weights"),
    "weight checker": ("POST", "/weight_checker"),
    "pause": ("POST", "/pause?mode=abort"),
    "responses": ("POST", "/v1/responses"),
    "messages": ("POST", "/v1/messages"),
    "embeddings": ("POST", "/v1/embeddings"),
    "pooling": ("POST", "/pooling"),
    "scores": ("POST", "/v1/score"),
    "tokenizer": ("POST", "/tokenize"),
    "generate": ("POST", "/generate"),
    "batch": ("POST", "/v1/chat/completions/batch"),
    "transcriptions": ("POST", "/v1/audio/transcriptions"),
    "the server's health": ("GET", "/health"),
    "the server's version": ("GET", "/version"),
    "documentation": ("GET", "/docs"),
    "the schema": ("GET", "/openapi.json"),
    "one model": ("GET", "/v1/models/base"),
    "two slashes": ("POST", "//v1/chat/completions"),
    "slashes inside": ("POST", "/v1//chat/completions"),
    "a dot": ("POST", "/v1/./chat/completions"),
    "two dots": ("POST", "/v1/models/../chat/completions"),
    "an escaped dot": ("POST", "/v1/%2e/chat/completions"),
    "an escaped slash": ("POST", "/v1%2fchat/completions"),
    "an escaped letter": ("POST", "/v1/chat/completion%73"),
    "twice escaped": ("POST", "/v1/chat/completion%2573"),
    "a slash behind": ("POST", "/v1/chat/completions/"),
    "a semicolon": ("POST", "/v1/chat/completions;/../../adapters"),
    "a NUL behind": ("POST", "/v1/chat/completions%00"),
    "another case": ("POST", "/V1/Chat/Completions"),
    "a query": ("POST", "/v1/chat/completions?model=base"),
    "an absolute URL": ("POST", "http://127.0.0.1/v1/chat/completions"),
    "another host in it": ("POST", "http://evil/v1/load_lora_adapter"),
    "GET": ("GET", CHAT),
    "PUT": ("PUT", CHAT),
    "HEAD": ("HEAD", CHAT),
    "OPTIONS": ("OPTIONS", CHAT),
    "TRACE": ("TRACE", CHAT),
    "CONNECT": ("CONNECT", "127.0.0.1:8000"),
    "a method of its own": ("LOAD", CHAT),
    "the star": ("OPTIONS", "*"),
}


@pytest.mark.parametrize("what", PATHS)
def test_other_endpoints_and_other_spellings(up: World, what: str) -> None:
    method, path = PATHS[what]
    for key in (up.key, up.both, ""):
        refused(up, up.ask(hello(), path=path, method=method, key=key), 400, 401, 404, 405)


HEADERS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[int, ...]]] = {
    "compressed": ((("Content-Encoding", "gzip"),), (415,)),
    "compressed by nothing": ((("Content-Encoding", "identity"),), (415,)),
    "a form": ((("Content-Type", "application/x-www-form-urlencoded"),), (415,)),
    "several parts": ((("Content-Type", "multipart/form-data; boundary=x"),), (415,)),
    "another character set": ((("Content-Type", "application/json; charset=utf-16"),), (415,)),
    "no type": ((("Content-Type", ""),), (415,)),
    "two types": ((("Content-Type", "application/json"), ("Content-Type", "text/plain")), (400,)),
    "no key": ((("Authorization", ""),), (401,)),
    "another key": ((("Authorization", "Bearer efk_" + "A" * 43),), (401,)),
    "another scheme": ((("Authorization", "Basic YTpi"),), (401,)),
    "a key in another header": ((("Authorization", ""), ("X-Api-Key", "KEY")), (401,)),
    "two keys": ((("Authorization", "Bearer KEY"), ("Authorization", "Bearer KEY")), (400,)),
    "length and chunks": ((("Content-Length", "2"), ("Transfer-Encoding", "chunked")), (400,)),
    "two lengths": ((("Content-Length", "2"), ("Content-Length", "90")), (400,)),
    "a length with a sign": ((("Content-Length", "+90"),), (400,)),
    "a length that lies": ((("Content-Length", "99999999999999"),), (413,)),
    "chunks of another coding": ((("Transfer-Encoding", "gzip, chunked"),), (400, 501)),
    "chunks spelt otherwise": ((("Transfer-Encoding", "xchunked"),), (400, 501)),
    "two hosts": ((("Host", "a"), ("Host", "b")), (400,)),
    "a head without end": ((("X-Long", "a" * 40_000),), (400, 431)),
}


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
        *("host", "accept", "accept-encoding", "connection", "content-length", "content-type", "user-agent"),
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

    at = up.gateway._upstream._http.base_url
    for path in (CHAT, "/v1/load_lora_adapter"):
        assert LEAK in httpx.post(at.join(path), json={"model": None}).text
    assert len(up.recorder.seen) == 2
    up.recorder.seen.clear()
