"""What an audit runs besides measuring every row: the suite, and what it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from ..audits.suites import Suite, load_suite
from .sources import Sources


@dataclass(frozen=True, slots=True)
class Plan:
    """A suite with its sources."""

    suite: Suite
    sources: Sources = field(default_factory=Sources)


@cache
def quick() -> Plan:
    """What is run where nobody asks for more."""
    return Plan(load_suite("quick"))
