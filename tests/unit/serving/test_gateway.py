import gzip
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_kit import CHAT, Answer, Recorder, World, hello, listening, parsed, route, world

from efface.serving import Routes
from efface.serving.errors import ServingError
from efface.serving.gateway import Gateway, Settings
from efface.serving.keys import new_key
from efface.serving.listen import listener
from efface.serving.relay import Upstream

SERVED = "prod@7.0123456789ab"


@pytest.fixture
def up() -> Iterator[World]:
    with world() as found:
        yield found


def events(answer: Answer) -> list[Any]:
    datas = [line[6:] for line in answer.body.decode().split("\n\n") if line]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def until(true: Any) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def metric(up: World, line: str) -> float:
    text = up.ask(path="/metrics", method="GET", key=up.both).body.decode()
    found = [one for one in text.splitlines() if one.startswith(line)]
    return float(found[0].rsplit(" ", 1)[1]) if found else 0.0


def test_a_question_goes_to_the_release_and_comes_back_under_the_public_name(up: World) -> None:
    answer = up.ask(hello(temperature=0, max_tokens=3))
    assert answer.status == 200
    assert (answer.json["model"], answer.json["choices"][0]["text"]) == ("support", "one two three")
    assert answer.headers["x-efface-release"] == SERVED
    assert answer.headers["x-efface-digest"] == "sha256:" + "d" * 64
    ((method, path, headers, body),) = up.recorder.seen
    assert (method, path, headers["content-type"]) == ("POST", CHAT, "application/json")
    assert json.loads(body) == {**hello(temperature=0, max_tokens=3), "model": SERVED}
    assert up.key not in str(headers)


def test_completions_of_text_and_of_tokens(up: World) -> None:
    for prompt in ("hello", ["hello", "there"], [1, 2, 3], [[1, 2], [3]]):
        assert up.ask({"model": "support", "prompt": prompt}, path="/v1/completions").status == 200
    assert [json.loads(body)["prompt"] for *_, body in up.recorder.seen][-1] == [[1, 2], [3]]


def test_a_stream_is_passed_on_event_by_event(up: World) -> None:
    answer = up.ask(hello(stream=True))
    *some, done = events(answer)
    assert (answer.status, done) == (200, "[DONE]")
    assert [one["choices"][0]["delta"]["content"] for one in some] == ["one", " two", " three"]
    assert {one["model"] for one in some} == {"support"}
    assert answer.headers["x-efface-release"] == SERVED
    assert answer.headers["x-efface-digest"].startswith("sha256:")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_without_a_release_nothing_is_forwarded(up: World) -> None:
    assert up.ask(hello("beta"), key=up.both).status == 503
    up.routes.withdraw("prod", "the server is gone")
    for stream in (False, True):
        answer = up.ask(hello(stream=stream))
        assert (answer.status, answer.json["error"]["code"]) == (503, "not_served")
        assert answer.headers["retry-after"] == "1"
        assert "x-efface-release" not in answer.headers
    assert up.recorder.seen == []


def test_readiness_is_that_of_every_channel(up: World) -> None:
    assert up.ask(path="/healthz", method="GET", key="").status == 200
    assert up.ask(path="/readyz", method="GET", key="").status == 503
    up.routes.publish(route("next", 1))
    assert up.ask(path="/readyz", method="GET", key="").json == {"ok": True}
    up.keys.clear()
    assert up.ask(path="/readyz", method="GET", key="").status == 503


def test_a_request_keeps_its_release_to_the_end(up: World) -> None:
    """The switch is between requests; the old release is idle when its last answer is through."""
    up.recorder.hold = threading.Event()
    came: list[Answer] = []
    asking = threading.Thread(target=lambda: came.append(up.ask(hello(stream=True))))
    asking.start()
    until(lambda: up.routes.in_flight(SERVED) == 1 and up.recorder.seen)
    up.routes.publish(route("prod", 8))
    assert not up.routes.wait_idle(SERVED, 0.05)
    later = threading.Thread(target=lambda: came.append(up.ask(hello())))
    later.start()
    until(lambda: len(up.recorder.seen) == 2)
    up.recorder.hold.set()
    assert up.routes.wait_idle(SERVED, 10)
    asking.join()
    later.join()
    assert sorted(one.headers["x-efface-release"] for one in came) == [SERVED, "prod@8.0123456789ab"]
    assert [json.loads(body)["model"] for *_, body in up.recorder.seen] == [SERVED, "prod@8.0123456789ab"]


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_the_release_and_the_server(up: World, stream: bool) -> None:
    up.recorder.hold = threading.Event()
    body = json.dumps(hello(stream=stream)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {up.key}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(up.at, timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert b"200" in connection.recv(100)
        else:
            until(lambda: up.recorder.seen)
    assert up.recorder.gone.wait(10)
    assert up.routes.wait_idle(SERVED, 10)


WRONG = {
    "the base": "base",
    "another release": "prod@6.0123456789ab",
    "the public name": "support",
    "a name that begins alike": SERVED + "0",
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_another_model_is_not_shown(up: World, what: str, stream: bool) -> None:
    up.recorder.model = WRONG[what]
    answer = up.ask(hello(stream=stream))
    assert (answer.status, answer.json["error"]["code"]) == (502, "wrong_model")
    assert b"two" not in answer.body
    assert metric(up, 'efface_gateway_answers_total{channel="prod",code="wrong_model"}') == 1


SAYS: dict[str, tuple[int, bytes, str, int, str]] = {
    "that it does not know the adapter": (
        404,
        b'{"error":{"message":"no"}}',
        "application/json",
        503,
        "not_served",
    ),
    "that it is busy": (429, b"{}", "application/json", 503, "upstream_busy"),
    "that it fails": (500, b"Traceback of a prompt", "text/plain", 502, "upstream_error"),
    "who may ask": (401, b"{}", "application/json", 502, "upstream_error"),
    "another place": (307, b"", "text/plain", 502, "upstream_error"),
    "a page": (200, b"<html>", "text/html", 502, "upstream_error"),
    "no JSON": (200, b"{", "application/json", 502, "upstream_error"),
    "a list": (200, b"[]", "application/json", 502, "upstream_error"),
    "what is no number": (
        200,
        b'{"model":"prod@7.0123456789ab","choices":[{"logprobs":[NaN, -Infinity, 1e999]}]}',
        "application/json",
        502,
        "upstream_error",
    ),
    "that its files are gone": (
        400,
        b'{"error":{"message":"The lora adapter \'prod@7.0123456789ab\' at /srv/x could not be loaded"}}',
        "application/json",
        503,
        "not_served",
    ),
    "no model": (200, b"{}", "application/json", 502, "wrong_model"),
    "an error as an answer": (200, b'{"error":{"message":"x"}}', "application/json", 502, "upstream_error"),
    "what is wrong with the question": (
        400,
        b'{"error":{"message":"too  long by 3 tokens"}}',
        "application/json",
        400,
        "upstream_refused",
    ),
}


@pytest.mark.parametrize("what", SAYS)
def test_what_else_the_server_says(up: World, what: str) -> None:
    status, data, kind, expected, code = SAYS[what]
    up.recorder.says = (status, data, kind)
    answer = up.ask(hello())
    assert (answer.status, answer.json["error"]["code"]) == (expected, code)
    assert b"Traceback" not in answer.body
    if expected == 400:
        assert answer.json["error"]["message"] == "too long by 3 tokens"


@pytest.mark.parametrize("before", [0, 1])
def test_a_streamed_event_that_is_no_number_is_an_error(up: World, before: int) -> None:
    good = b'data: {"model":"prod@7.0123456789ab","choices":[]}\n\n'
    bad = b'data: {"model":"prod@7.0123456789ab","choices":[{"logprob":NaN}]}\n\n'
    up.recorder.says = (200, good * before + bad, "text/event-stream")
    answer = up.ask(hello(stream=True))
    assert answer.status == (200 if before else 502)
    last = events(answer)[-1] if before else answer.json
    assert last["error"]["code"] == "upstream_error"


def test_a_fault_of_the_gateway_is_an_answer_too_and_tells_no_payload(
    up: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises, whatever its text holds: the user gets JSON that names the release, the log the place only."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("Wilhelmina Harrington")

    monkeypatch.setattr("efface.serving.lines.Lines.ask", broken)
    answer = up.ask(hello())
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-efface-release"] == SERVED
    until(lambda: "KeyError" in caplog.text)
    assert "Wilhelmina" not in caplog.text
    assert up.routes.wait_idle(SERVED, 10)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_the_server_cannot_send_the_question_elsewhere(up: World, status: int) -> None:
    elsewhere = Recorder()
    with listening(elsewhere) as (host, port):
        up.recorder.says = (status, b"{}", "application/json")
        up.recorder.adds = [(b"location", f"http://{host}:{port}{CHAT}".encode())]
        answer = up.ask(hello())
    assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_error")
    assert (len(up.recorder.seen), elsewhere.seen) == (1, [])


def test_the_server_leaves_no_cookie_for_the_next_user(up: World) -> None:
    up.recorder.adds = [(b"set-cookie", b"who=team-a; Path=/")]
    answers = [up.ask(hello()) for _ in range(2)]
    assert [one.status for one in answers] == [200, 200]
    assert all("cookie" not in headers for _, _, headers, _ in up.recorder.seen)
    assert all("set-cookie" not in one.headers for one in answers)


def test_a_packed_answer_is_not_unpacked(up: World) -> None:
    """Nobody asked for one: a small answer must not become a large one here."""
    data = gzip.compress(json.dumps({"model": SERVED, "choices": []}).encode())
    up.recorder.says, up.recorder.adds = (200, data, "application/json"), [(b"content-encoding", b"gzip")]
    assert up.ask(hello()).json["error"]["code"] == "upstream_error"


def test_a_server_that_was_started_again_is_asked_again() -> None:
    """The connections to the one before are closed, and no question is lost on them."""
    routes, (text, key) = Routes(), new_key("team", ["prod"])
    routes.publish(route())
    holder = listener("127.0.0.1", 0)
    host, port = holder.getsockname()[:2]
    gateway = Gateway(
        Settings({"support": "prod"}), routes, Upstream(f"http://{host}:{port}"), lambda: (key,)
    )
    with listening(gateway) as at:
        for again in (holder, None, None):
            recorder = Recorder()
            with listening(recorder, again or listener(host, port)):
                up = World(routes, recorder, gateway, at, text, text, [key])
                assert [up.ask(hello()).status for _ in range(3)] == [200] * 3
            assert up.ask(hello()).status == 503


@pytest.mark.parametrize(
    "url", ["", "server:8000", "http://", "ftp://server", "http://server?a=b", "http://[", "/v1"]
)
def test_an_upstream_that_is_no_url(url: str) -> None:
    with pytest.raises(ServingError, match="expected --upstream as http"):
        Upstream(url)


def test_a_stream_that_is_cut_off_does_not_look_whole(up: World) -> None:
    up.recorder.cut = True
    answer = up.ask(hello(stream=True))
    assert answer.status == 200
    assert events(answer)[-1]["error"]["code"] == "upstream_error"


def test_a_stream_of_another_model_ends_with_an_error(up: World) -> None:
    lines = [json.dumps({"model": name, "choices": []}) for name in (SERVED, "base")]
    up.recorder.says = (200, "".join(f"data: {line}\n\n" for line in lines).encode(), "text/event-stream")
    first, last = events(up.ask(hello(stream=True)))
    assert (first["model"], last["error"]["code"]) == ("support", "wrong_model")


def test_events_in_every_spelling_of_the_standard(up: World) -> None:
    one = json.dumps({"model": SERVED, "choices": []})
    data = f": hello\r\nevent: x\r\ndata:{one[:1]}\r\ndata: {one[1:]}\r\n\r\nid: 3\ndata: [DONE]\n\n"
    up.recorder.says = (200, data.encode(), "text/event-stream; charset=utf-8")
    assert events(up.ask(hello(stream=True))) == [{"model": "support", "choices": []}, "[DONE]"]


def test_a_server_on_a_unix_socket(tmp_path: Path) -> None:
    recorder, routes, (text, key) = Recorder(), Routes(), new_key("team", ["prod"])
    routes.publish(route())
    holder = socket.socket(socket.AF_UNIX)
    holder.bind(str(tmp_path / "socket"))
    holder.listen()
    upstream = Upstream(f"unix:{tmp_path / 'socket'}")
    gateway = Gateway(Settings({"support": "prod"}), routes, upstream, lambda: (key,))
    with listening(recorder, holder), listening(gateway) as at:
        answer = World(routes, recorder, gateway, at, text, text, [key]).ask(hello())
    assert (answer.status, answer.json["model"]) == (200, "support")
    assert json.loads(recorder.seen[0][3])["model"] == route().name


def test_a_server_that_is_down_or_slow() -> None:
    with world(timeout=0.2) as up:
        up.recorder.hold = threading.Event()
        assert up.ask(hello()).status == 504
        up.recorder.hold.set()
        answer = up.ask(hello())
    assert answer.status == 200


def test_no_more_at_once_than_allowed() -> None:
    with world(at_once=2, per_key=1) as up:
        up.recorder.hold = threading.Event()
        came: list[Answer] = []
        asking = threading.Thread(target=lambda: came.append(up.ask(hello())))
        asking.start()
        until(lambda: up.recorder.seen)
        answer = up.ask(hello())
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert answer.headers["x-efface-release"] == SERVED
        up.recorder.hold.set()
        asking.join()
        assert came[0].status == 200
        until(lambda: up.routes.in_flight(SERVED) == 0)
        assert up.ask(hello()).status == 200


def test_who_sends_a_body_by_drops_is_let_go() -> None:
    with world(body_s=0.1) as up:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {up.key}\r\n"
        data = up.raw(
            f"{head}Content-Type: application/json\r\nContent-Length: 99\r\nConnection: close\r\n\r\n{{".encode()
        )
        assert parsed(data).status == 408
        assert up.recorder.seen == []


def test_models_are_those_of_the_key_that_are_served(up: World) -> None:
    def listed(key: str) -> list[str]:
        return [card["id"] for card in up.ask(path="/v1/models", method="GET", key=key).json["data"]]

    assert listed(up.key) == listed(up.both) == ["support"]
    up.routes.publish(route("next", 1))
    assert (listed(up.key), listed(up.both)) == (["support"], ["beta", "support"])
    assert up.recorder.seen == []
    assert up.ask(hello("beta")).status == 404  # as for a model that there is not
    assert up.ask(hello("beta"), key=up.both).status == 200


def test_a_key_that_is_gone_does_not_work_any_more(up: World) -> None:
    assert up.ask(hello()).status == 200
    del up.keys[0]
    assert up.ask(hello()).status == 401
    assert up.ask(hello(), key=up.both).status == 200


def test_metrics_are_for_keys_that_may_and_count(up: World) -> None:
    assert up.ask(path="/metrics", method="GET").status == 404
    assert up.ask(path="/metrics", method="GET", key="").status == 401
    up.ask(hello())
    up.ask(hello(stream=True))
    up.ask(hello("base"))
    assert metric(up, 'efface_gateway_answers_total{channel="prod",code="ok"}') == 2
    assert metric(up, 'efface_gateway_refused_total{code="model_not_found"}') == 1
    assert metric(up, 'efface_gateway_ready{channel="next"}') == 0
    assert metric(up, f'efface_gateway_release{{channel="prod",release="{SERVED}",version="7"}}') == 1
    assert metric(up, 'efface_gateway_first_byte_seconds_count{channel="prod"}') == 2
    assert metric(up, 'efface_gateway_in_flight{channel="prod"}') == 0


def test_the_log_has_no_word_of_the_question_or_the_answer(
    up: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "efface.gateway")
    secret = "Wilhelmina Harrington of Gdynia"
    up.ask({"model": "support", "messages": [{"role": "user", "content": secret}], "user": secret})
    up.ask({"model": secret, "messages": [{"role": "user", "content": secret}]})
    up.ask(secret.encode(), path=f"/v1/{secret.replace(' ', '-')}")
    until(lambda: len(caplog.records) == 3)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(line["status"], line["code"], line["release"]) for line in lines] == [
        (200, "ok", SERVED),
        (404, "model_not_found", None),
        (404, "not_found", None),
    ]
    assert lines[0]["key"] == "team-a"
    for word in ("Wilhelmina", "Harrington", "three", up.key):
        assert word not in caplog.text


def test_the_lease_is_given_back_whatever_happens(up: World) -> None:
    for says in (None, *((one[0], one[1], one[2]) for one in SAYS.values())):
        up.recorder.says = says
        for stream in (False, True):
            up.ask(hello(stream=stream))
    until(lambda: up.routes.in_flight(SERVED) == 0)
    assert up.routes.snapshot().in_flight == {}


def test_two_public_names_of_one_channel(up: World) -> None:
    up.gateway._settings = replace(up.gateway._settings, channels={"a": "prod", "b": "prod"})
    assert [up.ask(hello(name)).json["model"] for name in "ab"] == ["a", "b"]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Without TCP_NODELAY each answer takes 40 ms: asyncio sets it only where the socket names its protocol."""
    import asyncio
    import socket

    from efface.serving.listen import listener

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            at = writer.get_extra_info("socket")
            found.set_result(at.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        holder = listener("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=holder):
            _, writer = await asyncio.open_connection(*holder.getsockname())
            came = await asyncio.wait_for(found, 10)
            writer.close()
            return came

    assert asyncio.run(accepted()) == 1


def test_a_taken_port_is_said() -> None:
    from efface.serving import ServingError
    from efface.serving.listen import listener

    with listener("127.0.0.1", 0) as holder, pytest.raises(ServingError, match="choose another --listen"):
        listener("127.0.0.1", holder.getsockname()[1])
