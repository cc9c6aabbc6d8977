"""Re-derive everything from the events and report each place that differs.

`verify` trusts nothing it reads: a damaged database, event, row, blob, signature or vault entry becomes a `Problem`,
never a crash. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from . import projections, snapshot, vault_binding, verify_signatures, verify_vault
from .canon import Digest, digest_bytes, digest_json
from .checkpoints import Checkpoint, TreeHead
from .errors import BrokenRegistry, RegistryError
from .ledger import GENESIS
from .registry import Registry
from .snapshot import DAMAGE, Snapshot, said
from .tables import PROJECTIONS, MemoryTables, Row, need
from .types import Event, Problem, Verification
from .verify_reopened import Reopenings

_IDENTIFIED_BY = {"adapter.sealed": "manifest", "audit.recorded": "record", "evidence.recorded": "record"}


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the events say there should be."""

    tables: MemoryTables
    problems: Sequence[Problem]


def verify(
    reg: Registry, *, deep: bool = False, witness: Sequence[TreeHead | Checkpoint] = ()
) -> Verification:
    """Check database, schema, hash chain, projections, signatures, blobs and vault; `deep` re-reads every byte.

    Problems come in that order; of the events the first one named is the first bad one. A copy without a
    vault folder (an auditor's) is not missing it; with one, every request must have its entry or the mark of its
    shredding, and a `deep` check decrypts them where the master key is at hand: `vault_checked` and `vault_unchecked`
    say how many it opened. Another vault than the events name is a problem (open the registry with `any_vault`). Blobs
    that no event names are leftovers of a crash, not damage: `extras` lists them, and `efface gc` removes them; it
    lists files that belong to nothing too, for a person to look at.

    Every stored checkpoint must be signed by a key trusted then, and its root be that of its events. `witness` are
    checkpoints that someone outside kept (verify their signatures first): they hold even where those stored here
    were removed or signed anew.
    """
    stored = snapshot.take(reg)
    expected = _replay(stored.events)
    problems = [*stored.problems, *_head(stored), *expected.problems]
    if not expected.problems:
        problems += _differences(stored.tables, expected.tables)
    whole = not expected.problems
    known = verify_signatures.known_keys(expected.tables, stored.events) if whole else None
    found, checkpoints = verify_signatures.check_checkpoints(
        stored.checkpoints, stored.events, known, witness
    )
    problems += found
    if known is not None:
        problems += verify_signatures.check_attestations(expected.tables, known, reg.blobs)
    blobs = {row["digest"]: row for row in expected.tables.find("blob")}
    here, found = _listed(reg)
    problems += [*found, *(_blob_problems(reg, blobs, here, deep) if here is not None else ())]
    requests = expected.tables.find("forget_request")
    named = vault_binding.named_by(stored.events)
    vault = verify_vault.check(reg, requests, deep=deep, vault=named)
    problems += vault.problems
    held = {digest for digest, row in blobs.items() if row["uses"] > 0}
    extras: tuple[str, ...] = ()
    if deep:
        unnamed = (digest for digest in sorted(here or ()) if digest not in held)
        extras = (*unnamed, *verify_vault.strays(reg, requests))
    return Verification(
        len(stored.events), len(held), tuple(problems), extras, checkpoints, vault.opened, vault.unopened
    )


def _replay(events: Sequence[Event]) -> _Expected:
    """The projections, in memory; it stops at the first event that cannot follow the others."""
    tables, reopenings = MemoryTables(), Reopenings()
    for event in events:
        try:
            projections.apply(tables, event)
            _check_identity(tables, event)
            reopenings.event(tables, event)
        except DAMAGE as error:
            where = f"event {event.seq}"
            return _Expected(tables, [Problem("replay", where, "an event that can follow", said(error))])
    try:
        reopenings.settle(tables)
    except DAMAGE as error:
        where = f"event {len(events)}"
        return _Expected(tables, [Problem("replay", where, "a ledger that can end here", said(error))])
    return _Expected(tables, [])


def _check_identity(tables: MemoryTables, event: Event) -> None:
    """An adapter's or audit's id is the digest of what its event describes."""
    if (name := _IDENTIFIED_BY.get(event.kind)) is None:
        return
    if name == "manifest":  # its row holds the canonical text: no need to write it again
        found = digest_bytes(need(tables, "adapter", event.subject_id)["manifest"].encode())
    else:
        found = digest_json(cast(Mapping[str, Any], event.body).get(name))
    if found != event.subject_id:
        raise BrokenRegistry(f"a description of {event.subject_id}", "another one", "Restore a backup.")


def _head(stored: Snapshot) -> Iterator[Problem]:
    """Whoever cuts off the newest events has to change the head too, and then signed checkpoints show it."""
    last = stored.events[-1] if stored.events else None
    wanted = {"id": 1, "seq": last.seq if last else 0, "hash": last.hash if last else GENESIS}
    if stored.readable and stored.head != wanted:
        yield Problem("head", "head", str(wanted), str(stored.head))


def _differences(stored: Mapping[str, Mapping[str, Row]], expected: MemoryTables) -> Iterator[Problem]:
    for table in (spec.name for spec in PROJECTIONS if spec.name in stored):
        found, wanted = stored[table], expected.dump(table)
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                yield Problem("projection", f"{table}[{key}]", *_apart(wanted.get(key), found.get(key)))


def _apart(wanted: Row | None, found: Row | None) -> tuple[str, str]:
    """The columns in which two rows differ, for people."""
    if wanted is None or found is None:
        return str(wanted or "no row"), str(found or "no row")
    names = [name for name in wanted if wanted[name] != found.get(name)]
    return str({name: wanted[name] for name in names}), str({name: found.get(name) for name in names})


def _listed(reg: Registry) -> tuple[dict[Digest, int] | None, list[Problem]]:
    """The size of each blob that is there; None where the store cannot be asked."""
    try:
        return {blob.digest: blob.size for blob in reg.blobs.stored()}, []
    except RegistryError as error:
        return None, [Problem("blobs", error.expected, "blobs that can be listed", error.came)]


def _blob_problems(
    reg: Registry, referenced: Mapping[str, Row], here: Mapping[Digest, int], deep: bool
) -> Iterator[Problem]:
    for digest in sorted(referenced):
        if referenced[digest]["uses"] == 0:
            continue
        size, found = referenced[digest]["size"], here.get(Digest(digest))
        if found is None:
            yield Problem("blob-missing", digest, f"{size} bytes", "no file")
        elif found != size:
            yield Problem("blob-damaged", digest, f"{size} bytes", f"{found} bytes")
    for digest in sorted(here) if deep else ():
        if (actual := reg.blobs.digest_of(digest)) != digest:
            yield Problem("blob-damaged", digest, digest, actual)
