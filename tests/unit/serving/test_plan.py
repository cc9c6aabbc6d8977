"""Laws of the controller's step function: whatever fails and whenever, no gap is made that need not be."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.serving.plan import (
    Delete,
    Desired,
    Drain,
    Load,
    Materialise,
    Observed,
    Probe,
    Publish,
    Unload,
    Withdraw,
    plan,
    target,
)

NAMES = [f"prod@{version}.{'ab' * 6}" for version in range(1, 6)]
names = st.sampled_from(NAMES)
some = st.frozensets(names, max_size=5)
maybe = st.none() | names
observations = st.builds(
    Observed,
    alive=st.booleans(),
    loaded=some,
    foreign=some,
    folders=some,
    routed=maybe,
    last=maybe,
    probed=some,
    rejected=st.dictionaries(names, st.just("why"), max_size=3),
    busy=some,
).map(lambda seen: replace(seen, foreign=seen.foreign - seen.loaded))
wishes = maybe.map(Desired)


@given(wishes, observations)
def test_one_step_never_does_harm(desired: Desired, seen: Observed) -> None:
    for action in plan(desired, seen):
        match action:
            case Publish(name):
                assert name in seen.loaded & seen.probed
                assert name not in seen.rejected
                assert name in (desired.name, seen.last)
            case Load(name):
                assert name in seen.folders
                assert name not in seen.loaded | seen.foreign
            case Probe(name):
                assert name in seen.loaded
            case Unload(name):
                assert name != seen.routed
                assert name not in seen.busy or name in seen.foreign
            case Delete(name):
                assert name not in seen.loaded
                assert name not in seen.busy
                assert name != seen.routed
            case Materialise(name):
                assert name not in seen.folders
            case Drain(name):
                assert name in seen.busy
            case Withdraw(reason):
                assert reason
                assert seen.routed is not None


@given(wishes, observations)
def test_a_route_is_withdrawn_only_where_nothing_answers_for_it(desired: Desired, seen: Observed) -> None:
    if any(isinstance(action, Withdraw) for action in plan(desired, seen)):
        assert (
            not seen.alive
            or desired.name is None
            or seen.routed in seen.rejected
            or seen.routed not in seen.loaded
        )


@given(wishes, observations)
def test_a_route_to_what_the_server_has_not_is_withdrawn_first(desired: Desired, seen: Observed) -> None:
    """A gateway must say 503 from the first look after a restart, not only once the adapter is probed again."""
    if seen.alive and seen.routed is not None and seen.routed not in seen.loaded:
        assert [type(action) for action in plan(desired, seen)] == [Withdraw]


@given(wishes, observations)
def test_nothing_is_done_to_a_dead_server(desired: Desired, seen: Observed) -> None:
    dead = replace(seen, alive=False)
    assert all(isinstance(action, Withdraw) for action in plan(desired, dead))


@dataclass
class World:
    """A server, a disk and a state file, with what can happen to them."""

    alive: bool = True
    loaded: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    routed: str | None = None
    last: str | None = None
    probed: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)
    bad: frozenset[str] = frozenset()
    busy: set[str] = field(default_factory=set)

    def seen(self) -> Observed:
        return Observed(
            self.alive,
            frozenset(self.loaded),
            frozenset(self.foreign),
            frozenset(self.folders),
            self.routed,
            self.last,
            frozenset(self.probed),
            dict(self.rejected),
            frozenset(self.busy),
        )

    def do(self, action: object) -> None:
        match action:
            case Materialise(name):
                self.folders.add(name)
            case Load(name):
                assert name in self.folders
                assert name not in self.loaded | self.foreign
                self.loaded.add(name)
            case Probe(name):
                if name in self.bad:
                    self.rejected[name] = "it answers otherwise"
                else:
                    self.probed.add(name)
            case Publish(name):
                self.routed = self.last = name
            case Withdraw(_):
                self.routed = None
            case Unload(name):
                self.loaded.discard(name)
                self.foreign.discard(name)
                self.probed.discard(name)
            case Delete(name):
                assert name not in self.loaded
                self.folders.discard(name)
            case _:
                pass

    def settle(self, desired: Desired) -> None:
        for _ in range(60):
            actions = plan(desired, self.seen())
            if not actions:
                return
            self.do(actions[0])
            if isinstance(actions[0], Drain):
                self.busy.discard(actions[0].name)
        pytest.fail(f"it does not settle: {plan(desired, self.seen())}")


events = st.lists(
    st.tuples(
        st.sampled_from(
            ["want", "step", "step", "step", "crash", "die", "rise", "wipe", "steal", "use", "free"]
        ),
        names,
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(events, st.frozensets(names, max_size=2), names)
def test_whatever_happens_it_settles_on_what_is_wanted(
    happened: list[tuple[str, str]], bad: frozenset[str], wanted: str
) -> None:
    world, desired = World(bad=bad), Desired(NAMES[0])
    for event, name in happened:
        if event == "want":
            desired = Desired(name)
        elif event == "step":
            before = world.routed
            for action in plan(desired, world.seen())[:1]:
                world.do(action)
                if before is not None and not isinstance(action, Publish | Withdraw):
                    assert world.routed == before
        elif event == "crash":  # of the controller: what it only remembered is gone
            world.probed.clear()
        elif event == "die":
            world.alive = False
            world.loaded.clear()
            world.foreign.clear()
            world.probed.clear()
            world.busy.clear()
        elif event == "rise":
            world.alive = True
        elif event == "wipe" and name not in world.loaded:
            world.folders.discard(name)
        elif event == "steal" and name not in world.loaded:
            world.foreign.add(name)
        elif event == "use" and name in world.loaded:
            world.busy.add(name)
        elif event == "free":
            world.busy.discard(name)
        if world.routed is not None and world.alive and not plan(desired, world.seen()):
            assert world.routed in world.loaded & world.probed
            assert world.routed not in bad
    world.alive = True
    desired = Desired(wanted)
    world.settle(desired)
    good = target(desired, world.seen())
    assert world.routed == good
    assert good not in bad
    if wanted not in bad and wanted not in world.rejected:
        assert good == wanted
    assert world.loaded | world.foreign == ({good} if good else set())
    assert world.folders <= ({good} if good else set())


@given(st.permutations(NAMES), st.frozensets(names, max_size=2))
def test_a_swap_has_no_gap(order: list[str], bad: frozenset[str]) -> None:
    world = World(bad=bad)
    first = next(name for name in order if name not in bad)
    world.settle(Desired(first))
    for name in order:
        while actions := plan(Desired(name), world.seen()):
            world.do(actions[0])
            assert world.routed is not None
            assert world.routed in world.loaded
        assert world.routed == (name if name not in bad else world.last)


def test_a_failed_probe_keeps_the_old_route_and_says_so() -> None:
    old, new = NAMES[:2]
    world = World(bad=frozenset({new}))
    world.settle(Desired(old))
    world.settle(Desired(new))
    assert (world.routed, set(world.rejected), world.loaded) == (old, {new}, {old})


def test_nothing_active_means_nothing_routed_and_nothing_loaded() -> None:
    world = World()
    world.settle(Desired(NAMES[0]))
    world.settle(Desired(None, "withdrawn"))
    assert (world.routed, world.loaded, world.folders) == (None, set(), set())
