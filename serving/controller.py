"""The controller: keeps one channel of one server as the registry wants it. `plan` decides, this does.

What it knows comes from the registry, the server and the state file each time; what it remembers by itself (what was
probed in this life of the server, since when a name is not routed to) can be lost at any moment: then it probes again,
and waits again. One controller per channel and root: a lock sees to that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ..registry import BrokenRegistry, GateFailed, InvalidInput, NotFound, RegistryError, timestamp
from .errors import ServerError, ServingError
from .folders import Folders, check
from .lock import alone
from .plan import (
    Action,
    Delete,
    Desired,
    Drain,
    Load,
    Materialise,
    Probe,
    Publish,
    Unload,
    Withdraw,
    plan,
)
from .probe import probe
from .routes import Route, Routes
from .server import LoraServer
from .source import Source, Target
from .state import ChannelState, follow, read_state, write_state
from .view import Options, View

__all__ = ["LASTING", "Controller", "Options"]

LASTING = (BrokenRegistry, InvalidInput, GateFailed)
"""Errors of a registry that asking again does not change; the others (`Conflict`, a disk, a network) may pass."""


class Controller:
    """Use `settle` once or `watch` for good, inside `owned`.

    ``routes``: of a gateway in this process; ``in_use``: whether it uses a name; ``told``: gets one line per event.
    """

    def __init__(
        self,
        source: Source,
        server: LoraServer,
        options: Options,
        *,
        routes: Routes | None = None,
        in_use: Callable[[str], bool] | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._source, self._server, self._options = source, server, options
        self._routes = routes or Routes()
        self._told = told
        self._folders = Folders(options.root, source.channel)
        self._view = View(server, self._folders, options, in_use or self._leased)
        self._failures: dict[str, int] = {}
        self._last: Action | None = None
        self._rest = False
        # What was rejected in an earlier life is tried again: whoever starts a controller wants that.
        self.state = replace(read_state(options.root, source.channel), rejected={})

    def step(self) -> Action | None:
        """Look, and take the first step that can be taken; it, or None when there is none to take now.

        A step that fails has no other effect than what `state` says of it. Raises what the registry raises.
        """
        self._rest = True
        target = self._source.active()
        if target is None and self.state.last is not None:
            self._save(replace(self.state, last=None))  # nothing to go back to: the registry took it back
        seen = self._view.observed(self.state)
        if seen is None:
            return None
        steps = plan(Desired(target.name if target else None, "the channel has no active release"), seen)
        action = next((one for one in steps if not isinstance(one, Drain)), steps[0] if steps else None)
        if action is not None and not isinstance(action, Drain):
            # One that fails, or comes again because it did nothing, is not repeated without a pause.
            self._rest = not self._try(action) or action == self._last
        self._last = action
        return action

    def settle(self, timeout: float = 120.0) -> bool:
        """Step until nothing is left to do; False when that does not come within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            action = self.step()
            if action is None and self._view.missed == 0:
                return True
            if self._rest:
                time.sleep(min(self._options.interval, 0.2))
        return False

    def watch(self, stop: threading.Event) -> None:
        """Follow the channel until ``stop``: a registry or a server that fails is told of once, and tried again.

        Raises one of `LASTING` that was there for ``broken_for`` seconds: whoever does not see the channel any more
        must say so. The server and the state file stay as they are.
        """
        said, whole = "", time.monotonic()
        while not stop.is_set():
            try:
                self.step()
                error, whole = "", time.monotonic()
            except (RegistryError, ServingError, OSError) as came:
                error = f"{self._source.channel}: {came}"
                if not isinstance(came, LASTING):
                    whole = time.monotonic()
                elif time.monotonic() - whole >= self._options.broken_for:
                    raise
            if error and error != said:
                self._told(error)
            said = error
            if self._rest:
                stop.wait(self._options.interval)

    @contextmanager
    def owned(self) -> Generator[Controller]:
        """Be the only controller of this channel and root. Raises `ServingError` when there is another."""
        with alone(self._options.root, self._source.channel):
            self._folders.sweep()
            yield self

    def _leased(self, name: str) -> bool:
        return self._routes.in_flight(name) > 0

    def _try(self, action: Action) -> bool:
        """Do it; False when the server or the registry failed, which may pass."""
        try:
            self._do(action)
        except (ServerError, *LASTING) as error:
            self._failed(action, str(error))
            return False
        except (ServingError, NotFound) as error:
            self._reject(action, str(error))
        return True

    def _do(self, action: Action) -> None:
        match action:
            case Materialise(name):
                with self._folders.new(name) as folder:
                    target = self._source.named(name)
                    self._source.write(target, folder)
                    self._check(target, folder)
            case Load(name):
                self._check(self._source.named(name), self._folders.path(name))
                self._server.load(name, self._view.path(name))
                self._view.used(name)
            case Probe(name):
                self._probe(name)
            case Publish(name):
                self._publish(self._source.named(name))
            case Withdraw(reason):
                if self.state.route is not None:
                    self._view.used(self.state.route.name)
                self._save(replace(self.state, route=None, reason=reason))
                self._told(f"{self._source.channel}: not served any more: {reason}")
            case Unload(name):
                self._server.unload(name)
                self._view.used(name)  # what the server took in until now may still want its files
                self._told(f"{name}: unloaded")
            case Delete(name):
                self._folders.delete(name)
            case Drain():
                pass

    def _check(self, target: Target, folder: Path) -> None:
        check(folder, files=target.files, base=target.composition.base, limits=self._options.limits)

    def _probe(self, name: str) -> None:
        target = self._source.named(name)
        off = probe(self._server, name, self._source.probes(target), self._options.tolerance)
        self._view.probed.add(name)
        self._told(f"{name}: probed, log-probabilities within {off:.2g}")
        if self.state.route is not None and self.state.route.name == name:
            self._save(replace(self.state, route=_route(target)))  # whatever the file said of it

    def _publish(self, target: Target) -> None:
        old, route = self.state.route, _route(target)
        self._save(replace(self.state, route=route, last=route, reason=""))
        self._failures.pop(target.name, None)
        if old is not None:
            self._view.used(old.name)
        self._told(f"{target.name}: serves {target.channel} now")

    def _failed(self, action: Action, why: str) -> None:
        """A server that fails may be dying, a registry be restored: the adapter is rejected only when it keeps on."""
        name = getattr(action, "name", "")
        self._failures[name] = self._failures.get(name, 0) + 1
        self._told(f"{name}: {why}")
        if (
            not isinstance(action, Unload)
            and self._failures[name] >= self._options.tries
            and self._server.alive()
        ):
            self._failures.pop(name)
            self._reject(action, why)

    def _reject(self, action: Action, why: str) -> None:
        name = getattr(action, "name", "")
        self._view.probed.discard(name)
        self._save(self.state.reject(name, why))
        self._told(f"{name}: rejected: {why}")

    def _save(self, state: ChannelState) -> None:
        """The file first: what a gateway may follow must survive us."""
        self.state = replace(state, updated_at=_now())
        write_state(self._options.root, self.state)
        follow(self._routes, self._source.channel, self.state)


def _route(target: Target) -> Route:
    return Route(
        target.channel, target.version, target.name, target.composition.digest, target.adapter, _now()
    )


def _now() -> str:
    return timestamp(datetime.now(UTC))
