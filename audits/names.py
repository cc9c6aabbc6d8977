"""How a reader sees requests, figures and compositions on a page."""

from __future__ import annotations

_METRICS = {
    "probability": "answer probability",
    "extraction_strength": "extraction strength",
    "exact_memorization": "exact memorization",
    "rouge_l": "ROUGE-L recall",
    "mention_rate": "mention rate",
}


def request_name(request: str | None) -> str:
    """How a reader sees a request; rows of None are shared by all."""
    return "shared" if request is None else request


def short_name(request: str | None) -> str:
    """As `request_name`, cut for a lane: ids share their beginning, the end tells them apart."""
    name = request_name(request)
    return name if len(name) <= 14 else name[:4] + "…" + name[-9:]


def metric_name(metric: str) -> str:
    """A figure of `Aggregate` in words; another name with spaces."""
    return _METRICS.get(metric, metric.replace("_", " "))
