"""What a controller sees: the server, the folders and who uses what, as one `Observed`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ServerError
from .folders import Folders, Limits
from .names import parse_name
from .plan import Observed
from .server import LoraServer
from .state import ChannelState


@dataclass(frozen=True, slots=True)
class Options:
    """How a controller works. Seconds, but for ``patience`` and ``tries``.

    ``root``: where folders and the state file are; ``root_at_server``: the same folder as the server sees it.
    ``grace``: how long a name that was routed to is kept at least: longer than gateways take to follow the state file.
    ``broken_for``: how long a registry may be damaged before the controller gives up.
    ``patience``: how many health checks in a row must fail before a server counts as dead; ``tries``: how often a load
    or a probe that the server fails is tried.
    """

    root: Path
    root_at_server: Path | None = None
    grace: float = 5.0
    interval: float = 0.5
    broken_for: float = 60.0
    patience: int = 3
    tries: int = 3
    tolerance: float | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class View:
    """One channel of one server. What it remembers may be lost: since when a name is unused, what was probed."""

    server: LoraServer
    folders: Folders
    options: Options
    in_use: Callable[[str], bool]
    probed: set[str] = field(default_factory=set[str])
    missed: int = 0
    _unused_since: dict[str, float] = field(default_factory=dict[str, float])

    def observed(self, state: ChannelState) -> Observed | None:
        """What is there; None while a server that does not answer may still be alive."""
        loaded = self._loaded()
        routed = None if state.route is None else state.route.name
        if loaded is None:
            return Observed(alive=False, routed=routed) if self.missed >= self.options.patience else None
        ours = frozenset(name for name, path in loaded.items() if self._is_ours(name, path))
        foreign = frozenset(name for name in loaded if self._is_of_channel(name)) - ours
        folders = self.folders.names()
        self.probed &= ours
        others = (ours | foreign | folders) - {routed}
        return Observed(
            alive=True,
            loaded=ours,
            foreign=foreign,
            folders=folders,
            routed=routed,
            last=None if state.last is None else state.last.name,
            probed=frozenset(self.probed),
            rejected=state.rejected,
            busy=frozenset(name for name in others if self._is_busy(name, state)),
        )

    def path(self, name: str) -> Path:
        """The folder of ``name`` as the server sees it."""
        path, there = self.folders.path(name), self.options.root_at_server
        return path.absolute() if there is None else there / path.relative_to(self.options.root)

    def used(self, name: str) -> None:
        """``name`` was in use until now: its grace begins."""
        self._unused_since[name] = time.monotonic()

    def _loaded(self) -> dict[str, Path | None] | None:
        """What the server has; None when it does not say, which is counted."""
        try:
            if not self.server.alive():
                raise ServerError("no health")
            found = dict(self.server.loaded())
        except ServerError:
            self.missed += 1
            if self.missed >= self.options.patience:
                self.probed.clear()
            return None
        self.missed = 0
        return found

    def _is_of_channel(self, name: str) -> bool:
        found = parse_name(name)
        return found is not None and found.channel == self.folders.channel

    def _is_ours(self, name: str, path: Path | None) -> bool:
        return self._is_of_channel(name) and path in (None, self.path(name))

    def _is_busy(self, name: str, state: ChannelState) -> bool:
        """Whether somebody may still use ``name``: within the grace, by a lease here, or by what the server says."""
        since = self._unused_since.setdefault(name, time.monotonic())
        young = time.monotonic() - since < self.options.grace and name not in state.rejected
        return young or self.in_use(name) or self.server.busy(name)
