"""`efface serve gateway` as the process that it is, in front of a server that answers anything."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cli_kit import checked, efface
from gateway_kit import Recorder, hello, listening, route
from lora_server_kit import FakeVllm, release, running
from vllm_kit import free_port

from efface.registry import Registry
from efface.serving import Routes
from efface.serving.feeds import controlling, following
from efface.serving.state import ChannelState, write_state


@contextmanager
def gateway(*arguments: str, keys: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    port = free_port()
    command = [sys.executable, "-m", "efface.cli", "serve", "gateway", "--keys", str(keys)]
    with keys.with_name("log").open("wb") as log:
        process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}", *arguments], stderr=log)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
        try:
            yield client, process
        finally:
            process.terminate()
            process.wait(20)


def status(client: httpx.Client, process: subprocess.Popen[bytes], path: str = "/readyz") -> int:
    """Of a gateway that may be starting still."""
    end = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < end:
        try:
            return client.get(path).status_code
        except httpx.TransportError:
            time.sleep(0.05)
    return 0


def until(status_is: int, client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while status(client, process) != status_is:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    file = tmp_path / "keys.json"
    command = [sys.executable, "-m", "efface.cli", "serve", "key", "team-a", "--keys", str(file)]
    done = subprocess.run([*command, "--channel", "prod"], capture_output=True, text=True, check=True)
    return file, done.stdout.strip()


def test_keys_are_made_once_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = checked(None, "serve", "key", "ops", "--keys", file, "--channel", "prod", "--metrics")
    assert (made["id"], made["metrics"]) == ("ops", True)
    assert made["key"] not in file.read_text()
    assert efface("serve", "key", "ops", "--keys", file, "--channel", "next").code == 2
    assert efface("serve", "revoke", "nobody", "--keys", file).code == 2
    assert checked(None, "serve", "revoke", "ops", "--keys", file) == {"id": "ops", "left": []}


def test_a_gateway_follows_the_state_file(tmp_path: Path, keys: tuple[Path, str]) -> None:
    file, key = keys
    with listening(Recorder()) as (host, port):
        upstream = ("--upstream", f"http://{host}:{port}", "--channel", "prod=support")
        with gateway(*upstream, "--state", str(tmp_path / "state"), keys=file) as (client, process):
            client.headers["authorization"] = f"Bearer {key}"
            assert status(client, process) == 503
            assert client.post("/v1/chat/completions", json=hello()).status_code == 503
            write_state(tmp_path / "state", ChannelState("prod", route()))
            until(200, client, process)
            answer = client.post("/v1/chat/completions", json=hello())
            assert (answer.status_code, answer.json()["model"]) == (200, "support")
            assert answer.headers["x-efface-release"] == route().name
            write_state(tmp_path / "state", ChannelState("prod", None, reason="withdrawn"))
            until(503, client, process)
            assert client.post("/v1/chat/completions", json=hello()).status_code == 503
        assert process.returncode in (0, -15)
    lines = [json.loads(line) for line in file.with_name("log").read_text().splitlines() if line[0] == "{"]
    asked = [line for line in lines if line["path"] == "/v1/chat/completions"]
    assert [line["status"] for line in asked] == [503, 200, 503]
    assert key not in str(lines)


def test_a_gateway_with_its_own_controller_swaps_and_serves(tmp_path: Path, keys: tuple[Path, str]) -> None:
    """From the registry to the answer's header; the server's API is that of vLLM, without a model."""
    file, key = keys
    fake = FakeVllm()
    with Registry.open(tmp_path / "registry", create=True) as reg, running(fake) as url:
        first = release(reg, tmp_path, 1)
        options = ("--upstream", url, "--channel", "prod=support", "--registry", str(tmp_path / "registry"))
        with gateway(*options, "--grace", "0", keys=file) as (client, process):
            assert status(client, process, "/healthz") == 200
            until(200, client, process)
            (name,) = fake.names
            assert name.startswith(f"prod@{first.version}.")
            client.headers["authorization"] = f"Bearer {key}"
            listed = client.get("/v1/models").json()["data"]
            assert [card["id"] for card in listed] == ["support"]
            second = release(reg, tmp_path, 2)
            end = time.monotonic() + 30
            while (
                not any(one.startswith(f"prod@{second.version}.") for one in fake.names)
                or len(fake.names) > 1
            ):
                assert time.monotonic() < end
                time.sleep(0.05)
            until(200, client, process)


BAD = {
    "a key file that there is not": (["--keys", "none.json"], "expected a key file"),
    "no port": (["--listen", "localhost"], "expected --listen as HOST:PORT"),
    "two models of one name": (["--channel", "next=support"], "with a MODEL of its own"),
    "a model that is a path": (["--channel", "next=../x"], "with a MODEL of its own"),
    "another scheme": (["--upstream", "ftp://x"], "expected --upstream as http://HOST:PORT"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_before_anything_listens(
    keys: tuple[Path, str], tmp_path: Path, what: str
) -> None:
    more, message = BAD[what]
    start = ["serve", "gateway", "--upstream", "http://127.0.0.1:1", "--channel", "prod=support"]
    ran = efface(*start, "--keys", str(keys[0]), "--state", str(tmp_path), *more)
    assert ran.code == 2
    assert message in " ".join(ran.err.replace("│", " ").split())


def test_a_feed_that_ends_takes_its_routes_along(tmp_path: Path) -> None:
    routes, said = Routes(), list[str]()
    write_state(tmp_path, ChannelState("prod", route()))
    with following(tmp_path, ["prod"], routes, said.append):
        assert routes.current("prod") == route()
    assert "prod" in routes.snapshot().down

    class Failing:
        def watch(self, stop: threading.Event) -> None:
            routes.publish(route())
            raise RuntimeError("out of luck")

    @contextmanager
    def opened(_: str) -> Iterator[Failing]:
        yield Failing()

    with controlling(opened, ["prod"], routes, said.append):  # type: ignore[arg-type]
        end = time.monotonic() + 10
        while "prod" not in routes.snapshot().down and time.monotonic() < end:
            time.sleep(0.005)
    assert routes.snapshot().routes == {}
    assert "out of luck" in said[-1]


def test_a_controller_that_cannot_start_is_said_at_once(tmp_path: Path) -> None:
    from efface.serving import ServingError

    @contextmanager
    def opened(_: str) -> Iterator[None]:
        raise ServingError("expected to be the only controller")
        yield

    with pytest.raises(ServingError, match="only controller"), controlling(opened, ["prod"], Routes(), print):  # type: ignore[arg-type]
        pass
