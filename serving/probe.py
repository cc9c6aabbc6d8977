"""Canary prompts: what an adapter must answer before anybody is sent to it.

Whoever audits a composition has the model loaded, and writes into the audit what the next token after a few prompts
is: token ids and log-probabilities (`efface.recipes.canary`). The prompts are neutral sentences and random tokens that
ship with efface, never rows of a request. The controller asks the server the same and compares. What a wrong file, a
wrong base, a server that mixes adapters up (vLLM on CPU did) or a NaN does to an answer shows here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ProbeFailed
from .server import LoraServer, Prompt

TOLERANCE: Mapping[str, float] = {"fp32": 0.01, "bf16": 0.35, "int8": 0.5, "nf4": 0.5}
"""How far a log-probability may be off, by the precision of the audit: kernels differ, and rounding with them.

Measured between transformers and vLLM 0.32 on a CPU: 2e-4 in fp32, up to 0.17 in bf16, 0.4 where one of the two
quantizes otherwise. A server that runs in another precision than the audit needs a tolerance of its own.
"""
TOP = 5
_MOST_PROMPTS, _LONGEST = 64, 512

Answers = Sequence[Mapping[int, float]]
"""For each prompt the likeliest next tokens, by id, with their natural log-probabilities."""


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Prompts (token ids) and what the composition with this digest answered to them at ``precision``."""

    composition: str
    precision: str
    prompts: tuple[Prompt, ...]
    expected: tuple[Mapping[int, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` reads it."""
        rows = [
            {"prompt": list(prompt), "next": [[token, logprob] for token, logprob in answer.items()]}
            for prompt, answer in zip(self.prompts, self.expected, strict=True)
        ]
        return {"v": 1, "composition": self.composition, "precision": self.precision, "rows": rows}

    @property
    def tolerance(self) -> float:
        """That of its precision; the widest for one that is not known."""
        return TOLERANCE.get(self.precision, max(TOLERANCE.values()))


def from_json(value: Any) -> ProbeSet:
    """The probe set in parsed JSON. Raises `ProbeFailed` for anything that `to_json` would not write."""
    try:
        prompts = tuple(tuple(_token(token) for token in row["prompt"]) for row in value["rows"])
        expected = tuple({_token(token): _logprob(lp) for token, lp in row["next"]} for row in value["rows"])
        found = ProbeSet(str(value["composition"]), str(value["precision"]), prompts, expected)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise _broken() from None
    sizes = {len(prompt) for prompt in prompts} | {len(answer) for answer in expected}
    if value.get("v") != 1 or not 1 <= len(prompts) <= _MOST_PROMPTS or not sizes <= set(range(1, _LONGEST)):
        raise _broken()
    return found


def from_report(report: bytes) -> ProbeSet | None:
    """The probe set in an audit's report; None for an audit of before there were any."""
    try:
        found = json.loads(report)
    except (ValueError, RecursionError):
        raise _broken() from None
    value = found.get("canary") if isinstance(found, dict) else None
    return None if value is None else from_json(value)


def probe(server: LoraServer, name: str, wanted: ProbeSet, tolerance: float | None = None) -> float:
    """Ask the adapter ``name`` and compare; the largest difference. Raises `ProbeFailed`, `ServerError`."""
    return compare(wanted, server.first_token_logprobs(name, wanted.prompts, TOP), tolerance)


def compare(wanted: ProbeSet, came: Answers, tolerance: float | None = None) -> float:
    """The largest difference of a log-probability; `ProbeFailed` when it is above ``tolerance``, or nothing came."""
    limit = wanted.tolerance if tolerance is None else tolerance
    if len(came) != len(wanted.prompts):
        raise ProbeFailed(
            f"expected {len(wanted.prompts)} answers to the probe, got {len(came)}; look at the server"
        )
    off = [_difference(one, other) for one, other in zip(wanted.expected, came, strict=True)]
    worst = max(off)
    if not worst <= limit:
        at = off.index(worst)
        raise ProbeFailed(
            f"expected log-probabilities within {limit:g} of the audit's at {wanted.precision}, got {worst:.4g} off "
            f"(prompt {at + 1} of {len(off)}); the server has another base, precision or adapter, or mixes them up"
        )
    return worst


def _difference(wanted: Mapping[int, float], came: Mapping[int, float]) -> float:
    """How far two lists of likeliest tokens are apart at least; a token that one lacks is below its last one."""
    if not came or not all(math.isfinite(value) and value < 0.001 for value in came.values()):
        return math.inf
    low, high = min(wanted.values()), min(came.values())
    pairs = [(wanted.get(token), came.get(token)) for token in wanted.keys() | came.keys()]
    return max(_gap(one, other, low, high) for one, other in pairs)


def _gap(one: float | None, other: float | None, low: float, high: float) -> float:
    if one is not None and other is not None:
        return abs(one - other)
    return max(0.0, (other or 0.0) - low) if one is None else max(0.0, one - high)


def _token(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("no token id")
    return value


def _logprob(value: Any) -> float:
    if type(value) not in (int, float) or not -1000 < value < 0.001:
        raise ValueError("no log-probability")
    return float(value)


def _broken() -> ProbeFailed:
    return ProbeFailed(
        "expected canary prompts with log-probabilities in the audit, got something else; "
        "audit the release again: efface audit run --release CHANNEL --model BASE"
    )
