"""What a reversibility audit found, as a value: one finding for each thing that had to be true.

Pure: no registry, no model, no network. `reversible.py` fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .errors import RecipeError

SCHEMA = "efface.reversibility/1"
Outcome = Literal["passed", "failed", "refused"]
"""`refused`: the registry refuses this step for a reason that it names, and another plan that was checked works."""
Json = dict[str, object]
_LISTED = 3


@dataclass(frozen=True, slots=True)
class PathFinding:
    """One check of one path.

    `check` is what was proved ("base files", "rollback"), `path` where ("remove req-000001", "to version 1"), `text`
    what was expected, what came and, where it failed, what to do. None of them holds text of the rows.
    """

    check: str
    path: str
    outcome: Outcome
    text: str

    def to_json(self) -> Json:
        """Plain JSON types."""
        return {"check": self.check, "path": self.path, "outcome": self.outcome, "text": self.text}


@dataclass(frozen=True, slots=True)
class Reversibility:
    """The audit of one channel as it was active: `base` and `composition` are digests, `created_at` is RFC 3339.

    Raises RecipeError for a record without findings, which would say nothing.
    """

    channel: str
    version: int
    base: str
    composition: str
    precision: str
    created_at: str
    findings: tuple[PathFinding, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if not self.findings:
            raise RecipeError("expected at least one finding of reversibility, got none: check something")

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """Fails where anything failed, or where nothing passed."""
        outcomes = {finding.outcome for finding in self.findings}
        return "pass" if "passed" in outcomes and "failed" not in outcomes else "fail"

    def to_json(self) -> Json:
        """The document; `schema` is "efface.reversibility/1"."""
        return {
            "schema": SCHEMA,
            "channel": self.channel,
            "version": self.version,
            "base": self.base,
            "composition": self.composition,
            "precision": self.precision,
            "verdict": self.verdict,
            "created_at": self.created_at,
            "findings": [finding.to_json() for finding in self.findings],
            "environment": dict(self.environment),
        }


def compared(check: str, path: str, expected: str, found: str, *, same: str, then: str) -> PathFinding:
    """Passed with the words `same` where the digests are equal, else failed with both and what to do."""
    if expected == found:
        return PathFinding(check, path, "passed", same)
    return PathFinding(check, path, "failed", f"expected {expected}, got {found}. {then}")


def differing_files(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A sentence for each file that differs, is missing, or is there and should not be; sorted by name."""
    said: list[str] = []
    for name in sorted({*expected, *found}):
        was, now = expected.get(name), found.get(name)
        if was is None:
            said.append(f"{name} is there and in no record")
        elif now is None:
            said.append(f"{name} is missing")
        elif was != now:
            said.append(f"{name}: expected {was}, got {now}")
    return said


def listed(problems: list[str]) -> str:
    """The first few, and how many more."""
    more = len(problems) - _LISTED
    return "; ".join(problems[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
