"""Routes: what a lease holds, what a switch changes, and that nothing falls back."""

import asyncio
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.serving import NoRoute, Route, Routes, ServingError
from efface.serving.state import ChannelState, Follower, read_state, state_file, write_state


def route(version: int, channel: str = "prod") -> Route:
    return Route(channel, version, f"{channel}@{version}", "sha256:r", "sha256:a", "2026-03-01T12:00:00Z")


def test_no_route_says_why() -> None:
    routes = Routes()
    with pytest.raises(NoRoute, match="nothing has been published"):
        routes.current("prod")
    routes.publish(route(1))
    routes.withdraw("prod", "the server was restarted")
    with pytest.raises(NoRoute, match="the server was restarted"), routes.lease("prod"):
        pytest.fail("a lease of nothing")
    assert routes.snapshot().down == {"prod": "the server was restarted"}
    assert routes.snapshot().in_flight == {}


def test_a_lease_keeps_its_route_over_a_switch() -> None:
    routes = Routes()
    routes.publish(route(1))
    with routes.lease("prod") as first:
        routes.publish(route(2))
        with routes.lease("prod") as second:
            assert (first.version, second.version) == (1, 2)
            assert routes.snapshot().in_flight == {"prod@1": 1, "prod@2": 1}
            assert not routes.wait_idle("prod@1", 0.01)
    assert routes.wait_idle("prod@1", 0)
    assert routes.in_flight("prod@1") == routes.in_flight("prod@2") == 0


def test_a_lease_ends_with_an_error_too() -> None:
    routes = Routes()
    routes.publish(route(1))
    with pytest.raises(KeyError), routes.lease("prod"):
        raise KeyError
    assert routes.in_flight("prod@1") == 0


def test_waiting_ends_when_the_last_lease_does() -> None:
    routes = Routes()
    routes.publish(route(1))
    idle: list[bool] = []
    with routes.lease("prod"):
        waiter = threading.Thread(target=lambda: idle.append(routes.wait_idle("prod@1", 10)))
        waiter.start()
        assert not idle
    waiter.join(10)
    assert idle == [True]


def test_leases_of_many_threads_and_tasks_are_counted_right() -> None:
    routes = Routes()
    routes.publish(route(1))
    seen: Counter[int] = Counter()

    async def task() -> None:
        for _ in range(50):
            with routes.lease("prod") as held:
                await asyncio.sleep(0)
                seen[held.version] += 1

    async def tasks() -> None:
        await asyncio.gather(*(task() for _ in range(5)))

    threads = [threading.Thread(target=lambda: asyncio.run(tasks())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in range(2, 40):
        routes.publish(route(version))
    for thread in threads:
        thread.join(30)
    assert sum(seen.values()) == 4 * 5 * 50
    assert routes.snapshot().in_flight == {}


@given(
    st.lists(
        st.tuples(st.sampled_from(["lease", "end", "publish", "withdraw"]), st.integers(1, 3)), max_size=30
    )
)
def test_in_flight_is_the_number_of_open_leases(acts: list[tuple[str, int]]) -> None:
    routes, now, held = Routes(), 0, []
    for act, version in acts:
        if act == "publish":
            routes.publish(route(version))
            now = version
        elif act == "withdraw":
            routes.withdraw("prod", "why")
            now = 0
        elif act == "lease" and now:
            lease = routes.lease("prod")
            held.append((lease, lease.__enter__().name))
        elif act == "end" and held:
            held.pop()[0].__exit__(None, None, None)
        assert routes.snapshot().in_flight == dict(Counter(name for _, name in held))
    for lease, _ in held:
        lease.__exit__(None, None, None)
    assert routes.snapshot().in_flight == {}


def named(version: int) -> Route:
    return Route(
        "prod", version, f"prod@{version}.{'ab' * 6}", "sha256:r", "sha256:a", "2026-03-01T12:00:00Z"
    )


def test_a_state_comes_back_from_its_file(tmp_path: Path) -> None:
    state = ChannelState("prod", named(2), named(2), "", {}, "now").reject("prod@3.abcabcabcabc", "why")
    write_state(tmp_path, state)
    assert read_state(tmp_path, "prod") == state
    assert read_state(tmp_path, "other") == ChannelState("other")


def test_a_follower_sees_each_change(tmp_path: Path) -> None:
    routes = Routes()
    follower = Follower(tmp_path, ("prod", "other"), routes)
    follower.poll()
    assert set(routes.snapshot().down) == {"prod", "other"}
    write_state(tmp_path, ChannelState("prod", named(1), named(1)))
    follower.poll()
    assert routes.current("prod").version == 1
    write_state(tmp_path, ChannelState("prod", named(2), named(2)))
    follower.poll()
    assert routes.current("prod").version == 2
    write_state(tmp_path, ChannelState("prod", None, named(2), "the server was restarted"))
    follower.poll()
    with pytest.raises(NoRoute, match="restarted"):
        routes.current("prod")


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"v":1}', "{" * 5000, '{"v":2,"channel":"prod"}', "\x00"]
    + [
        '{"v":1,"channel":"prod","route":{"name":"base"},"last":null,"reason":"","rejected":{},"updated_at":""}'
    ]
    + [
        '{"v":1,"channel":"prod","route":{"channel":"prod","version":1,"name":"NAME","release":"","adapter":"",'
        '"probed_at":""},"last":null,"reason":"","rejected":{},"updated_at":""}'.replace("NAME", name)
        for name in ("base", "other@1", "prod@2", "../prod@1", "prod")
    ],
)
def test_a_broken_state_file_withdraws_its_channel(tmp_path: Path, text: str) -> None:
    routes = Routes()
    routes.publish(named(1))
    state_file(tmp_path, "prod").write_text(text)
    with pytest.raises(ServingError):
        read_state(tmp_path, "prod")
    Follower(tmp_path, ("prod",), routes).poll()
    with pytest.raises(NoRoute):
        routes.current("prod")


@pytest.mark.parametrize("channel", ["../x", "", ".x", "a/b", "a\n"])
def test_a_channel_is_never_a_path(tmp_path: Path, channel: str) -> None:
    with pytest.raises(ServingError):
        state_file(tmp_path, channel)
