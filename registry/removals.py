"""What a composition is without some requests: as if they had never been added.

An adapter of those requests alone leaves. A compaction leaves too, and the originals of the requests that stay come
back in its place. Nothing is subtracted from weights.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from . import audits, compactions, compositions, release_rows
from .errors import InvalidInput
from .tables import Tables
from .types import Composition


@dataclass(frozen=True, slots=True)
class Removal:
    """`composition` is what is left. `gone`: adapters that are in it no more, alone or inside a compaction;
    `restored`: originals that come back for a compaction; `repairs`: those of `gone` that only repaired the stack.
    """

    composition: Composition
    gone: tuple[str, ...]
    restored: tuple[str, ...]
    repairs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WholeRemoval:
    """The least removal that nothing left stands in the way of: which requests leave, and whether repairs have to be
    dropped for it (`drop_repairs`)."""

    requests: tuple[str, ...]
    drop_repairs: bool
    removal: Removal


def removal(
    db: Tables, composition: Composition, removing: Set[str], *, drop_repairs: bool = False
) -> Removal:
    """The composition less these requests; with `drop_repairs` also less each repair that was trained on what goes.

    A repair leaves a compaction as a request does: by the other originals. Whether what is left may be released is
    another question: `release_checks.trained_on`. Raises InvalidInput for requests that are not in it (naming those
    that are), or that share an adapter with one that stays.
    """
    held = {request for found in release_rows.members(db, composition).values() for request in found}
    if not removing or removing - held:
        known = [row["id"] for row in db.find("forget_request", id=frozenset(removing - held))]
        came = ", ".join(known) or ("unknown ids" if removing else "none")
        raise InvalidInput(f"requests of the release ({', '.join(sorted(held))})", came, "Name some of them.")
    if more := sorted(_sharing(db, composition, removing) - removing):
        came = f"some that share an adapter, which also forgets {', '.join(more)}"
        raise InvalidInput("every request of the adapters that go", came, "Name those requests too.")
    dropped: set[str] = set()
    left = _left(db, composition, removing, dropped)
    while drop_repairs and (more := _loose(db, left, _gone(db, composition, left))[0]):
        dropped |= more
        left = _left(db, composition, removing, dropped)
    return Removal(
        left,
        tuple(sorted(_gone(db, composition, left))),
        tuple(sorted(set(left.adapters) - set(composition.adapters))),
        tuple(sorted(dropped)),
    )


def whole_removal(db: Tables, composition: Composition, removing: Set[str]) -> WholeRemoval:
    """The least removal with these requests after which nothing that stays was trained on what is gone.

    It grows until that holds: who shares an adapter with one that leaves, leaves too; a repair or balance that stands
    on what is gone is dropped, of any other adapter the requests leave too. Every request that it adds has to go: its
    adapter could not stay whatever else went. It ends early where what is left has passed an audit: that may be
    released as it is. Raises InvalidInput for requests that are not in it.
    """
    going = _sharing(db, composition, removing)
    while True:
        found = removal(db, composition, going, drop_repairs=True)
        _, held = _loose(db, found.composition, set(found.gone))
        more = {request for one in held for request in compactions.manifest_of(db, one)["requests"]}
        if not more or audits.passed(db, found.composition):
            return WholeRemoval(tuple(sorted(going)), bool(found.repairs), found)
        going = _sharing(db, composition, going | more)


def _left(db: Tables, composition: Composition, removing: Set[str], dropped: Set[str]) -> Composition:
    parts = [kept for part in composition.parts for kept in compactions.left_of(db, part, removing, dropped)]
    if all(compactions.is_balance(compactions.manifest_of(db, part.adapter)) for part in parts):
        parts = []  # of a stack that is gone
    return compositions.compose(composition.base, composition.quantization, parts, composition.render)


def _gone(db: Tables, before: Composition, after: Composition) -> set[str]:
    return compactions.everything(db, before.adapters) - compactions.everything(db, after.adapters)


def _loose(db: Tables, left: Composition, gone: set[str]) -> tuple[set[str], set[str]]:
    """What in the adapters that are left, compactions included, was itself trained on what is gone: the repairs (and
    balances), and the others."""
    repairs, others = set[str](), set[str]()
    for one in sorted(compactions.everything(db, left.adapters)):
        manifest = compactions.manifest_of(db, one)
        if not compactions.originals(manifest) and compactions.beneath(db, one) & gone:
            (repairs if compactions.is_repair(manifest) else others).add(one)
    return repairs, others


def _sharing(db: Tables, composition: Composition, removing: Set[str]) -> set[str]:
    """These requests, and every one that shares an adapter with one of them: they leave together."""
    alone = [
        set(manifest["requests"])
        for one in compactions.everything(db, composition.adapters)
        if not compactions.originals(manifest := compactions.manifest_of(db, one))
    ]
    going = set(removing)
    while more := {name for held in alone if held & going for name in held} - going:
        going |= more
    return going
