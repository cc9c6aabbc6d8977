"""Errors of `efface.serving`.

ServingError
├── NoRoute        a channel that nothing verified and probed answers for: no answer then, and why
├── ServerError    what an inference server said, or that it said nothing
└── ProbeFailed    an adapter that answers otherwise than its release did when it was audited
"""

from __future__ import annotations


class ServingError(Exception):
    """Something about serving that the operator can put right; the message says how, and holds no prompt."""


class NoRoute(ServingError):
    """Nothing verified and probed answers for ``channel``: the caller gets no answer, and never the base's."""

    def __init__(self, channel: str, reason: str) -> None:
        super().__init__(f"no release of {channel} is served: {reason}")
        self.channel, self.reason = channel, reason


class ServerError(ServingError):
    """An inference server refused, failed or did not answer. ``status``: its HTTP status, None when none came."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ProbeFailed(ServingError):
    """An adapter answers otherwise than its release did when it was audited; it is not routed to."""
