"""The events of a bundle and their place in the ledger; the checkpoints over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from . import bundle_members, checkpoints, checks, dsse, ledger, log_checkpoints, merkle
from .bundle_members import mapping, records
from .canon import canonical, parse
from .errors import GateFailed, InvalidInput
from .log_checkpoints import SignedCheckpoint
from .signatures import Known, accepted
from .types import Event

_FIX = "Ask for the bundle again."


@dataclass(frozen=True, slots=True)
class Withheld:
    """An event of which a bundle holds the hash alone."""

    seq: int
    hash: str
    request: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """Events that were proven to be in the tree of `tree_size` events under `root`."""

    tree_size: int
    root: str
    events: tuple[Event, ...]
    withheld: tuple[Withheld, ...]
    hashes: tuple[str, ...] | None
    """All of them, in place of audit paths."""


EMPTY = Ledger(0, merkle.text_of(merkle.EMPTY_ROOT), (), (), ())


def read_ledger(record: Mapping[str, Any]) -> Ledger:
    """The proven events in `ledger.json`. Raises GateFailed for the first that is not, InvalidInput for the shape."""
    names = {"tree_size", "root", "events", "withheld"}
    if set(record) not in (names, names | {"hashes"}):
        raise InvalidInput("the fields of a ledger", "others", _FIX)
    size, root = checks.count(record["tree_size"], "tree size", 1), checks.digest(record["root"], "root")
    hashes = _hashes(record["hashes"], size, root) if "hashes" in record else None
    shown, withheld = records(record["events"], "events"), records(record["withheld"], "withheld")
    events = tuple(_event(entry) for entry in shown)
    hidden = tuple(_withheld(entry) for entry in withheld)
    for found, entries in ((events, shown), (hidden, withheld)):
        for one, entry in zip(found, entries, strict=True):
            _check_place(one.seq, one.hash, entry, size, root, hashes)
    _check_order(events, hidden, hashes)
    return Ledger(size, root, events, hidden, hashes)


def read_checkpoints(
    entries: Sequence[Mapping[str, Any]], found: Ledger, known: Known
) -> list[SignedCheckpoint]:
    """The checkpoints, smallest first: signed by keys that might, of the same ledger. Raises GateFailed, InvalidInput.

    With audit paths the last one is of the whole tree; without one a bundle has all hashes.
    """
    read = [_checkpoint(entry, found, known) for entry in entries]
    sizes = [one.checkpoint.tree_size for one in read]
    if sizes != sorted(set(sizes)) or len({one.checkpoint.origin for one in read}) > 1:
        raise GateFailed("growing checkpoints of one log", "others", _FIX)
    if found.hashes is None and (not sizes or sizes[-1] != found.tree_size):
        raise GateFailed("a checkpoint of the whole tree", "none", _FIX)
    return read


def _event(entry: Mapping[str, Any]) -> Event:
    """An event whose hash is that of what it says."""
    event = bundle_members.event_of(mapping(entry["event"], "event"))
    if ledger.hash_of(event) != event.hash:
        raise GateFailed(f"the hash of event {event.seq}", "another", _FIX)
    return event


def _withheld(entry: Mapping[str, Any]) -> Withheld:
    request = checks.token(entry["request"], "request")
    return Withheld(checks.count(entry["seq"], "seq", 1), checks.digest(entry["hash"], "hash"), request)


def _hashes(value: Any, size: int, root: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(cast(list[Any], value)) != size:
        raise InvalidInput("the hash of every event", "another number", _FIX)
    leaves = [merkle.leaf_of(text) for text in cast(list[Any], value)]
    if merkle.text_of(merkle.root(leaves)) != root:
        raise GateFailed("the root of these hashes", "another", _FIX)
    return tuple(cast(list[str], value))


def _check_place(
    seq: int, event_hash: str, entry: Mapping[str, Any], size: int, root: str, hashes: Sequence[str] | None
) -> None:
    own = {"event"} if "event" in entry else {"seq", "hash", "request"}
    if set(entry) != (own if hashes is not None else own | {"path"}):
        raise InvalidInput("an event with its place", "other fields", _FIX)
    if hashes is not None:
        held = seq <= size and hashes[seq - 1] == event_hash
    else:
        leaf, top = merkle.leaf_of(event_hash), merkle.leaf_of(root)
        held = merkle.verify_inclusion(leaf, seq - 1, size, _path(entry), top)
    if not held:
        raise GateFailed(f"event {seq} in the ledger", "no proof of it", _FIX)


def _check_order(events: Sequence[Event], hidden: Sequence[Withheld], hashes: Sequence[str] | None) -> None:
    """Each event once, in order, and linked to the one before where that one is known."""
    for places in ([event.seq for event in events], [one.seq for one in hidden]):
        if places != sorted(set(places)):
            raise GateFailed("each event once, in order", "another order", _FIX)
    known = {event.seq: event.hash for event in events}
    if known.keys() & {one.seq for one in hidden}:
        raise GateFailed("each event once", "one that is shown and withheld", _FIX)
    known |= {one.seq: one.hash for one in hidden} | {0: ledger.GENESIS}
    known |= dict(enumerate(hashes, 1)) if hashes is not None else {}
    for event in events:
        if event.prev_hash != known.get(event.seq - 1, event.prev_hash):
            raise GateFailed(f"event {event.seq} after the one before it", "another link", _FIX)


def _checkpoint(entry: Mapping[str, Any], found: Ledger, known: Known) -> SignedCheckpoint:
    if set(entry) != ({"envelope", "note"} | (set() if found.hashes is not None else {"path"})):
        raise InvalidInput("an envelope, a note and a proof", "other fields", _FIX)
    text = canonical(entry["envelope"])
    envelope = dsse.parse(text)
    if envelope.to_json() != text or not isinstance(entry["note"], str):
        raise InvalidInput("an envelope as it was written, and a note", "others", _FIX)
    made = checkpoints.of_record(mapping(parse(envelope.payload), "checkpoint"))
    keys = accepted(envelope, known, "log", made.at, made.tree_size, checkpoints.PAYLOAD_TYPE)
    signed = SignedCheckpoint(made, text.decode(), entry["note"], keys)
    log_checkpoints.check_signatures(signed, [key for key in known.keys if key.key_id in keys])
    if sorted(signature.key_id for signature in envelope.signatures) != list(keys):
        raise GateFailed("an envelope that names the keys that signed", "other names", _FIX)
    if not _is_prefix(made.tree_size, made.root, entry, found):
        raise GateFailed(f"a checkpoint of {made.tree_size} events of this ledger", "one of another", _FIX)
    return signed


def _is_prefix(size: int, root: str, entry: Mapping[str, Any], found: Ledger) -> bool:
    if found.hashes is not None:
        leaves = (merkle.leaf_of(text) for text in found.hashes[:size])
        return size <= found.tree_size and merkle.text_of(merkle.root(leaves)) == root
    roots = merkle.leaf_of(root), merkle.leaf_of(found.root)
    return merkle.verify_consistency(size, found.tree_size, *roots, _path(entry))


def _path(entry: Mapping[str, Any]) -> list[bytes]:
    value = entry["path"]
    if not isinstance(value, list) or len(cast(list[Any], value)) > 128:
        raise InvalidInput("a proof of hashes", "another value", _FIX)
    return [merkle.leaf_of(node) for node in cast(list[Any], value)]
