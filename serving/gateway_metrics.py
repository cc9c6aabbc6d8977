"""What the gateway tells Prometheus. Labels are channels, codes and releases: nothing of a request."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .routes import Routes

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters of one gateway."""

    def __init__(self, routes: Routes, channels: Iterable[str]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Releases(routes, tuple(channels)))
        self.answers = Counter(
            "efface_gateway_answers",
            "Requests to a channel, by code.",
            ["channel", "code"],
            registry=self._registry,
        )
        self.refused = Counter(
            "efface_gateway_refused",
            "Requests that reached no channel, by code.",
            ["code"],
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "efface_gateway_in_flight", "Requests being answered.", ["channel"], registry=self._registry
        )
        self.first_byte = Histogram(
            "efface_gateway_first_byte_seconds",
            "From the request to the first byte of its answer.",
            ["channel"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.whole = Histogram(
            "efface_gateway_answer_seconds",
            "From the request to the end of its answer.",
            ["channel"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


class _Releases(Collector):
    """Which release answers for each channel, as of the moment of asking."""

    def __init__(self, routes: Routes, channels: tuple[str, ...]) -> None:
        self._routes, self._channels = routes, channels

    def collect(self) -> Iterable[Metric]:
        routes = self._routes.snapshot().routes
        ready = GaugeMetricFamily(
            "efface_gateway_ready", "1: a verified and probed release answers.", labels=["channel"]
        )
        names = GaugeMetricFamily(
            "efface_gateway_release", "The release that answers.", labels=["channel", "release", "version"]
        )
        for channel in self._channels:
            route = routes.get(channel)
            ready.add_metric([channel], float(route is not None))
            if route is not None:
                names.add_metric([channel, route.name, str(route.version)], 1.0)
        return (ready, names)
