"""A registry that is damaged, and channels named like the controller's own files: nothing is followed in silence."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway_kit import CHAT, World, hello, listening
from lora_server_kit import FakeVllm, release, running

from efface.registry import BrokenRegistry, Registry, adapter_folder, get_adapter
from efface.serving import Routes, ServingError
from efface.serving.controller import LASTING, Controller, Options
from efface.serving.feeds import controlling, following
from efface.serving.gateway import Gateway, Settings
from efface.serving.inside import of
from efface.serving.keys import new_key
from efface.serving.relay import Upstream
from efface.serving.source import Source
from efface.serving.state import read_state
from efface.serving.vllm import VllmServer


def control(reg: Registry, server: Any, root: Path, **more: Any) -> Controller:
    options = Options(root, grace=0, interval=0.02, broken_for=0.3)
    return Controller(Source(reg, "prod"), server, options, **more)


def damage(reg: Registry, old: str = "release", new: str = "release_away") -> None:
    """The table of the releases is gone: what is stored is not what was written."""
    with closing(sqlite3.connect(next(reg.root.glob("*.db")))) as db, db:
        db.execute(f"ALTER TABLE {old} RENAME TO {new}")


def repair(reg: Registry) -> None:
    damage(reg, "release_away", "release")


def test_a_registry_that_stays_damaged_ends_the_controller_and_changes_nothing(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    """The command exits 3 then (`efface.cli.failure`), so that whoever runs it hears of it."""
    said: list[str] = []
    release(reg, tmp_path, 1)
    controller = control(reg, server, tmp_path / "root", told=said.append)
    assert controller.settle(5)
    before, names = controller.state, dict(fake.names)
    damage(reg)
    began = time.monotonic()
    stop = threading.Event()
    late = threading.Timer(20, stop.set)
    late.start()
    with pytest.raises(BrokenRegistry):
        controller.watch(stop)
    late.cancel()
    assert 0.3 <= time.monotonic() - began < 5
    assert read_state(tmp_path / "root", "prod") == before
    assert fake.names == names
    assert len([line for line in said if "sound database" in line]) == 1


def test_a_registry_that_is_damaged_for_a_moment_is_followed_again(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller, stop = control(reg, server, tmp_path / "root"), threading.Event()
    release(reg, tmp_path, 1)
    damage(reg)
    thread = threading.Thread(target=controller.watch, args=(stop,))
    thread.start()
    try:
        stop.wait(0.1)
        repair(reg)
        for _ in range(500):
            if fake.names:
                break
            stop.wait(0.01)
        assert [name.partition(".")[0] for name in fake.names] == ["prod@1"]
    finally:
        stop.set()
        thread.join(5)


def test_a_release_whose_files_are_damaged_is_rejected_and_the_one_before_stays(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    before = controller.state.route
    made = release(reg, tmp_path, 2)
    assert made.rendered is not None
    digest = get_adapter(reg, made.rendered).files["adapter_model.safetensors"].removeprefix("sha256:")
    for file in (
        adapter_folder(reg, made.rendered) / "adapter_model.safetensors",
        *reg.root.rglob(f"sha256/*/{digest}"),
    ):
        file.chmod(0o644)
        file.write_bytes(b"damaged")
    assert controller.settle(5)
    assert controller.state.route == before
    (name,) = controller.state.rejected
    assert name.startswith("prod@2.")
    assert [one.partition(".")[0] for one in fake.names] == ["prod@1"]


def test_a_gateway_that_cannot_follow_any_more_is_not_ready_and_answers_nothing(
    reg: Registry, fake: FakeVllm, tmp_path: Path
) -> None:
    routes, said, (text, key) = Routes(), list[str](), new_key("team", ["prod"])
    release(reg, tmp_path, 1)
    with running(fake) as url, VllmServer(url) as server:

        @contextmanager
        def opened(_: str) -> Iterator[Controller]:
            with control(reg, server, tmp_path / "root", routes=routes).owned() as controller:
                yield controller

        gateway = Gateway(Settings({"support": "prod"}), routes, Upstream(url), lambda: (key,))
        with listening(gateway) as at, controlling(opened, ["prod"], routes, said.append):
            up = World(routes, None, gateway, at, text, text, [key])  # type: ignore[arg-type]
            until(up, 200)
            damage(reg)
            until(up, 503)
            assert up.ask(hello(), path=CHAT).json["error"]["code"] == "not_served"
            assert "its controller failed: BrokenRegistry" in said[-1]


def until(up: World, status: int) -> None:
    end = time.monotonic() + 20
    while up.ask(path="/readyz", method="GET", key="").status != status:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_may_pass_is_not_among_the_errors_that_last() -> None:
    from efface.registry import Conflict, NotFound, RegistryError

    assert not any(issubclass(kind, LASTING) for kind in (Conflict, NotFound, RegistryError))


OWN_FILES = ("prod.json", "prod.lock", "PROD.JSON", "x.Lock")


@pytest.mark.parametrize("channel", OWN_FILES)
def test_a_channel_named_like_a_controllers_file_is_refused_by_all_parts(
    reg: Registry, server: VllmServer, tmp_path: Path, channel: str
) -> None:
    """Its folder of adapters would be where another channel's state or lock is: that one is never served again."""
    with pytest.raises(ServingError, match=r"does not end in \.json or \.lock"):
        Controller(Source(reg, channel), server, Options(tmp_path))
    with (
        pytest.raises(ServingError, match=r"does not end in \.json or \.lock"),
        following(tmp_path, ["prod", channel], Routes(), print),
    ):
        pass
    with pytest.raises(ServingError, match=r"none of them ending in \.json or \.lock"):
        of({"EFFACE_CHANNELS": f"prod,{channel}"})
    assert list(tmp_path.glob("*.lock")) + list(tmp_path.glob("*.json")) == []


@pytest.mark.parametrize("channel", ["json", "prod.jsonl", "lock", "prod.json.x", "-", "resolver"])
def test_a_channel_that_looks_alike_is_served(
    reg: Registry, server: VllmServer, tmp_path: Path, channel: str
) -> None:
    root = tmp_path / "root"
    with Controller(Source(reg, channel), server, Options(root)).owned() as controller:
        assert controller.settle(5)


def test_the_default_place_of_a_server_is_below_the_registrys_and_not_the_resolvers(reg: Registry) -> None:
    from efface.cli.serve import default_root
    from efface.serving.vllm_plugin import RESOLVER

    for url in (
        "http://..",
        "http://.",
        "http://@resolver",
        "http://a@..:80",
        "http://x/../..",
        "http://[::1]:80",
    ):
        found = default_root(reg, url)
        assert found.parent == reg.root / "serving"
        assert found.resolve().parent == found.parent.resolve()
        assert found.name != RESOLVER
