"""The part of `verify` that needs keys: signed checkpoints against the events, attestations against the ledger.

Keys come from the replayed events, never from a table. Whoever rewrites events has to forge a root that somebody
signed; a checkpoint that an outsider kept (`witness`) holds even against someone who has the signing key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from . import approvals, attest, checkpoints, dsse, keys, log_checkpoints, merkle, statements
from .blob_store import BlobStore
from .canon import parse
from .checkpoints import Checkpoint, TreeHead
from .errors import GateFailed, RegistryError
from .log_checkpoints import SignedCheckpoint
from .merkle import Frontier
from .signatures import REVOKED, Known, accepted
from .snapshot import DAMAGE, said
from .tables import Row, Tables
from .trust import TrustedKey
from .types import Event, Problem


def known_keys(tables: Tables, events: Iterable[Event]) -> Known:
    """The keys of these events and of the tables that they give. A damaged record is left out."""
    found = (_key(row) for row in tables.find("signing_key"))
    added = {event.subject_id: event.seq for event in events if event.kind == "key.added"}
    return Known([key for key in found if key is not None], added)


def check_checkpoints(
    rows: Sequence[Row],
    events: Sequence[Event],
    known: Known | None,
    witness: Sequence[TreeHead | Checkpoint] = (),
) -> tuple[list[Problem], int]:
    """What is wrong with the stored checkpoints and with those an outsider kept, and how many there are.

    Without keys (the events could not be replayed) only the roots are compared.
    """
    problems: list[Problem] = []
    read: list[SignedCheckpoint] = []
    for row in rows:
        try:
            read.append(log_checkpoints.stored(row))
        except DAMAGE as error:
            where = f"checkpoint {row['tree_size']}"
            problems.append(Problem("checkpoint", where, "a checkpoint as it was stored", said(error)))
    sizes = {one.tree_size for one in (*(signed.checkpoint for signed in read), *witness)}
    roots = _roots(events, sizes)
    for signed in read:
        problems += _root_problem(signed.checkpoint, roots, len(events), "checkpoint")
    if known is not None:
        problems += _refused(read, known)
    problems += _unrecorded(rows, events, {problem.where for problem in problems})
    for kept in witness:
        problems += _root_problem(kept, roots, len(events), "witness")
    return problems, len(rows) + len(witness)


def check_attestations(tables: Tables, known: Known, blobs: BlobStore) -> Iterator[Problem]:
    """Each recorded statement: its envelope, who signed it, and that it says what the ledger says."""
    refused: list[tuple[Row, Problem]] = []
    good: set[tuple[str, str, str]] = set()
    for row in tables.find("attestation", order="seq"):
        found = _attestation(tables, known, blobs, row)
        if found is None:
            good.add(_about(row))
        elif found.found == REVOKED:
            refused.append((row, found))
        else:
            yield found
    yield from (problem for row, problem in refused if _about(row) not in good)


def _unrecorded(rows: Sequence[Row], events: Sequence[Event], named: set[str]) -> Iterator[Problem]:
    """Checkpoints that differ from what their events record. Before the first such event there were none to miss."""
    recorded = {event.subject_id: event for event in events if event.kind == log_checkpoints.SIGNED}
    since = min((event.seq for event in recorded.values()), default=len(events) + 1)
    stored = {str(row["tree_size"]): row for row in rows}
    for size in sorted(stored.keys() | recorded.keys(), key=lambda text: (len(text), text)):
        where, row, event = f"checkpoint {size}", stored.get(size), recorded.get(size)
        if row is None and event is not None:
            yield Problem("checkpoint", where, f"the checkpoint that event {event.seq} records", "none")
        elif row is None or where in named:
            continue
        elif event is None and row["tree_size"] >= since:
            yield Problem("checkpoint", where, "an event that records it", "none")
        elif event is not None and _differs(row, event):
            yield Problem("checkpoint", where, f"the checkpoint that event {event.seq} records", "another")


def _differs(row: Row, event: Event) -> bool:
    return log_checkpoints.recorded(row["root"], row["envelope"], row["note"]) != dict(
        cast(Mapping[str, Any], event.body)
    )


def _refused(read: Sequence[SignedCheckpoint], known: Known) -> list[Problem]:
    """Checkpoints whose signature does not count; one under a larger one that does is merely superseded."""
    problems: list[tuple[int, Problem]] = []
    best = -1
    for signed in read:
        size = signed.checkpoint.tree_size
        found = _signature_problem(signed, known)
        if found is None:
            best = max(best, size)
        else:
            problems.append((size, found))
    return [found for size, found in problems if found.found != REVOKED or size > best]


def _signature_problem(signed: SignedCheckpoint, known: Known) -> Problem | None:
    made = signed.checkpoint
    try:
        envelope = dsse.parse(signed.envelope.encode())
        accepted(envelope, known, "log", made.at, made.tree_size, checkpoints.PAYLOAD_TYPE)
        log_checkpoints.check_signatures(signed, known.keys)
    except DAMAGE as error:
        expected = error.expected if isinstance(error, RegistryError) else "a signature"
        return Problem("signature", f"checkpoint {made.tree_size}", expected, said(error))
    return None


def _root_problem(
    made: Checkpoint | TreeHead, roots: Mapping[int, str], events: int, name: str
) -> Iterator[Problem]:
    where = f"{name} {made.tree_size}"
    if made.tree_size > events:
        yield Problem("checkpoint", where, f"{made.tree_size} events", f"{events}")
    elif (found := roots[made.tree_size]) != made.root:
        yield Problem("checkpoint", where, f"root {made.root}", found)


def _roots(events: Sequence[Event], sizes: Iterable[int]) -> dict[int, str]:
    """The root at each size, in one pass over the hashes."""
    found: dict[int, str] = {}
    frontier = Frontier()
    for size in sorted(size for size in sizes if size <= len(events)):
        frontier = frontier.extend(_leaf(event.hash) for event in events[frontier.size : size])
        found[size] = merkle.text_of(frontier.root)
    return found


def _leaf(event_hash: str) -> bytes:
    """A damaged hash still is a leaf: of a tree with another root."""
    try:
        return bytes.fromhex(event_hash.removeprefix("sha256:"))
    except ValueError:
        return event_hash.encode("utf-8", "surrogateescape")


def _attestation(tables: Tables, known: Known, blobs: BlobStore, row: Row) -> Problem | None:
    digest, kind = row["digest"], row["about_kind"]
    try:
        if blobs.size(digest) is None:  # the missing blob is named already
            return None
        envelope = dsse.parse(blobs.read(digest))
        signed = accepted(
            envelope, known, approvals.ROLES[kind], row["at"], row["seq"], statements.PAYLOAD_TYPE
        )
        if list(signed) != sorted(cast(list[str], parse(row["keys"]))):
            raise GateFailed("the keys that the ledger names", "others", "")
        approvals.check(kind, _described(tables, row), envelope.payload)
    except DAMAGE as error:
        expected = error.expected if isinstance(error, RegistryError) else "a signed statement"
        return Problem("signature", f"attestation {digest}", expected, said(error))
    return None


def _described(tables: Tables, row: Row) -> Mapping[str, Any]:
    """What was so when it was signed: a release keeps its audit, adapters and audits never change."""
    return attest.described(tables, row["about_kind"], row["about_id"])


def _about(row: Row) -> tuple[str, str, str]:
    return row["about_kind"], row["about_id"], row["predicate"]


def _key(row: Row) -> TrustedKey | None:
    try:
        return keys.key_of(row)
    except RegistryError:
        return None
