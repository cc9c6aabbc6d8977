"""One line of log per request of the gateway: ids, names, sizes and times. No prompt, no answer, no key."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from .routes import Route


@dataclass(slots=True)
class Talk:
    """One request as it goes on."""

    id: str
    path: str = "other"
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    """Seconds until the answer began; None while it has not."""
    key: str | None = None
    channel: str | None = None
    route: Route | None = None
    stream: bool = False
    status: int = 0
    code: str = "ok"
    sent: int = 0

    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.started

    def begun(self, status: int) -> None:
        """The answer begins, with this status."""
        self.status, self.first = status, self.seconds()

    def line(self) -> str:
        """The line, as JSON."""
        said = {
            name: getattr(self, name) for name in ("id", "path", "status", "code", "key", "channel", "stream")
        }
        route = self.route
        return json.dumps(
            {
                **said,
                "release": None if route is None else route.name,
                "adapter": None if route is None else route.adapter,
                "bytes": self.sent,
                "ms": round(1000 * self.seconds(), 1),
            }
        )
