"""Compactions: one adapter made from several, as a log-structured store makes one file of many.

A compaction is an adapter of kind `consolidated`. (The *claim* `consolidated` is another thing: it needs a merged base.
A compaction suppresses, like what it was made from.) Its `facts["made_from"]` maps each original's digest to the
weight it went in with. The originals stay: a request leaves a compaction by going back to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from typing import Any, cast

from . import canon, checks
from .canon import parse
from .errors import BrokenRegistry, InvalidInput
from .tables import Row, Tables
from .types import Part

KIND = "consolidated"
MADE_FROM = "made_from"
REPAIRS = "repairs"
BALANCES = "balances"
_ORIGINALS = ("trained", KIND)
_IN_USE = ("SEALED", "QUALIFIED")


def manifest_of(db: Tables, digest: str) -> Mapping[str, Any]:
    """The manifest of a sealed adapter. Raises BrokenRegistry: what is sealed names only what is sealed."""
    row = db.get("adapter", digest)
    if row is None:
        raise BrokenRegistry(f"adapter {digest}", "none of that digest", "Run `efface verify`.")
    return _manifest(row)


def originals(manifest: Mapping[str, Any]) -> tuple[Part, ...]:
    """What a compaction was made from, sorted; nothing for any other adapter."""
    found: Mapping[str, str] = manifest["facts"].get(MADE_FROM, {}) if manifest["kind"] == KIND else {}
    return tuple(Part(canon.Digest(adapter), found[adapter]) for adapter in sorted(found))


def is_repair(manifest: Mapping[str, Any]) -> bool:
    """Whether this adapter was trained to put a stack right: to forget again what that let come back, or as its
    balance, to keep what that broke."""
    facts = manifest["facts"]
    return manifest["kind"] == "trained" and bool(facts.get(REPAIRS) or facts.get(BALANCES))


def is_balance(manifest: Mapping[str, Any]) -> bool:
    """Whether this adapter forgets nothing of its own and keeps what a stack would break: it names no request."""
    return manifest["kind"] == "trained" and bool(manifest["facts"].get(BALANCES))


def everything(db: Tables, digests: Iterable[str]) -> set[str]:
    """These adapters, and all that they were made from, at every level."""
    found: set[str] = set()
    waiting = list(digests)
    while waiting:
        digest = waiting.pop()
        if digest not in found:
            found.add(digest)
            waiting += [part.adapter for part in originals(manifest_of(db, digest))]
    return found


def beneath(db: Tables, digest: str) -> set[str]:
    """The adapters that this one, or what it was made from, was trained on top of, as far as they are not in it."""
    within = everything(db, [digest])
    policies = {manifest_of(db, one)["trained_on"] for one in within} - {None}
    below = {part["adapter"] for on in policies for part in db.find("composition_part", composition=on)}
    return everything(db, below) - within


def left_of(db: Tables, part: Part, removing: Set[str], dropping: Set[str] = frozenset()) -> list[Part]:
    """What stays of one part when these requests, and the adapters `dropping`, leave: itself, nothing, or what it was
    made from less them.

    Raises InvalidInput for an adapter that forgets others too and was not made from any.
    """
    if part.adapter in dropping:
        return []
    manifest = manifest_of(db, part.adapter)
    held = set(manifest["requests"])
    leaving, made_from = held & removing, originals(manifest)
    if not leaving and not (made_from and dropping and everything(db, [part.adapter]) & dropping):
        return [part]
    if leaving and held <= removing:
        return []
    if not made_from:
        came = f"adapter {part.adapter}, which also forgets {', '.join(sorted(held - removing))}"
        raise InvalidInput("every request of the adapters that go", came, "Name those requests too.")
    return [
        kept
        for one in made_from
        for kept in left_of(db, Part(one.adapter, _times(part.weight, one.weight)), removing, dropping)
    ]


def check_apart(db: Tables, part: Part) -> None:
    """Raise InvalidInput where a compaction at this weight would not come apart: a request could not leave it."""
    for one in originals(manifest_of(db, part.adapter)):
        try:
            check_apart(db, Part(one.adapter, _times(part.weight, one.weight)))
        except InvalidInput as error:
            expected = f"a weight of {part.adapter} by which its originals have weights of at most 18 digits"
            raise InvalidInput(expected, part.weight, "Round it.") from error


def check(db: Tables, manifest: Mapping[str, Any]) -> None:
    """Raise InvalidInput unless what a new compaction says it was made from can take its place."""
    named: Any = manifest["facts"].get(MADE_FROM)
    if manifest["kind"] != KIND or named is None:
        return
    if not isinstance(named, Mapping) or len(named) < 1:
        raise InvalidInput(f"facts.{MADE_FROM} as digest and weight of adapters", "none", "Name them.")
    for adapter, weight in cast("Mapping[str, Any]", named).items():
        row = db.get("adapter", checks.digest(adapter, "adapter"))
        if row is None or row["kind"] not in _ORIGINALS or row["state"] not in _IN_USE:
            came = f"{adapter}, {'unknown' if row is None else row['kind'] + ' and ' + row['state']}"
            raise InvalidInput("originals that are sealed and in use", came, "Leave it out.")
        if (row["base"], row["quantization"]) != (manifest["base"], manifest["quantization"]):
            expected = f"originals on base {manifest['base']} at {manifest['quantization']}"
            came = f"{adapter} on base {row['base']} at {row['quantization']}"
            raise InvalidInput(expected, came, "Leave it out: compact adapters of one base at a time.")
        if not isinstance(weight, str) or weight != canon.weight(weight) or weight == "0":
            raise InvalidInput(
                "the weight of an original as canonical decimal text", "another", "Correct it."
            )
    seen: set[str] = set()
    for adapter in named:
        if twice := seen & (within := everything(db, [adapter])):
            then = "Leave it out, or the compaction that it is in."
            raise InvalidInput("each original once, compactions included", min(twice), then)
        seen |= within
    held = {request for part in originals(manifest) for request in manifest_of(db, part.adapter)["requests"]}
    if held != set(manifest["requests"]):
        came = f"{len(manifest['requests'])} requests, where its originals forget {len(held)}"
        raise InvalidInput("the requests of its originals, all of them", came, "Name those.")


def compacted_into(db: Tables, digest: str) -> list[str]:
    """The compactions in use that were made from this adapter, oldest first."""
    rows = [row for state in _IN_USE for row in db.find("adapter", kind=KIND, state=state)]
    held = [row for row in rows if any(part.adapter == digest for part in originals(_manifest(row)))]
    return [row["digest"] for row in sorted(held, key=lambda row: row["seq"])]


def _manifest(row: Row) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", parse(row["manifest"]))


def _times(outer: str, inner: str) -> str:
    return canon.weight(Decimal(outer) * Decimal(inner))
