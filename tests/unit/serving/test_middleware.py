"""The middleware in front of an application that would answer anything: what reaches it."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from efface.serving import Route, ServingError
from efface.serving.inside import Inside, of
from efface.serving.middleware import LoraOnly
from efface.serving.state import ChannelState, write_state

NAME = f"prod@7.{'ab' * 6}"
TOKEN = "a long secret"


class App:
    """Answers 200 to everything and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes, dict[bytes, bytes]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.asked.append((scope["method"], scope["path"], message["body"], dict(scope["headers"])))
        cards = [("base", None), (NAME, "base"), ("other@1", "base"), ("prod@6", "base")]
        data = {"data": [{"id": name, "root": "/a/path", "parent": parent} for name, parent in cards]}
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"x-efface-release", b"a lie")]}
        )
        await send({"type": "http.response.body", "body": json.dumps(data).encode()})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    route = Route("prod", 7, NAME, "sha256:r", "sha256:a", "2026-03-01T12:00:00Z")
    write_state(tmp_path, ChannelState("prod", route, route))
    return Inside(frozenset({"prod", "idle"}), root=tmp_path, admin_token=TOKEN)


def ask(
    app: App,
    inside: Inside,
    body: Any = None,
    path: str = "/v1/completions",
    method: str = "POST",
    **more: Any,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request through the middleware, its body in pieces."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    pieces = [data[:3], data[3:]]
    sent: list[Any] = []

    async def receive() -> Any:
        piece = pieces.pop(0) if pieces else b""
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-length", str(len(data)).encode()), *more.pop("headers", [])]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, **more}
    asyncio.run(LoraOnly(app, inside)(scope, receive, send))
    body_out = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body_out


def test_a_channel_becomes_its_active_adapter(app: App, inside: Inside) -> None:
    status, headers, _ = ask(app, inside, {"model": "prod", "prompt": "x", "stream": True})
    (method, path, body, sent) = app.asked[0]
    assert (status, method, path) == (200, "POST", "/v1/completions")
    assert json.loads(body) == {"model": NAME, "prompt": "x", "stream": True}
    assert sent[b"content-length"] == str(len(body)).encode()
    assert headers[b"x-efface-release"] == NAME.encode()


def switched(root: Path, version: int) -> str:
    """A controller that routes to this version from now on; its name."""
    name = f"prod@{version}.{'ab' * 6}"
    route = Route("prod", version, name, "sha256:r", "sha256:a", "2026-03-01T12:00:00Z")
    write_state(root, ChannelState("prod", route, route))
    return name


def test_what_was_routed_to_passes_a_little_longer(app: App, inside: Inside, tmp_path: Path) -> None:
    """For requests under way: a gateway leased it before the switch. Not for good, or it could never be unloaded."""
    assert ask(app, inside, {"model": NAME, "prompt": "x"})[0] == 200
    new = switched(tmp_path, 8)
    for name in (new, NAME, new):
        assert ask(app, inside, {"model": name, "prompt": "x"})[0] == 200, name
    inside.under_way = 0
    assert ask(app, inside, {"model": NAME, "prompt": "x"})[0] == 404
    assert ask(app, inside, {"model": new, "prompt": "x"})[0] == 200


def test_the_controllers_own_calls_are_enough_to_know_what_was_routed_to(
    app: App, inside: Inside, tmp_path: Path
) -> None:
    ask(app, inside, path="/v1/models", method="GET", headers=[(b"x-efface-admin", TOKEN.encode())])
    switched(tmp_path, 8)
    assert ask(app, inside, {"model": NAME, "prompt": "x"})[0] == 200


def test_what_is_loaded_but_not_routed_to_does_not_pass(app: App, inside: Inside) -> None:
    """Not yet probed, rejected, or of last year: the server has it, and nobody may ask it."""
    for name in ("prod@8.abababababab", "prod@6", "prod@7"):
        assert ask(app, inside, {"model": name, "prompt": "x"})[0] == 404, name
    assert app.asked == []


def test_what_is_withdrawn_passes_no_longer(app: App, inside: Inside, tmp_path: Path) -> None:
    assert ask(app, inside, {"model": NAME, "prompt": "x"})[0] == 200
    write_state(tmp_path, ChannelState("prod", None, None, "why"))
    inside.fresh = 0
    assert ask(app, inside, {"model": NAME, "prompt": "x"})[0] == 404
    assert ask(app, inside, {"model": "prod", "prompt": "x"})[0] == 404


def test_without_a_controllers_root_every_version_of_a_channel_passes(app: App) -> None:
    """Nobody here knows which were routed to; the base and other channels do not pass either way."""
    knowing_nothing = Inside(frozenset({"prod"}))
    assert ask(app, knowing_nothing, {"model": "prod@6", "prompt": "x"})[0] == 200
    assert ask(app, knowing_nothing, {"model": "prod", "prompt": "x"})[0] == 404


def test_a_body_of_many_small_pieces_is_read_in_linear_time(app: App, inside: Inside) -> None:
    """300,000 pieces: with a sum over all of them at each one it would take an hour."""
    left, sent = [300_000], list[Any]()

    async def receive() -> Any:
        left[0] -= 1
        return {"type": "http.request", "body": b" ", "more_body": left[0] > 0}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(asyncio.wait_for(LoraOnly(app, inside)(scope, receive, send), 60))
    assert (sent[0]["status"], app.asked) == (400, [])


@pytest.mark.parametrize(
    "model", ["base", None, "", ["prod"], {"prod": 1}, "idle", "other@1", "PROD", "../prod", "prod@0"]
)
def test_the_base_is_never_reached(app: App, inside: Inside, model: Any) -> None:
    status, _, said = ask(app, inside, {"model": model, "prompt": "a secret prompt"})
    assert (status, app.asked) == (404, [])
    assert b"secret" not in said


def test_nothing_is_served_without_a_route_or_without_channels(
    app: App, inside: Inside, tmp_path: Path
) -> None:
    write_state(tmp_path, ChannelState("prod", None, None, "why"))
    assert ask(app, inside, {"model": "prod", "prompt": "x"})[0] == 404
    for model in ("prod", NAME, "base"):
        assert ask(app, of({}), {"model": model, "prompt": "x"})[0] == 404
    assert app.asked == []


def test_the_list_of_models_has_no_base_and_no_paths(app: App, inside: Inside) -> None:
    status, _, said = ask(app, inside, path="/v1/models", method="GET")
    assert status == 200
    assert [card["id"] for card in json.loads(said)["data"]] == ["prod", NAME]
    assert b"path" not in said
    assert b"base" not in said


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/collective_rpc", "/sleep", "/docs"]
)
def test_admin_endpoints_need_the_token(app: App, inside: Inside, path: str) -> None:
    good = (b"x-efface-admin", TOKEN.encode())
    for headers in (
        [],
        [(b"x-efface-admin", b"")],
        [(b"x-efface-admin", TOKEN.encode() + b"x")],
        [good, good],
    ):
        assert ask(app, inside, {"lora_name": "x"}, path, headers=headers)[0] == 404
    assert app.asked == []
    assert ask(app, inside, {"lora_name": "x"}, path, headers=[good])[0] == 200
    nobody = Inside(inside.channels, inside.root)
    for token in (b"", b"None"):
        assert ask(app, nobody, {"lora_name": "x"}, path, headers=[(b"x-efface-admin", token)])[0] == 404


def test_a_body_without_end_is_cut(app: App, inside: Inside) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * (1 << 20), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(LoraOnly(app, inside)(scope, receive, send))
    assert (sent[0]["status"], app.asked) == (413, [])


def test_a_websocket_is_closed(app: App, inside: Inside) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(
        LoraOnly(app, inside)({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    )
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert app.asked == []


def test_health_passes(app: App, inside: Inside) -> None:
    assert ask(app, inside, path="/health", method="GET")[0] == 200


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    found = of({"EFFACE_CHANNELS": " prod, staging ,", "EFFACE_SERVING_ROOT": str(tmp_path)})
    assert (found.channels, found.root, found.admin_token) == ({"prod", "staging"}, tmp_path, None)
    with pytest.raises(ServingError):
        of({"EFFACE_CHANNELS": "../x"})
    assert TOKEN not in repr(of({"EFFACE_ADMIN_TOKEN": TOKEN}))


def test_a_server_without_the_plugin_is_told_of(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import efface.serving.vllm_plugin  # as vLLM does, by its entry point

    LoraOnly(app)
    assert caplog.text == ""
    monkeypatch.delitem(sys.modules, efface.serving.vllm_plugin.__name__)
    LoraOnly(app)
    assert "expected its plugin in this vLLM, got none" in caplog.text
