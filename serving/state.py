"""The state of a channel at one server, as a file that others may follow: `<root>/<channel>.json`.

Written whole or not at all, after each change, so that gateways in other processes see the same route, and so that a
controller that was killed goes on. It holds names and digests, and no secrets.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..registry import durable
from .errors import ServingError
from .names import is_servable, parse_name
from .plain import read_plain
from .routes import Route, Routes

_LARGEST = 1 << 20
_MOST_REJECTED = 20
_PLAIN = re.compile(r"[A-Za-z0-9:.@_-]{1,128}", re.ASCII)
"""Digests and times: they become headers and lines of a log."""


@dataclass(frozen=True, slots=True)
class ChannelState:
    """What answers for ``channel`` (None: nothing, for ``reason``), and what was refused.

    ``last``: the newest route that passed its probe: what the controller goes back to. ``rejected``: why, by name.
    """

    channel: str
    route: Route | None = None
    last: Route | None = None
    reason: str = "nothing has been loaded for it yet"
    rejected: Mapping[str, str] = field(default_factory=dict[str, str])
    updated_at: str = ""

    def reject(self, name: str, reason: str) -> ChannelState:
        """The same with one more name that is not served; the oldest are forgotten."""
        kept = list({**{k: v for k, v in self.rejected.items() if k != name}, name: reason}.items())
        return replace(self, rejected=dict(kept[-_MOST_REJECTED:]))


def state_file(root: Path, channel: str) -> Path:
    """Where the state of ``channel`` is. Raises `ServingError` for a name that cannot be served."""
    if not is_servable(channel):
        raise ServingError(
            "expected a channel of 1 to 64 letters, digits, '.', '_' or '-' that does not end in .json or .lock, as "
            "files of controllers do; release on another, such as prod"
        )
    return root / f"{channel}.json"


def write_state(root: Path, state: ChannelState) -> None:
    """Put it in place of what was there; durable when this returns."""
    data = json.dumps({"v": 1, **asdict(state)}, indent=1, sort_keys=True).encode()
    durable.make_folder(root)
    durable.write_file(state_file(root, state.channel), data, 0o644)


def read_state(root: Path, channel: str) -> ChannelState:
    """The state of ``channel``; that of an unknown one where there is no file. Raises `ServingError` for a bad one."""
    path = state_file(root, channel)
    try:
        data = _bytes(path)
    except FileNotFoundError:
        return ChannelState(channel)
    except OSError as error:
        raise ServingError(
            f"expected a state file at {path}, got {error.strerror}; make it readable"
        ) from None
    try:
        return _state(json.loads(data), channel)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ServingError(
            f"expected a state file of efface at {path}, got something else; remove it"
        ) from None


def _bytes(path: Path) -> bytes:
    """What is in a plain file that only its owner may write."""
    status, data = read_plain(path, _LARGEST + 1)
    mode = status.st_mode
    if not stat.S_ISREG(mode) or mode & 0o022:
        raise ServingError(
            f"expected a plain file at {path} that only its owner may write, got mode {mode:o}; chmod 644 {path}"
        )
    return data


class Follower:
    """Keeps a `Routes` as the state files of ``channels`` say: a gateway in another process than the controller."""

    def __init__(self, root: Path, channels: tuple[str, ...], routes: Routes) -> None:
        self._root, self._channels, self._routes = root, channels, routes
        self._seen: dict[str, ChannelState | str] = {}

    def poll(self) -> None:
        """Read each file once and publish or withdraw what changed. A file that is broken withdraws its channel."""
        for channel in self._channels:
            try:
                now: ChannelState | str = read_state(self._root, channel)
            except ServingError as error:
                now = str(error)
            if self._seen.get(channel) != now:
                self._seen[channel] = now
                follow(self._routes, channel, now)


def follow(routes: Routes, channel: str, state: ChannelState | str) -> None:
    """Make ``routes`` say what ``state`` says (a text: the reason why there is none)."""
    if isinstance(state, str):
        routes.withdraw(channel, state)
    elif state.route is None:
        routes.withdraw(channel, state.reason)
    else:
        routes.publish(state.route)


def _state(value: Any, channel: str) -> ChannelState:
    names = {one.name for one in fields(ChannelState)}
    if value.pop("v") != 1 or set(value) != names or value["channel"] != channel:
        raise ValueError("another object")
    rejected = {str(name): str(reason) for name, reason in value["rejected"].items()}
    route, last = _route(value["route"], channel), _route(value["last"], channel)
    return ChannelState(channel, route, last, str(value["reason"]), rejected, str(value["updated_at"]))


def _route(value: Any, channel: str) -> Route | None:
    if value is None:
        return None
    route = Route(**value)
    texts = (route.name, route.release, route.adapter, route.probed_at)
    if not all(map(_PLAIN.fullmatch, texts)) or type(route.version) is not int:
        raise ValueError("a route of other types")
    found = parse_name(route.name)
    if found is None or (found.channel, found.version, route.channel) != (channel, route.version, channel):
        raise ValueError("a route of another channel")
    return route
