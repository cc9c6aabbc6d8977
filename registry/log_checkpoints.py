"""Signed checkpoints of the ledger, stored beside it, and proofs against them.

Publish a checkpoint where the registry's own administrators cannot reach it: from then on they cannot cut or rewrite
the events it covers without being found out (`verify` with it as a witness, or a consistency proof). Each one keeps
the frontier of its tree, so the next one reads only the events since.

That it was signed is an event itself, right behind the events that it covers: a stored checkpoint that is removed or
replaced is missed by `verify`. Those of before there was such an event are checked by their signatures alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import checkpoints, checks, dsse, keys, ledger, merkle, signing, trust
from .canon import JSON, canonical, digest_bytes, parse
from .checkpoints import Checkpoint
from .errors import BrokenRegistry, Conflict, GateFailed, InvalidInput, NotFound
from .merkle import Frontier
from .registry import Registry, Writer
from .tables import Row, Tables
from .trust import TrustedKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNED = "checkpoint.signed"
"""The kind of the event that records a checkpoint."""
_VERIFY = "Run `efface verify`; sign nothing before it is put right."


@dataclass(frozen=True, slots=True)
class SignedCheckpoint:
    """A stored checkpoint with its two signed forms. `list_checkpoints` gives what is stored: check it yourself."""

    checkpoint: Checkpoint
    envelope: str
    """DSSE envelope as canonical JSON."""
    note: str
    """Signed note (c2sp.org/tlog-checkpoint)."""
    keys: tuple[str, ...]
    """Key ids that the envelope names."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Merkle hashes for a tree of `tree_size` events: that event `seq` is in it, or that a smaller tree begins it."""

    tree_size: int
    root: str
    path: tuple[str, ...]
    seq: int | None = None
    event_hash: str | None = None
    first: int | None = None
    first_root: str | None = None

    def record(self) -> dict[str, JSON]:
        """The JSON object of it, without what it is not about."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


def make_checkpoint(
    reg: Registry, private: Ed25519PrivateKey, *, origin: str, actor: str = "checkpoint"
) -> SignedCheckpoint:
    """Sign the Merkle root of the ledger as it is now, store it, and record that as the next event.

    `origin` names the log (`example.com/efface`), the same each time. Where nothing but that event was appended since
    the last one, that one is returned. Raises KeyRefused for a key that the registry does not trust as `log`, Conflict
    for another origin than before, BrokenRegistry when the last checkpoint is not of these events: a log never signs
    two stories.
    """
    public = signing.public_pem(private)
    with reg.write(actor) as tx:
        known = keys.trusted_keys(tx.db)
        key = trust.allowed(known, signing.key_id(public), "log", tx.at)
        last = _newest_trusted(tx.db, known)
        if last is not None and last.checkpoint.origin != origin:
            came = f"another than {last.checkpoint.origin}"
            raise Conflict("the origin of the checkpoints before", came, "A log keeps its name.")
        frontier = _grown(tx.db, last)
        if last is not None and not _moved_on(tx.db, last.checkpoint.tree_size):
            return last
        checkpoint = Checkpoint(origin, frontier.size, merkle.text_of(frontier.root), tx.at)
        envelope = checkpoints.sign(checkpoint, [private]).to_json().decode()
        note = checkpoints.sign_note(checkpoint, private)
        _store(tx, checkpoint, frontier, envelope, note)
        ledger.append(tx, SIGNED, str(checkpoint.tree_size), recorded(checkpoint.root, envelope, note))
        return SignedCheckpoint(checkpoint, envelope, note, (key.key_id,))


def recorded(root: str, envelope: str, note: str) -> dict[str, JSON]:
    """What the event of a checkpoint says of it; the number of events it covers is the event's subject."""
    signed = {"envelope": envelope, "note": note}
    digests = {name: digest_bytes(text.encode(errors="surrogateescape")) for name, text in signed.items()}
    return {"root": root, **digests}


def list_checkpoints(reg: Registry) -> list[SignedCheckpoint]:
    """The stored checkpoints, smallest first; `verify` says whether they hold. Raises BrokenRegistry."""
    with reg.read() as db:
        return [stored(row) for row in db.find("checkpoint")]


def inclusion(reg: Registry, seq: int, tree_size: int | None = None) -> Proof:
    """The proof that event `seq` is among the first `tree_size` events (all of them by default).

    The root is computed, not signed: compare it with a checkpoint's. Raises InvalidInput, NotFound.
    """
    checks.count(seq, "seq", 1)
    tree, hashes = _tree(reg, tree_size)
    if seq > tree.size:
        raise NotFound(f"an event of the first {tree.size}", f"event {seq}", "Ask for a larger tree.")
    path = tuple(map(merkle.text_of, tree.inclusion(seq - 1)))
    root = merkle.text_of(tree.root)
    return Proof(tree.size, root, path, seq=seq, event_hash=hashes[seq - 1])


def consistency(reg: Registry, first: int, second: int | None = None) -> Proof:
    """The proof that the first `first` events are the beginning of the first `second` (all of them by default).

    Raises InvalidInput, NotFound for more events than there are.
    """
    tree, hashes = _tree(reg, second)
    path = tuple(map(merkle.text_of, tree.consistency(checks.count(first, "first size", 0))))
    before = merkle.text_of(merkle.root(merkle.leaf_of(text) for text in hashes[:first]))
    return Proof(tree.size, merkle.text_of(tree.root), path, first=first, first_root=before)


def stored(row: Row) -> SignedCheckpoint:
    """The checkpoint in a row, signatures not checked. Raises BrokenRegistry when its columns contradict each other."""
    where = f"checkpoint {row['tree_size']}"
    try:
        envelope = dsse.parse(row["envelope"].encode())
        record: Any = parse(envelope.payload)
        checkpoint = checkpoints.of_record(record)
        frontier = frontier_of(row)
        head = checkpoints.parse_note_text(row["note"].rpartition("\n\n")[0] + "\n")
    except (InvalidInput, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BrokenRegistry(f"{where} as it was stored", type(error).__name__, _VERIFY) from error
    columns = (row["tree_size"], row["root"], row["at"], row["envelope"], row["frontier"])
    written = (envelope.to_json().decode(), canonical(frontier.record()).decode())
    if columns != (checkpoint.tree_size, checkpoint.root, checkpoint.at, *written) or head != checkpoint.head:
        raise BrokenRegistry(f"{where} as it was signed", "other columns", _VERIFY)
    if (frontier.size, merkle.text_of(frontier.root)) != (checkpoint.tree_size, checkpoint.root):
        raise BrokenRegistry(f"the frontier of {where}", "that of another tree", _VERIFY)
    named = tuple(signature.key_id for signature in envelope.signatures)
    return SignedCheckpoint(checkpoint, row["envelope"], row["note"], named)


def check_signatures(signed: SignedCheckpoint, known: list[TrustedKey]) -> None:
    """Raise unless a key trusted as `log` at the checkpoint's time signed both forms (InvalidInput, GateFailed)."""
    usable = trust.usable(known, "log", signed.checkpoint.at)
    if checkpoints.verify(dsse.parse(signed.envelope.encode()), usable) != signed.checkpoint:
        raise GateFailed("an envelope of this checkpoint", "one of another", _VERIFY)
    origin = signed.checkpoint.origin
    names = [(origin, public) for public in usable.values()]
    if checkpoints.verify_note(signed.note, names, origin) != signed.checkpoint.head:
        raise GateFailed("a note of this checkpoint", "one of another", _VERIFY)


def frontier_of(row: Row) -> Frontier:
    """The frontier in a row. Raises InvalidInput."""
    record: Any = parse(row["frontier"])
    if not isinstance(record, dict):
        raise InvalidInput("a frontier as a JSON object", "another value", _VERIFY)
    return Frontier.of_record(record)  # pyright: ignore[reportUnknownArgumentType]


def hashes_of(db: Tables, after: int = 0, page: int = 1000) -> Iterator[str]:
    """The hashes of the events beyond `after`, in order, read a page at a time."""
    while rows := db.find("event", after=after, limit=page):
        yield from (row["hash"] for row in rows)
        after = rows[-1]["seq"]


def newest_trusted(db: Tables) -> SignedCheckpoint | None:
    """The largest checkpoint that a key signed which counts today; None when there is none, the normal case."""
    return _newest_trusted(db, keys.trusted_keys(db))


def _newest_trusted(db: Tables, known: list[TrustedKey]) -> SignedCheckpoint | None:
    """One whose key turned out to be compromised is passed over, so that a new key can sign the same events."""
    below: int | None = None
    while rows := db.find("checkpoint", descending=True, after=below, limit=1):
        signed = stored(rows[0])
        try:
            check_signatures(signed, known)
        except GateFailed:
            below = signed.checkpoint.tree_size
            continue
        return signed
    return None


def _grown(db: Tables, last: SignedCheckpoint | None) -> Frontier:
    """The frontier of all events, from the last checkpoint on. Raises BrokenRegistry when events are missing."""
    size = 0 if last is None else last.checkpoint.tree_size
    start = Frontier() if last is None else frontier_of(db.find("checkpoint", tree_size=size)[0])
    head = db.get("head", 1)
    grown = start.extend(merkle.leaf_of(text) for text in hashes_of(db, size))
    if head is None or grown.size != head["seq"]:
        raise BrokenRegistry(f"{grown.size} events at the head", "another number", _VERIFY)
    return grown


def _moved_on(db: Tables, size: int) -> bool:
    """Whether anything was appended since but the event of the checkpoint itself."""
    since = db.find("event", after=size, limit=2)
    return any(row["kind"] != SIGNED for row in since)


def _store(tx: Writer, made: Checkpoint, frontier: Frontier, envelope: str, note: str) -> None:
    """One row for each size; a signature that no longer counts gives way."""
    signed = {
        "root": made.root,
        "at": made.at,
        "frontier": canonical(frontier.record()).decode(),
        "envelope": envelope,
        "note": note,
    }
    if tx.db.get("checkpoint", made.tree_size) is None:
        tx.db.insert("checkpoint", tree_size=made.tree_size, **signed)
    else:
        tx.db.update("checkpoint", (made.tree_size,), **signed)


def _tree(reg: Registry, size: int | None) -> tuple[merkle.Tree, list[str]]:
    with reg.read() as db:
        hashes = list(hashes_of(db))
    wanted = len(hashes) if size is None else checks.count(size, "tree size", 1)
    if wanted > len(hashes):
        raise NotFound(f"a tree of at most {len(hashes)} events", f"{wanted}", "Ask for a smaller one.")
    return merkle.Tree.of(merkle.leaf_of(text) for text in hashes[:wanted]), hashes[:wanted]
