"""What a composition is without some requests: as if they had never been added.

An adapter of those requests alone leaves. A compaction leaves too, and the originals of the requests that stay come
back in its place. Nothing is subtracted from weights.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from . import compactions, compositions, release_rows
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


def removal(
    db: Tables, composition: Composition, removing: Set[str], *, drop_repairs: bool = False
) -> Removal:
    """The composition less these requests; with `drop_repairs` also less each repair that was trained on what goes.

    Whether it may be released is another question: `release_checks.trained_on`. Raises InvalidInput for requests that
    are not in it (naming those that are), or that share an adapter with one that stays.
    """
    held = {request for found in release_rows.members(db, composition).values() for request in found}
    if not removing or removing - held:
        known = [row["id"] for row in db.find("forget_request", id=frozenset(removing - held))]
        came = ", ".join(known) or ("unknown ids" if removing else "none")
        raise InvalidInput(f"requests of the release ({', '.join(sorted(held))})", came, "Name some of them.")
    parts = [kept for part in composition.parts for kept in compactions.left_of(db, part, set(removing))]
    if all(compactions.is_balance(compactions.manifest_of(db, part.adapter)) for part in parts):
        parts = []  # of a stack that is gone
    left = compositions.compose(composition.base, composition.quantization, parts, composition.render)
    dropped: set[str] = set()
    while drop_repairs and (more := _loose_repairs(db, left, _gone(db, composition, left))):
        left, dropped = compositions.without(left, more), dropped | more
    return Removal(
        left,
        tuple(sorted(_gone(db, composition, left))),
        tuple(sorted(set(left.adapters) - set(composition.adapters))),
        tuple(sorted(dropped)),
    )


def _gone(db: Tables, before: Composition, after: Composition) -> set[str]:
    return compactions.everything(db, before.adapters) - compactions.everything(db, after.adapters)


def _loose_repairs(db: Tables, left: Composition, gone: set[str]) -> set[str]:
    """Repairs in what is left that were trained on what is gone."""
    return {
        adapter
        for adapter in left.adapters
        if compactions.is_repair(compactions.manifest_of(db, adapter))
        and compactions.beneath(db, adapter) & gone
    }
