"""What serving prints as JSON."""

from __future__ import annotations

from typing_extensions import TypedDict


class RouteRecord(TypedDict):
    """Which adapter answers for a channel: its name at the server, its release's composition, when it was probed."""

    channel: str
    version: int
    name: str
    release: str
    adapter: str
    probed_at: str


class ServedRecord(TypedDict):
    """`serve vllm`: the state of the channel, as in ROOT/CHANNEL.json.

    ``route``: null when nothing is served, for ``reason``. ``last``: the newest that passed its probe. ``rejected``:
    why a release is not served, by the adapter's name.
    """

    channel: str
    route: RouteRecord | None
    last: RouteRecord | None
    reason: str
    rejected: dict[str, str]
    updated_at: str


class GatewayRecord(TypedDict):
    """`serve gateway`, when it was stopped: where it listened, and the channels by public model name."""

    listen: str
    models: dict[str, str]


class ApiKeyRecord(TypedDict):
    """`serve key`: the one time that the key itself is shown."""

    id: str
    key: str
    channels: list[str]
    metrics: bool


class RevokedApiKeyRecord(TypedDict):
    """`serve revoke`: the ids that are left."""

    id: str
    left: list[str]
