"""What efface's parts inside an inference server (resolver, middleware) go by: four variables of the environment.

EFFACE_CHANNELS       channels that may be asked for, by comma; without it nothing may
EFFACE_SERVING_ROOT   the ``--root`` of the controller of this server: what it routes to is active, probed, and may be
                      asked; what it only loaded, rejected or took back may not
EFFACE_REGISTRY       without a controller: the registry whose active releases are; verified, but not probed. Any
                      version of a listed channel that the server has may be asked then: nobody here knows which were
EFFACE_ADMIN_TOKEN    who sends it in the header ``x-efface-admin`` may load and unload
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..registry import Registry, RegistryError
from .errors import ServingError
from .names import is_servable, parse_name
from .source import Source
from .state import read_state

_LONG_AGO = -1e9


@dataclass(slots=True)
class Inside:
    """Which names may be asked for in this process. Use `of`.

    ``fresh``: seconds that an answer is used again, so that a burst of requests asks once. ``under_way``: seconds that
    the adapter before the active one may still be asked: a gateway leased it before the switch, and its request comes
    now. Without an end somebody who keeps asking would keep it loaded for good.
    """

    channels: frozenset[str]
    root: Path | None = None
    registry: str | None = None
    admin_token: str | None = field(default=None, repr=False)
    fresh: float = 0.5
    under_way: float = 30.0
    _known: dict[str, tuple[float, str | None]] = field(default_factory=dict[str, "tuple[float, str | None]"])
    _before: dict[str, tuple[float, str]] = field(default_factory=dict[str, "tuple[float, str]"])

    def serves(self, name: str) -> bool:
        """Whether a model of this name may be asked: a channel, or an adapter that answers for one or just did."""
        found = parse_name(name)
        if found is None or found.channel not in self.channels:
            return name in self.channels
        return self.root is None or self._answers(found.channel, name)

    def look(self) -> None:
        """See what is active now, so that it is known later what was."""
        for channel in self.channels:
            self.active(channel)

    def active(self, channel: str) -> str | None:
        """The adapter that answers for ``channel`` now; None where none does, or nobody can say."""
        if channel not in self.channels:
            return None
        at, name = self._known.get(channel, (_LONG_AGO, None))
        return name if time.monotonic() - at < self.fresh else self._looked(channel)

    def _answers(self, channel: str, name: str) -> bool:
        """A gateway may know of a switch before this does: whoever names another adapter makes it look again."""
        if self.active(channel) == name or self._looked(channel) == name:
            return True
        at, before = self._before.get(channel, (_LONG_AGO, ""))
        return name == before and time.monotonic() - at < self.under_way

    def _looked(self, channel: str) -> str | None:
        _, old = self._known.get(channel, (_LONG_AGO, None))
        name = self._asked(channel)
        if name is None:
            self._before.pop(channel, None)  # withdrawn: at once
        elif old is not None and old != name:
            self._before[channel] = (time.monotonic(), old)
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
    if not all(is_servable(one) for one in named):
        raise ServingError(
            "expected EFFACE_CHANNELS as channels with commas between, such as prod,staging, none of them ending in "
            ".json or .lock; correct it"
        )
    root = environment.get("EFFACE_SERVING_ROOT")
    return Inside(
        frozenset(named),
        Path(root) if root else None,
        environment.get("EFFACE_REGISTRY") or None,
        environment.get("EFFACE_ADMIN_TOKEN") or None,
    )
