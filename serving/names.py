"""Names of adapters at a server: ``channel@version`` and what may follow, and nothing that is a path or a trick."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(
    r"(?P<channel>[A-Za-z0-9_-][A-Za-z0-9._-]{0,63})@(?P<version>[1-9][0-9]{0,8})(?:\.(?P<digest>[0-9a-f]{12}))?",
    re.ASCII,
)
_CHANNEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_SAFE = re.compile(r"[A-Za-z0-9._@-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ServedName:
    """A name read. ``digest``: the first 12 hex digits of the rendered adapter, where the name has them."""

    channel: str
    version: int
    digest: str | None = None

    def __str__(self) -> str:
        tail = "" if self.digest is None else f".{self.digest}"
        return f"{self.channel}@{self.version}{tail}"


def served_name(channel: str, version: int, adapter: str) -> str:
    """The name of a release's adapter at a server: unique by content, so that a name never means two things."""
    return str(ServedName(channel, version, adapter.removeprefix("sha256:")[:12]))


def parse_name(name: str) -> ServedName | None:
    """``name`` read; None for anything that `served_name` would not write (with or without the digest)."""
    match = _NAME.fullmatch(name)
    return None if match is None else ServedName(match["channel"], int(match["version"]), match["digest"])


def is_channel(name: str) -> bool:
    """Whether ``name`` could be a channel's (`efface.registry` has the same rule)."""
    return _CHANNEL.fullmatch(name) is not None


def is_servable(channel: str) -> bool:
    """Whether ``channel`` is one whose folder is none of the controllers' own files (``prod.json``, ``prod.lock``)."""
    return is_channel(channel) and not channel.lower().endswith((".json", ".lock"))


def is_safe(name: str) -> bool:
    """Whether ``name`` is letters, digits and ``. _ @ -`` only, and not ``.`` or ``..``: it cannot leave a folder."""
    return _SAFE.fullmatch(name) is not None and not set(name) <= {"."}
