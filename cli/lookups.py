"""What several commands ask of a registry."""

from __future__ import annotations

from collections.abc import Iterable

from ..registry import (
    NotFound,
    Registry,
    Release,
    active_release,
    channels,
    get_adapter,
    list_adapters,
)


def requests_of(reg: Registry, adapters: Iterable[str]) -> list[str]:
    """The requests that these adapters forget, sorted."""
    return sorted({request for digest in adapters for request in get_adapter(reg, digest).requests})


def releases_of(reg: Registry, request_id: str) -> list[Release]:
    """The active releases that hold an adapter of this request, by channel."""
    mine = {adapter.digest for adapter in list_adapters(reg, request_id)}
    return [release for release in active_releases(reg) if mine & set(release.composition.adapters)]


def active_releases(reg: Registry) -> list[Release]:
    """What each channel serves; channels without an active release are left out."""
    found: list[Release] = []
    for channel in channels(reg):
        try:
            found.append(active_release(reg, channel))
        except NotFound:  # nothing was activated there yet
            continue
    return found
