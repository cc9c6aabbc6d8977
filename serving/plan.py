"""What to do next, as a pure function of what is wanted and what is there. Read this before `controller`.

There is no memory of steps: after a crash of the controller, of the server or of both the same function looks at what
is left and goes on. The order that makes a swap gapless and a failure harmless:

    materialise → load (new name, never in place) → probe → publish → (idle) unload the old → delete its files

Nothing is routed to before it passed its probe in this life of the server; nothing that is routed to is unloaded;
nothing that is in use is unloaded; no file of a loaded name is deleted (vLLM dies of that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .names import parse_name


@dataclass(frozen=True, slots=True)
class Materialise:
    """Write the folder of ``name`` from the registry, checked."""

    name: str


@dataclass(frozen=True, slots=True)
class Load:
    """Load the folder of ``name`` under that name, after checking its files again."""

    name: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the canary prompts."""

    name: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Route the channel to ``name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Route the channel nowhere."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Make the server forget ``name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the folder of ``name``."""

    name: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Nothing to do but wait until nobody uses ``name``."""

    name: str


Action = Materialise | Load | Probe | Publish | Withdraw | Unload | Delete | Drain


@dataclass(frozen=True, slots=True)
class Desired:
    """The name that the registry wants served; None when it wants nothing served, for ``reason``."""

    name: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is there now. Names are adapters' names at the server.

    ``alive``: the server answers. ``loaded``: names of this channel that it has from our folders; ``foreign``: names
    of this channel that it has from elsewhere. ``folders``: whole folders on disk. ``routed``: what the channel is
    routed to; ``last``: the newest that passed its probe, to go back to. ``probed``: what passed it since the server
    started. ``rejected``: what will not be served, and why. ``busy``: names that may still be in use.
    """

    alive: bool
    loaded: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    routed: str | None = None
    last: str | None = None
    probed: frozenset[str] = frozenset()
    rejected: Mapping[str, str] = field(default_factory=dict[str, str])
    busy: frozenset[str] = frozenset()


def target(desired: Desired, seen: Observed) -> str | None:
    """What to serve: the desired one unless it was rejected, then the last good one; None: nothing."""
    if desired.name is None:
        return None
    for name in (desired.name, seen.last):
        if name is not None and name not in seen.rejected:
            return name
    return None


def plan(desired: Desired, seen: Observed) -> tuple[Action, ...]:
    """The steps that can be taken now, in order; look again after the first of them. Empty: all is as desired."""
    if not seen.alive:
        return (Withdraw("the inference server does not answer"),) if seen.routed else ()
    if seen.routed is not None and (why := _unservable(seen.routed, desired, seen)) is not None:
        return (Withdraw(why),)
    wanted = target(desired, seen)
    if wanted is not None and (step := _towards(wanted, seen)) is not None:
        return (step,)
    return _cleaned(wanted, seen)


def _unservable(name: str, desired: Desired, seen: Observed) -> str | None:
    """Why the channel must not be routed to ``name`` one moment longer; None while it may."""
    if desired.name is None:
        return desired.reason or "the registry has no active release of it"
    if name in seen.rejected:
        return f"{name} was rejected: {seen.rejected[name]}"
    if name not in seen.loaded:
        return f"the server does not have {name}: it was restarted, or somebody unloaded it"
    return None


def _towards(wanted: str, seen: Observed) -> Action | None:
    """The next step until the channel is routed to ``wanted``, and it passed its probe in this life of the server."""
    if wanted in seen.foreign:
        return Unload(wanted)
    if wanted not in seen.folders and wanted not in seen.loaded:
        return Materialise(wanted)
    if wanted not in seen.loaded:
        return Load(wanted)
    if wanted not in seen.probed:
        return Probe(wanted)
    return None if seen.routed == wanted else Publish(wanted)


def _cleaned(wanted: str | None, seen: Observed) -> tuple[Action, ...]:
    """What is left of other versions: unloaded when idle, its files deleted after that."""
    keep = {name for name in (wanted, seen.routed) if name is not None}
    old = sorted((seen.loaded | seen.foreign) - keep, key=_age)
    steps: list[Action] = [Drain(name) if name in seen.busy else Unload(name) for name in old]
    gone = sorted(seen.folders - seen.loaded - keep, key=_age)
    return (*steps, *(Drain(name) if name in seen.busy else Delete(name) for name in gone))


def _age(name: str) -> tuple[int, str]:
    found = parse_name(name)
    return (0 if found is None else found.version, name)
