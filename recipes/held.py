"""What a channel holds a release to besides the recipe: its gates, and how low its requests stood before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..audits import Thresholds
from ..audits.gate_attacks import Earlier
from ..registry import (
    Audit,
    Composition,
    NotFound,
    Registry,
    channel_gates,
    compose,
    get_audit,
    history,
    list_audits,
)
from ..registry.canon import parse


@dataclass(frozen=True, slots=True)
class Held:
    """``gates`` by name; ``earlier``: requests at their lowest, by their own adapters alone or in the channel."""

    gates: Mapping[str, float] = field(default_factory=dict[str, float])
    earlier: Mapping[str, Earlier] = field(default_factory=dict[str, Earlier])


def held_to(
    registry: Registry, channel: str, precision: str, gates: Thresholds, composition: Composition
) -> Held:
    """What ``channel`` asks of ``composition`` now, besides a recipe's ``gates``. Earlier figures are those measured at
    ``precision``."""
    asked = {name: float(bound) for name, bound in channel_gates(registry, channel).items()}
    if "max_rebound" not in asked and gates.max_rebound is None:
        return Held(asked)
    found = [*alone(registry, composition, precision), *served(registry, channel, precision)]
    return Held(asked, _lowest(found))


def alone(registry: Registry, composition: Composition, precision: str) -> list[tuple[str, Earlier]]:
    """What each adapter of ``composition`` reached by itself: what a stack is held against, the first one too."""
    return [
        one
        for adapter in composition.adapters
        for audit in list_audits(
            registry, compose(composition.base, composition.quantization, [(adapter, "1")]).digest
        )
        for one in _of(registry, audit, precision, f"its adapter {adapter[7:15]} alone")
    ]


def served(registry: Registry, channel: str, precision: str) -> list[tuple[str, Earlier]]:
    """What the audits that carried releases of ``channel`` found."""
    try:
        releases = [one for one in history(registry, channel) if one.activated_at and one.audit]
    except NotFound:
        return []
    return [
        one
        for release in releases
        for one in _of(
            registry, get_audit(registry, release.audit or ""), precision, f"{channel}@{release.version}"
        )
    ]


def _of(registry: Registry, audit: Audit, precision: str, where: str) -> list[tuple[str, Earlier]]:
    if audit.precision != precision:
        return []
    found = _measured(parse(registry.blobs.read(audit.report)), where)
    return [(request, one) for request, one in found.items() if request in (audit.requests or ())]


def _lowest(found: Iterable[tuple[str, Earlier]]) -> dict[str, Earlier]:
    lowest: dict[str, Earlier] = {}
    for request, one in found:
        if request not in lowest or one.extraction_strength < lowest[request].extraction_strength:
            lowest[request] = one
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
