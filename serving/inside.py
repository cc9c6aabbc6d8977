"""What efface's parts inside an inference server (resolver, middleware) go by: four variables of the environment.

EFFACE_CHANNELS       channels that may be asked for, by comma; without it nothing may
EFFACE_SERVING_ROOT   the ``--root`` of the controller of this server: what it routes to is active, probed
EFFACE_REGISTRY       without a controller: the registry whose active releases are; verified, but not probed
EFFACE_ADMIN_TOKEN    who sends it in the header ``x-efface-admin`` may load and unload
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..registry import Registry, RegistryError
from .errors import ServingError
from .names import is_channel, parse_name
from .source import Source
from .state import read_state

_FRESH = 0.5
"""Seconds that an answer is used again: a burst of requests asks once."""


@dataclass(slots=True)
class Inside:
    """Which names may be asked for in this process. Use `of`."""

    channels: frozenset[str]
    root: Path | None = None
    registry: str | None = None
    admin_token: str | None = field(default=None, repr=False)
    _known: dict[str, tuple[float, str | None]] = field(default_factory=dict[str, "tuple[float, str | None]"])

    def serves(self, name: str) -> bool:
        """Whether a model of this name may be asked: a channel, or a version of one. The server knows if it has it."""
        found = parse_name(name)
        return (found.channel if found else name) in self.channels

    def active(self, channel: str) -> str | None:
        """The adapter that answers for ``channel`` now; None where none does, or nobody can say."""
        if channel not in self.channels:
            return None
        at, name = self._known.get(channel, (-_FRESH, None))
        if time.monotonic() - at >= _FRESH:
            name = self._asked(channel)
            self._known[channel] = (time.monotonic(), name)
        return name

    def resolved(self, name: str) -> str | None:
        """``name`` as the server knows it: a channel becomes the active adapter; None where there is none."""
        return self.active(name) if name in self.channels else name

    def _asked(self, channel: str) -> str | None:
        try:
            if self.root is not None:
                route = read_state(self.root, channel).route
                return None if route is None else route.name
            if self.registry is not None:
                with Registry.open(self.registry) as reg:
                    target = Source(reg, channel).active()
                    return None if target is None else target.name
        except (RegistryError, ServingError, OSError):
            return None  # nobody can say: nothing answers
        return None


def of(environment: Mapping[str, str]) -> Inside:
    """The settings in ``environment``. Raises `ServingError` for a channel that cannot be one."""
    named = [one.strip() for one in environment.get("EFFACE_CHANNELS", "").split(",") if one.strip()]
    if not all(is_channel(one) for one in named):
        raise ServingError(
            "expected EFFACE_CHANNELS as channels with commas between, such as prod,staging; correct it"
        )
    root = environment.get("EFFACE_SERVING_ROOT")
    return Inside(
        frozenset(named),
        Path(root) if root else None,
        environment.get("EFFACE_REGISTRY") or None,
        environment.get("EFFACE_ADMIN_TOKEN") or None,
    )
