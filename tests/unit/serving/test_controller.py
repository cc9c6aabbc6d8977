"""The controller against a registry and a server over HTTP: what it does, in which order, and after which accidents."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lora_server_kit import PROMPTS, FakeVllm, release, running, said
from registry_kit import audited, lora

from efface.registry import Registry, adapter_folder
from efface.serving import Routes, ServingError
from efface.serving.controller import Controller, Options
from efface.serving.folders import BadAdapter, Limits
from efface.serving.plan import Drain, Withdraw
from efface.serving.probe import ProbeSet
from efface.serving.source import Source
from efface.serving.state import read_state, write_state
from efface.serving.vllm import VllmServer


def control(reg: Registry, server: Any, root: Path, **changes: Any) -> Controller:
    options = replace(Options(root, grace=0, interval=0.01), **changes)
    return Controller(Source(reg, "prod"), server, options)


def served(fake: FakeVllm) -> set[int]:
    return {int(name.partition("@")[2].partition(".")[0]) for name in fake.names}


def test_it_follows_the_channel_and_cleans_up(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    for seed in (1, 2, 3):
        made = release(reg, tmp_path, seed)
        assert controller.settle(5)
        route = controller.state.route
        assert route is not None
        assert (route.version, route.release, route.adapter) == (seed, made.composition.digest, made.rendered)
        assert fake.names == {route.name: str(tmp_path / "root" / "prod" / route.name)}
        assert read_state(tmp_path / "root", "prod") == controller.state
        assert [entry.name for entry in (tmp_path / "root" / "prod").iterdir()] == [route.name]


def test_the_new_one_is_probed_and_routed_to_before_the_old_one_goes(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    release(reg, tmp_path, 2)
    fake.calls.clear()
    assert controller.settle(5)
    acts = [(path.rpartition("/")[2], name.partition(".")[0]) for path, name in fake.calls if name]
    assert acts == [
        ("load_lora_adapter", "prod@2"),
        ("completions", "prod@2"),
        ("unload_lora_adapter", "prod@1"),
    ]


def test_a_server_on_a_unix_socket(reg: Registry, fake: FakeVllm, tmp_path: Path) -> None:
    release(reg, tmp_path, 1)
    with running(fake, tmp_path / "socket") as url, VllmServer(url) as server:
        assert control(reg, server, tmp_path / "root").settle(5)
    assert served(fake) == {1}


def test_doing_it_again_does_nothing(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    release(reg, tmp_path, 1)
    assert control(reg, server, tmp_path / "root").settle(5)
    fake.calls.clear()
    again = control(reg, server, tmp_path / "root")
    assert again.settle(5)
    assert {path for path, name in fake.calls if name} == {
        "/v1/completions"
    }  # it is probed again, and no more


@pytest.mark.parametrize("how", ["probed", "right"])
def test_what_fails_its_probe_is_not_routed_to(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path, how: str
) -> None:
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    before = controller.state.route
    release(reg, tmp_path, 2, **{how: False})
    assert controller.settle(5)
    assert controller.state.route == before
    assert list(controller.state.rejected) != []
    assert served(fake) == {1}
    release(reg, tmp_path, 3)
    assert controller.settle(5)
    assert served(fake) == {3}


def test_nothing_unprobed_is_ever_routed_to(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    fake.noise = -0.9
    release(reg, tmp_path, 1)
    routes = Routes()
    options = Options(tmp_path / "root", grace=0, interval=0.01)
    controller = Controller(Source(reg, "prod"), server, options, routes=routes)
    assert controller.settle(5)
    assert controller.state.route is None
    assert routes.snapshot().routes == {}


def test_an_audit_of_later_brings_the_probes_that_were_missing(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    made = release(reg, tmp_path, 1, probed=False)
    assert made.rendered is not None
    weights = (adapter_folder(reg, made.rendered) / "adapter_model.safetensors").read_bytes()
    answers = tuple(said(weights, prompt) for prompt in PROMPTS)
    canary = ProbeSet(made.composition.digest, "nf4", PROMPTS, answers).to_json()
    audited(reg, made.composition, report=json.dumps({"canary": canary}).encode())
    controller = control(reg, server, tmp_path / "root")
    assert controller.settle(5)
    assert served(fake) == {1}


def test_a_restarted_server_gets_its_adapter_back(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    release(reg, tmp_path, 1)
    controller = control(reg, server, tmp_path / "root")
    assert controller.settle(5)
    fake.names.clear()
    assert controller.step() is not None
    assert controller.state.route is None
    assert "restarted" in controller.state.reason
    assert controller.settle(5)
    assert served(fake) == {1}
    assert controller.state.route is not None


def test_a_dead_server_loses_its_route_after_some_patience(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    release(reg, tmp_path, 1)
    controller = control(reg, server, tmp_path / "root", patience=3)
    assert controller.settle(5)
    fake.sick = True
    controller.step()
    controller.step()
    assert controller.state.route is not None
    controller.step()
    assert controller.state.route is None
    fake.sick = False
    assert controller.settle(5)
    assert controller.state.route is not None


def test_an_older_release_is_served_when_the_new_one_fails_after_a_restart(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    release(reg, tmp_path, 2, right=False)
    assert controller.settle(5)
    fake.names.clear()
    assert controller.settle(5)
    assert served(fake) == {1}
    assert controller.state.route is not None


def test_a_server_that_refuses_is_tried_again_and_then_left_alone(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    release(reg, tmp_path, 1)
    fake.broken.add("/v1/load_lora_adapter")
    controller = control(reg, server, tmp_path / "root", tries=3)
    assert controller.settle(5)
    assert sum(path == "/v1/load_lora_adapter" for path, _ in fake.calls) == 3
    assert controller.state.route is None
    assert "500" in next(iter(controller.state.rejected.values()))
    fake.broken.clear()
    again = control(reg, server, tmp_path / "root")
    assert again.settle(5)
    assert served(fake) == {1}


def test_tries_have_time_between_them(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    """A server that fails for a moment is given that moment, and one that fails for good is not flooded."""
    release(reg, tmp_path, 1)
    fake.broken.add("/v1/load_lora_adapter")
    controller = control(reg, server, tmp_path / "root", tries=3, interval=0.4)
    stop = threading.Event()
    thread = threading.Thread(target=controller.watch, args=(stop,))
    thread.start()
    stop.wait(0.6)
    came = sum(path == "/v1/load_lora_adapter" for path, _ in fake.calls)
    stop.set()
    thread.join(5)
    assert 1 <= came <= 2
    assert controller.state.rejected == {}


def test_an_unload_that_does_nothing_is_not_repeated_without_a_pause(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    """A wrong admin token: the middleware answers 404 to unloading, as vLLM does to a name that it has not."""
    controller = control(reg, server, tmp_path / "root", interval=0.3)
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    release(reg, tmp_path, 2)
    fake.deaf.add("/v1/unload_lora_adapter")
    stop = threading.Event()
    thread = threading.Thread(target=controller.watch, args=(stop,))
    thread.start()
    stop.wait(2)
    stop.set()
    thread.join(5)
    assert 1 <= sum(path == "/v1/unload_lora_adapter" for path, _ in fake.calls) <= 8
    assert controller.state.route is not None
    assert controller.state.route.version == 2


def test_what_was_withdrawn_has_its_grace_and_its_files_too(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    """Gateways elsewhere go on asking until they see it, and vLLM dies of files that vanish under a waiting request."""
    controller = control(reg, server, tmp_path / "root", grace=0.5)
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    time.sleep(0.6)  # the grace that began with loading is over
    nothing = tmp_path / "nothing"
    with Registry.open(nothing, create=True) as empty:
        bare, controller._source = controller, Source(empty, "prod")
        assert isinstance(bare.step(), Withdraw)
        (old,) = fake.names
        assert isinstance(bare.step(), Drain)
        assert list(fake.names) == [old]
        while fake.names:
            bare.step()
        assert (tmp_path / "root" / "prod" / old).is_dir()
        assert isinstance(bare.step(), Drain)
        assert bare.settle(5)
        assert not (tmp_path / "root" / "prod" / old).exists()


def test_what_was_withdrawn_is_nothing_to_go_back_to(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    with Registry.open(tmp_path / "nothing", create=True) as empty:
        assert control(empty, server, tmp_path / "root").settle(5)
    release(reg, tmp_path, 2, right=False)
    assert control(reg, server, tmp_path / "root").settle(5)
    state = read_state(tmp_path / "root", "prod")
    assert (state.route, fake.names) == (None, {})


def test_a_route_of_a_poisoned_state_file_says_what_the_registry_says_again(
    reg: Registry, server: VllmServer, tmp_path: Path
) -> None:
    made = release(reg, tmp_path, 1)
    root = tmp_path / "root"
    assert control(reg, server, root).settle(5)
    state = read_state(root, "prod")
    assert state.route is not None
    lie = replace(state.route, adapter="sha256:" + "0" * 64, release="sha256:" + "1" * 64)
    write_state(root, replace(state, route=lie, last=lie))
    assert control(reg, server, root).settle(5)
    route = read_state(root, "prod").route
    assert route is not None
    assert (route.adapter, route.release) == (made.rendered, made.composition.digest)


def test_a_registry_that_is_away_changes_nothing_until_it_is_back(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    said: list[str] = []
    release(reg, tmp_path, 1)
    options = Options(tmp_path / "root", grace=0, interval=0.02)
    stop, controller = threading.Event(), Controller(Source(reg, "prod"), server, options, told=said.append)
    assert controller.settle(5)
    before = controller.state.route
    database = next(reg.root.glob("*.db"))
    away = database.rename(database.with_suffix(".away"))
    thread = threading.Thread(target=controller.watch, args=(stop,))
    thread.start()
    try:
        stop.wait(0.3)
        assert thread.is_alive()
        assert controller.state.route == before
        away.rename(database)
        release(reg, tmp_path, 2)
        for _ in range(500):
            if served(fake) == {2}:
                break
            stop.wait(0.01)
        assert served(fake) == {2}
    finally:
        stop.set()
        thread.join(5)


def test_files_that_changed_on_disk_are_not_loaded(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    release(reg, tmp_path, 1)
    controller = control(reg, server, tmp_path / "root")
    controller.step()  # materialise
    (folder,) = (tmp_path / "root" / "prod").iterdir()
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    assert controller.settle(5)
    assert fake.names == {}
    assert "expected the files that the ledger names" in next(iter(controller.state.rejected.values()))


def test_a_name_that_somebody_else_loaded_is_not_trusted(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    made = release(reg, tmp_path, 1)
    source = Source(reg, "prod")
    target = source.active()
    assert target is not None
    stranger = lora(tmp_path / "stranger", 77)
    fake.names[target.name] = str(stranger)
    controller = control(reg, server, tmp_path / "root")
    assert controller.settle(5)
    assert fake.names == {target.name: str(tmp_path / "root" / "prod" / target.name)}
    assert made.version == 1


def test_what_is_in_use_stays_until_it_is_not(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    (old,) = fake.names
    fake.running.add(old)
    release(reg, tmp_path, 2)
    assert not controller.settle(0.5)
    assert served(fake) == {1, 2}
    assert controller.state.route is not None
    assert controller.state.route.version == 2
    fake.running.clear()
    assert controller.settle(5)
    assert served(fake) == {2}


def test_a_server_without_statistics_may_still_run_the_old_one(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    """``--disable-log-stats``: no metrics of LoRA is not the same as no request."""
    controller = control(reg, server, tmp_path / "root")
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    fake.stats = False
    release(reg, tmp_path, 2)
    assert not controller.settle(0.5)
    assert served(fake) == {1, 2}
    fake.stats = True
    assert controller.settle(5)
    assert served(fake) == {2}


def test_a_lease_in_this_process_keeps_it_too(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    routes = Routes()
    options = Options(tmp_path / "root", grace=0, interval=0.01)
    controller = Controller(Source(reg, "prod"), server, options, routes=routes)
    release(reg, tmp_path, 1)
    assert controller.settle(5)
    with routes.lease("prod") as held:
        release(reg, tmp_path, 2)
        assert not controller.settle(0.5)
        assert held.name in fake.names
        assert routes.current("prod").version == 2
    assert controller.settle(5)
    assert served(fake) == {2}


def test_a_channel_without_an_active_release_is_not_served(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    controller = control(reg, server, tmp_path / "root")
    assert controller.settle(5)
    assert controller.state.route is None
    assert fake.names == {}


def test_a_rank_above_the_servers_is_not_loaded(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    release(reg, tmp_path, 1)
    controller = control(reg, server, tmp_path / "root", limits=Limits(max_rank=1))
    assert controller.settle(5)
    assert fake.names == {}
    assert "expected a rank of at most 1" in next(iter(controller.state.rejected.values()))


def test_only_one_controller_per_channel_and_root(reg: Registry, server: VllmServer, tmp_path: Path) -> None:
    one, two = (control(reg, server, tmp_path / "root") for _ in range(2))
    with one.owned(), pytest.raises(ServingError, match="only controller"), two.owned():
        pytest.fail("two controllers")
    with two.owned():
        pass


def test_watching_goes_on_until_it_is_told_to_stop(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    stop, controller = threading.Event(), control(reg, server, tmp_path / "root")
    thread = threading.Thread(target=controller.watch, args=(stop,))
    thread.start()
    try:
        for seed in (1, 2):
            release(reg, tmp_path, seed)
            for _ in range(500):
                if served(fake) == {seed} and controller.state.route is not None:
                    break
                stop.wait(0.01)
            assert served(fake) == {seed}
    finally:
        stop.set()
        thread.join(5)
    assert not thread.is_alive()


def test_names_of_another_channel_are_left_alone(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    fake.names |= {"other@1": "/x", "prod": "/y", "prod2@1": "/z"}
    release(reg, tmp_path, 1)
    assert control(reg, server, tmp_path / "root").settle(5)
    assert {"other@1", "prod", "prod2@1"} < set(fake.names)


def test_a_name_is_never_a_path(reg: Registry, server: VllmServer, tmp_path: Path) -> None:
    from efface.serving.folders import Folders

    folders = Folders(tmp_path, "prod")
    for name in ("../prod@1", "prod@1/../..", "/etc", "other@1", "prod@1\n", ".", "..", "", "prod"):
        with pytest.raises(BadAdapter):
            folders.path(name)


class Killed(BaseException):
    """The process of the controller ends here."""


class Dying:
    """A `LoraServer` whose caller is killed right after the call with this number."""

    def __init__(self, server: VllmServer, calls: int) -> None:
        self._server, self._left = server, calls

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            answer = getattr(self._server, name)(*arguments)
            self._left -= 1
            if not self._left:
                raise Killed
            return answer

        return call


def test_killed_after_any_call_to_the_server_it_goes_on(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    """What followers read is at the server at every such moment, and the next controller ends where this one would."""
    root = tmp_path / "root"
    release(reg, tmp_path, 1)
    assert control(reg, server, root).settle(5)
    for calls in range(1, 100):
        made = release(reg, tmp_path, calls + 1)
        try:
            with control(reg, Dying(server, calls), root).owned() as controller:
                controller.settle(5)
        except Killed:
            route = read_state(root, "prod").route
            assert route is not None
            assert route.name in fake.names
            with control(reg, server, root).owned() as again:
                assert again.settle(5)
            assert served(fake) == {made.version}
            assert len(list((root / "prod").iterdir())) == 1
        else:
            assert calls > 20  # there were that many moments to die at
            return
    pytest.fail("it never got through")


def test_what_a_crash_left_is_swept_and_never_loaded(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    leftovers = [root / "prod" / ".tmp-0123", root / "prod" / "prod@x", root / "prod" / "other@1"]
    for folder in leftovers:
        folder.mkdir(parents=True)
    release(reg, tmp_path, 1)
    with control(reg, server, root).owned() as controller:
        assert controller.settle(5)
    assert not leftovers[0].exists()
    assert all(folder.exists() for folder in leftovers[1:])  # not ours to remove
    assert served(fake) == {1}


def test_the_server_is_told_the_path_that_it_sees(
    reg: Registry, server: VllmServer, fake: FakeVllm, tmp_path: Path
) -> None:
    there = tmp_path / "mounted"
    (tmp_path / "root").mkdir()
    there.symlink_to(tmp_path / "root")
    release(reg, tmp_path, 1)
    controller = control(reg, server, tmp_path / "root", root_at_server=there)
    assert controller.settle(5)
    ((name, path),) = fake.names.items()
    assert path == str(there / "prod" / name)
    assert controller.step() is None  # it knows its own folder again
