"""A server that is broken, slow, frozen or says too much: nobody gets another's answer, and nothing waits for ever."""

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from efface.serving import lines
from efface.serving.errors import ServingError
from efface.serving.lines import Broken, Lines, Place, Unreachable
from efface.serving.relay import Upstream
from efface.serving.vllm import VllmServer

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as found:
        yield found


def says(*answers: bytes) -> Script:
    """One answer for each question of a connection; then silence."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await question(reader)
            writer.write(answer)
        await reader.read()

    return talk


def whole(text: bytes) -> bytes:
    return WHOLE % (len(text), text)


async def question(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return await reader.readexactly(size)


async def asked(to: Lines, body: bytes = b"{}") -> bytes:
    headers = [(b"host", b"x"), (b"content-length", b"%d" % len(body))]
    async with to.ask(b"/v1/completions", headers, body) as answer:
        return b"".join([piece async for piece in answer.pieces()])


def against(
    runner: asyncio.Runner, script: Script, act: Callable[[Lines], Awaitable[Any]], *, timeout: float = 5.0
) -> Any:
    """What ``act`` gives with `Lines` to a server that follows ``script`` on each connection."""

    async def both() -> Any:
        tasks: set[asyncio.Task[None]] = set()

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await script(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(one, "127.0.0.1", 0)
        to = Lines(Place("127.0.0.1", server.sockets[0].getsockname()[1]), most=2, timeout=timeout)
        try:
            return await act(to)
        finally:
            to.close()
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return runner.run(both())


def test_one_connection_serves_question_after_question(runner: asyncio.Runner) -> None:
    async def act(to: Lines) -> list[bytes]:
        return [await asked(to) for _ in range(3)]

    assert against(runner, says(whole(b"a"), whole(b"b"), whole(b"c")), act) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("late", [0.0, 0.02])
def test_an_answer_that_nobody_asked_for_reaches_nobody(runner: asyncio.Runner, late: float) -> None:
    """The next question on that connection would be answered by it: by what another user had asked."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await question(reader)
        writer.write(whole(b"for " + body))
        await asyncio.sleep(late)
        writer.write(whole(b"more for " + body))
        await reader.read()

    async def act(to: Lines) -> list[bytes]:
        found = []
        for name in (b"alice", b"bob", b"carol"):
            found.append(await asked(to, name))
            await asyncio.sleep(2 * late)
        return found

    assert against(runner, talk, act) == [b"for alice", b"for bob", b"for carol"]


def test_bytes_that_wait_in_the_kernel_end_a_connection_too(runner: asyncio.Runner) -> None:
    """No turn of the event loop lies between the end of one answer and the next question."""
    sent = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await question(reader)
        writer.write(whole(b"for " + body))
        await sent.wait()
        writer.write(whole(b"more"))
        await reader.read()

    async def act(to: Lines) -> bytes:
        await asked(to, b"alice")
        (line,) = to._idle
        line._transport.pause_reading()  # type: ignore[union-attr]
        sent.set()
        await asyncio.sleep(0.05)
        return await asked(to, b"bob")

    assert against(runner, talk, act) == b"for bob"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhat\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + b"ZZZ\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\n no: fold\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"a" * (1 << 17) + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_broken_at_once(runner: asyncio.Runner, answer: bytes) -> None:
    async def act(to: Lines) -> None:
        with pytest.raises(Broken):
            await asked(to)

    against(runner, says(answer), act)


def test_chunks_that_break_later_are_broken_too(runner: asyncio.Runner) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(CHUNKED)
        await asyncio.sleep(0.02)
        writer.write(b"ZZZ\r\n")
        await reader.read()

    async def act(to: Lines) -> None:
        with pytest.raises(Broken):
            await asked(to)

    against(runner, talk, act)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", CHUNKED]
)
def test_an_answer_that_is_cut_off_is_broken(runner: asyncio.Runner, answer: bytes, reset: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(answer)
        await asyncio.sleep(0.02)
        writer.transport.abort() if reset else writer.close()

    async def act(to: Lines) -> None:
        with pytest.raises(Broken):
            await asked(to)

    against(runner, talk, act)


def test_a_body_that_ends_with_the_connection(runner: asyncio.Runner) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await question(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nfor " + body)
        await writer.drain()
        writer.close()

    async def act(to: Lines) -> list[bytes]:
        return [await asked(to, name) for name in (b"a", b"b")]

    assert against(runner, talk, act) == [b"for a", b"for b"]


@pytest.mark.parametrize("said", [b"", CHUNKED])
def test_silence_is_a_timeout(runner: asyncio.Runner, said: bytes) -> None:
    async def act(to: Lines) -> None:
        with pytest.raises(TimeoutError):
            await asked(to)
        assert to._idle == []

    against(runner, says(said), act, timeout=0.05)


def test_a_server_that_does_not_read_is_a_timeout_and_leaves_nothing_open(runner: asyncio.Runner) -> None:
    """A frozen one: the kernels' buffers are full, and what is not sent never will be."""
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await gone.wait()
        writer.transport.resume_reading()
        await reader.read()

    async def act(to: Lines) -> None:
        for _ in range(3):
            made: list[Any] = []
            real = to._line
            to._line = lambda made=made, real=real: made.append(real()) or made[-1]  # type: ignore[method-assign]
            with pytest.raises(TimeoutError):
                await asked(to, b"x" * (16 << 20))
            await asyncio.sleep(0.01)
            assert made[0]._transport.is_closing()
            assert made[0]._transport.get_write_buffer_size() == 0
        gone.set()

    against(runner, talk, act, timeout=0.05)


def test_an_answer_may_come_before_the_question_is_sent(runner: asyncio.Runner) -> None:
    """`413` while a large body is on its way; that connection is not used again."""
    count = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(whole(b"too large"))
        await asyncio.Event().wait()

    async def act(to: Lines) -> list[bytes]:
        return [await asked(to, b"x" * (16 << 20)) for _ in range(2)]

    assert against(runner, talk, act) == [b"too large"] * 2
    assert count == 2


def test_who_leaves_early_closes_the_connection(runner: asyncio.Runner) -> None:
    seen = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(CHUNKED)
        await reader.read()
        seen.set()

    async def act(to: Lines) -> None:
        headers = [(b"host", b"x"), (b"content-length", b"2")]
        async with to.ask(b"/", headers, b"{}") as answer:
            assert await anext(aiter(answer.pieces())) == b"what"
        await asyncio.wait_for(seen.wait(), 5)
        assert to._idle == []

    against(runner, talk, act)


def test_a_fast_server_waits_for_a_slow_reader(runner: asyncio.Runner) -> None:
    size = 64 << 20

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
        await reader.read()

    async def act(to: Lines) -> int:
        headers = [(b"host", b"x"), (b"content-length", b"2")]
        total = 0
        async with to.ask(b"/", headers, b"{}") as answer:
            async for piece in answer.pieces():
                if not total:
                    await asyncio.sleep(0.1)
                    assert answer.line._ahead < 2 << 20
                total += len(piece)
        return total

    assert against(runner, talk, act) == size


def test_no_more_connections_than_allowed(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_CONNECT_S", 0.05)

    async def act(to: Lines) -> None:
        held = [asyncio.ensure_future(asked(to)) for _ in range(2)]
        await asyncio.sleep(0.02)
        with pytest.raises(Unreachable):
            await asked(to)
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        with pytest.raises(TimeoutError):
            await asked(to)

    against(runner, says(b""), act, timeout=0.3)


def test_nobody_listens(runner: asyncio.Runner, tmp_path: Path) -> None:
    async def act() -> None:
        for place in (Place("127.0.0.1", 1), Place(path=str(tmp_path / "absent"))):
            with pytest.raises(Unreachable):
                await asked(Lines(place, most=1, timeout=1))

    runner.run(act())


def test_a_connection_that_the_server_closes_is_not_asked(runner: asyncio.Runner) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b"for " + await question(reader)))
        await writer.drain()
        writer.close()

    async def act(to: Lines) -> list[bytes]:
        found = []
        for name in (b"a", b"b"):
            found.append(await asked(to, name))
            await asyncio.sleep(0.02)
        return found

    assert against(runner, talk, act) == [b"for a", b"for b"]


@pytest.mark.parametrize("trusted", [True, False])
def test_gateway_and_controller_trust_the_same_authorities(
    runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *made.split(), "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(whole(b"") if head.startswith(b"GET") else whole(b"hello"))
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def act() -> tuple[bytes, bool]:
        server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        to = Lines(Place("127.0.0.1", port, tls=True), most=1, timeout=5)
        try:
            said = await asked(to)
        except Unreachable:
            said = b""
        with VllmServer(f"https://127.0.0.1:{port}") as controllers:
            alive = await asyncio.to_thread(controllers.alive)
        to.close()
        server.close()
        await asyncio.sleep(0.02)
        return said, alive

    assert runner.run(act()) == ((b"hello", True) if trusted else (b"", False))


@pytest.mark.parametrize("key", ["secret\n", "sec ret", "sécret", "\x00"])
def test_a_key_that_no_header_can_hold_is_refused(key: str) -> None:
    with pytest.raises(ServingError, match="expected the server's key in printable ASCII"):
        Upstream("http://server", api_key=key)
