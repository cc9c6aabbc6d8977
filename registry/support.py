"""What may be claimed of a request at most: one rule, for closing and reopening it, for `verify` and for bundles."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from .canon import parse
from .errors import BrokenRegistry
from .tables import Tables, need
from .types import ClaimLevel

LEVELS: tuple[ClaimLevel, ...] = get_args(ClaimLevel)
"""From the least to the most."""
METHODS: Mapping[str, ClaimLevel] = {"merge": "consolidated", "retrain": "erased", "shard": "erased"}
"""What a way to make another base shows of the requests that it was made for, if its audit measured them."""


@dataclass(frozen=True, slots=True)
class Served:
    """What the active releases of all channels serve."""

    bases: frozenset[str]
    compositions: frozenset[str]


def served(db: Tables) -> Served:
    """Read one row for each active release, and its composition."""
    compositions = frozenset(row["composition"] for row in db.find("release", state="ACTIVE"))
    bases = frozenset(need(db, "composition", digest)["base"] for digest in compositions)
    return Served(bases, compositions)


def supported(db: Tables, request_id: str, now: Served | None = None) -> ClaimLevel | None:
    """The most that can be claimed of a request; `now`, where the caller has it, is what is served."""
    now = served(db) if now is None else now
    pairs = db.find("adapter_request", order="adapter", request=request_id)
    mine = [pair["adapter"] for pair in pairs]
    before = {need(db, "adapter", adapter)["base"] for adapter in mine}
    recorded = db.find("evidence", request=request_id)
    levels = {row["level"] for row in recorded if counts(parse(row["record"]), before, now.bases)}
    if any(db.get("composition_part", digest, one) for digest in now.compositions for one in mine):
        levels.add("suppressed")
    return highest(levels)


def counts(record: Any, before: Iterable[str], served: Iterable[str]) -> bool:
    """Whether evidence counts: no channel serves the base that it replaces or that adapters were trained on."""
    return {*before, record.get("replaces")}.isdisjoint({*served} - {record["artefact"]})


def highest(levels: Iterable[str]) -> ClaimLevel | None:
    """The most of these levels; None of none."""
    found = set(levels)
    return next((level for level in reversed(LEVELS) if level in found), None)


def rank(level: str | None) -> int:
    """Where a level stands; -1 for none. Raises BrokenRegistry for another word."""
    if level is not None and level not in LEVELS:
        raise BrokenRegistry("a level of claims", "another word", "Run `efface verify`.")
    return -1 if level is None else [str(one) for one in LEVELS].index(level)


def check_claim(claim: str | None, shown: str | None) -> None:
    """Raise BrokenRegistry where a request was closed with more than its evidence showed."""
    if claim is None or rank(claim) > rank(shown):
        came = f"{claim or 'no claim'}, where the evidence shows {shown or 'nothing'}"
        raise BrokenRegistry("a claim that the evidence shows", came, "Look at who closed the request.")


def check_raised(claim: str | None, before: str | None, shown: str | None) -> None:
    """Raise BrokenRegistry where the claim of a closed request was not raised, or beyond what its evidence showed."""
    check_claim(claim, shown)
    if before is None or rank(claim) <= rank(before):
        came = f"{claim} after {before or 'none'}"
        raise BrokenRegistry("a higher claim of a closed request", came, "Look at who raised it.")


def passed_over(db: Tables, adapters: Iterable[str], measured: Collection[str] | None) -> list[str]:
    """The requests of a composition's adapters whose rows are there and that its audit did not measure, sorted.

    None for `measured` is an audit of before audits named their requests: it is taken at its word.
    """
    if measured is None:
        return []
    pairs = [pair for one in adapters for pair in db.find("adapter_request", adapter=one)]
    asked = {pair["request"] for pair in pairs} - set(measured)
    return sorted(one for one in asked if need(db, "forget_request", one)["shredding_at"] is None)


def check_covered(lacking: Collection[str]) -> None:
    """Raise BrokenRegistry where an audit passed over requests of what was released on it."""
    if lacking:
        came = f"one that passed over {', '.join(lacking)}"
        raise BrokenRegistry(
            "an audit of every request that has its rows", came, "Look at who approved the release."
        )


def check_release(release: Mapping[str, Any], quantization: str, audit: Mapping[str, Any]) -> None:
    """Raise BrokenRegistry unless the audit passed, is of what is released, at the precision it is served in.

    `release` has the digest under `composition`.
    """
    if audit["composition"] != release["composition"]:
        came = f"an audit of {audit['composition']}"
    elif audit["precision"] != quantization:
        came = f"an audit at {audit['precision']}"
    elif audit["verdict"] != "pass":
        came = "an audit that failed"
    else:
        return
    expected = f"a passing audit of {release['composition']} at {quantization}"
    raise BrokenRegistry(expected, came, "Look at who approved the release.")


def check_approver(two_person: int | None, creator: str, approver: str) -> None:
    """Raise BrokenRegistry where the channel's rule asks for two people, and one let its own release through."""
    if two_person and same_actor(creator, approver):
        expected = "an approval by somebody else than who created the release"
        raise BrokenRegistry(expected, "its creator's own", "Look at who approved it.")


def same_actor(one: str, other: str) -> bool:
    """Whether two actors are the same name, but for case and spaces."""
    return one.casefold().split() == other.casefold().split()


def level_of(
    method: str, request_id: str, measured: Collection[str] | None, *, shredded: bool
) -> ClaimLevel | None:
    """What a base that was made by `method` and passed its audit shows of a request; None for nothing.

    `measured` are the requests that the audit measured. All that the method can show, if this one is among them. If
    its rows were `shredded` before, nobody can measure that base any more: as much as an adapter shows whose stack
    passes without it, *suppressed*. Audits of before did not say (None), and were taken at their word.
    """
    level = METHODS.get(method)
    if level is None or measured is None or request_id in measured:
        return level
    return "suppressed" if shredded else None


def check_evidence(
    record: Mapping[str, Any],
    alone: str,
    audit: Mapping[str, Any],
    measured: Collection[str] | None,
    *,
    shredded: bool,
) -> None:
    """Raise BrokenRegistry unless the evidence shows the level, and the audit passed and is of that base alone."""
    shown = level_of(record["method"], record["request"], measured, shredded=shredded)
    if shown is None or shown != record["level"]:
        raise BrokenRegistry("the level that the evidence shows", "another", "Look at who recorded it.")
    if audit["verdict"] != "pass" or audit["composition"] != alone:
        came = f"one that is {audit['verdict']} and of {audit['composition']}"
        raise BrokenRegistry(f"a passing audit of {alone}", came, "Look at who recorded the evidence.")
