"""What a channel holds a release to besides the recipe: its gates, and how low its requests stood before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..audits import Thresholds
from ..audits.gate_attacks import Earlier
from ..registry import NotFound, Registry, channel_gates, get_audit, history
from ..registry.canon import parse


@dataclass(frozen=True, slots=True)
class Held:
    """``gates`` by name; ``earlier``: requests at their lowest among the releases that the channel served."""

    gates: Mapping[str, float] = field(default_factory=dict[str, float])
    earlier: Mapping[str, Earlier] = field(default_factory=dict[str, Earlier])


def held_to(registry: Registry, channel: str, precision: str, gates: Thresholds) -> Held:
    """What ``channel`` asks now, besides a recipe's ``gates``. Earlier figures are those measured at ``precision``."""
    asked = {name: float(bound) for name, bound in channel_gates(registry, channel).items()}
    looks_back = "max_rebound" in asked or gates.max_rebound is not None
    return Held(asked, earlier(registry, channel, precision) if looks_back else {})


def earlier(registry: Registry, channel: str, precision: str) -> dict[str, Earlier]:
    """Each request's lowest extraction strength in the audits that carried releases of ``channel``."""
    try:
        served = [one for one in history(registry, channel) if one.activated_at and one.audit]
    except NotFound:
        return {}
    lowest: dict[str, Earlier] = {}
    for release in served:
        audit = get_audit(registry, release.audit or "")
        if audit.precision != precision:
            continue
        for request, found in _measured(
            parse(registry.blobs.read(audit.report)), f"{channel}@{release.version}"
        ).items():
            if request in (audit.requests or ()) and (
                request not in lowest or found.extraction_strength < lowest[request].extraction_strength
            ):
                lowest[request] = found
    return lowest


def _measured(report: Any, where: str) -> dict[str, Earlier]:
    """The forget rows of a recorded report's "after", by request; none of an audit that measured nothing."""
    after = [one for one in report.get("evaluations", ()) if one["label"] == report.get("after")]
    return {
        item["request"]: Earlier(
            float(item["extraction_strength"]),
            int(item["n"]),
            where,
            {
                row["id"]: float(row["extraction_strength"])
                for row in one["rows"]
                if (row["request"], row["group"]) == (item["request"], "forget")
            },
        )
        for one in after
        for item in one["aggregates"]
        if item["group"] == "forget" and item["request"] is not None
    }
