"""Routes: which adapter answers for a channel now, and how many requests still use which.

The switch of a hot-swap is one assignment here: a request that leased the old route keeps it to its end, the next one
gets the new one, and the old adapter is unloaded when nobody holds it any more. A channel without a verified and
probed release has no route: `NoRoute`, never a fallback.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import NoRoute


@dataclass(frozen=True, slots=True)
class Route:
    """What answers for ``channel``.

    ``name``: the adapter's name at the server, such as ``prod@7``; ``release``: the release's composition digest in the
    ledger; ``adapter``: digest of the rendered adapter; ``probed_at``: when it last passed its probe (UTC, RFC 3339).
    """

    channel: str
    version: int
    name: str
    release: str
    adapter: str
    probed_at: str


@dataclass(frozen=True, slots=True)
class RoutesView:
    """One moment of a `Routes`: for ``/readyz`` and metrics. ``down``: reason by channel without a route."""

    routes: Mapping[str, Route]
    down: Mapping[str, str]
    in_flight: Mapping[str, int]


class Routes:
    """A table in memory. Every method is safe from any thread and, but for `wait_idle`, from an event loop."""

    def __init__(self) -> None:
        self._idle = threading.Condition()
        self._routes: dict[str, Route] = {}
        self._down: dict[str, str] = {}
        self._flying: Counter[str] = Counter()

    def publish(self, route: Route) -> None:
        """From now on ``route`` answers for its channel; requests in flight keep theirs."""
        with self._idle:
            self._routes[route.channel] = route
            self._down.pop(route.channel, None)

    def withdraw(self, channel: str, reason: str) -> None:
        """From now on nothing answers for ``channel``, for this reason (shown to operators)."""
        with self._idle:
            self._routes.pop(channel, None)
            self._down[channel] = reason

    def current(self, channel: str) -> Route:
        """What answers for ``channel``. Raises `NoRoute`, with the reason."""
        with self._idle:
            return self._current(channel)

    @contextmanager
    def lease(self, channel: str) -> Generator[Route]:
        """The current route, counted as in flight until the block ends. Raises `NoRoute`."""
        with self._idle:
            route = self._current(channel)
            self._flying[route.name] += 1
        try:
            yield route
        finally:
            self._release(route.name)

    def in_flight(self, name: str) -> int:
        """How many leases of the adapter ``name`` are held."""
        with self._idle:
            return self._flying[name]

    def wait_idle(self, name: str, timeout: float) -> bool:
        """Wait at most ``timeout`` seconds until no lease of ``name`` is held; whether that came. Blocks its thread."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._flying[name], timeout)

    def snapshot(self) -> RoutesView:
        """All of it at one moment; later changes do not show in it."""
        with self._idle:
            return RoutesView(dict(self._routes), dict(self._down), dict(+self._flying))

    def _current(self, channel: str) -> Route:
        if (route := self._routes.get(channel)) is None:
            raise NoRoute(channel, self._down.get(channel, "nothing has been published for it"))
        return route

    def _release(self, name: str) -> None:
        with self._idle:
            self._flying[name] -= 1
            if not self._flying[name]:
                del self._flying[name]
                self._idle.notify_all()
