"""Checkpoints: a signed word on what the ledger was at a size, so that nobody can cut or rewrite it later.

A checkpoint is signed twice over, for two readers. For the registry and its bundles it is a DSSE envelope
over canonical JSON; for the tooling of transparency logs it is a signed note (c2sp.org/tlog-checkpoint):

    example.com/efface          origin: which log
    3                           number of events
    rra8/idLcKFPsGel5VeCZNsPqbUa9eC6FZFY8yngbnc=        RFC 6962 root

The note has no time: the format advises against further lines, since nobody audits them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from . import canon, checks, dsse, merkle, notes, trust
from .errors import GateFailed, InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PAYLOAD_TYPE = "application/vnd.efface.checkpoint+json"
VERSION = 1
_SIZE = re.compile(r"0|[1-9][0-9]{0,15}")
_FIX = "Pass a checkpoint as the registry wrote it."


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a note says: log, number of leaves, and root as `sha256:<hex>`."""

    origin: str
    tree_size: int
    root: str

    def text(self) -> str:
        """The three lines that are signed."""
        root = base64.b64encode(merkle.leaf_of(self.root)).decode()
        return f"{self.origin}\n{self.tree_size}\n{root}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The ledger `origin` had the first `tree_size` events under `root` at the time `at`.

    `root` is `sha256:<hex>`. Raises InvalidInput for a field that is no such thing.
    """

    origin: str
    tree_size: int
    root: str
    at: str

    def __post_init__(self) -> None:
        """Checks every field: what exists can be signed."""
        notes.check_name(self.origin)
        checks.count(self.tree_size, "tree size", 0)
        checks.digest(self.root, "root")
        trust.time(self.at, "time of the checkpoint")
        if self.tree_size == 0 and self.root != merkle.text_of(merkle.EMPTY_ROOT):
            raise InvalidInput("the root of the empty tree for size 0", "another root", _FIX)

    @property
    def head(self) -> TreeHead:
        """It without its time: what its note says."""
        return TreeHead(self.origin, self.tree_size, self.root)

    def record(self) -> dict[str, canon.JSON]:
        """The JSON object that is signed."""
        return {
            "v": VERSION,
            "origin": self.origin,
            "tree_size": self.tree_size,
            "root": self.root,
            "at": self.at,
        }


def of_record(record: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint in a JSON object. Raises InvalidInput for other or further fields."""
    if set(record) != {"v", "origin", "tree_size", "root", "at"} or record["v"] != VERSION:
        raise InvalidInput(f"a checkpoint record of version {VERSION}", "another object", _FIX)
    if not isinstance(record["origin"], str):
        raise InvalidInput("origin as text", "another JSON value", _FIX)
    return Checkpoint(record["origin"], record["tree_size"], record["root"], record["at"])


def sign(checkpoint: Checkpoint, keys: Sequence[Ed25519PrivateKey]) -> dsse.Envelope:
    """The DSSE envelope of a checkpoint, signed by each of `keys`."""
    return dsse.sign(PAYLOAD_TYPE, canon.canonical(checkpoint.record()), keys)


def verify(envelope: dsse.Envelope, keys: Mapping[str, str], threshold: int = 1) -> Checkpoint:
    """The checkpoint in an envelope that enough of `keys` signed (see `dsse.verify`).

    Raises GateFailed when they did not, InvalidInput when they signed something else.
    """
    signed = dsse.verify(envelope, keys, payload_type=PAYLOAD_TYPE, threshold=threshold)
    value = canon.parse(signed.payload)
    if not isinstance(value, Mapping) or canon.canonical(value) != signed.payload:
        raise InvalidInput("a canonical JSON object", "another payload", _FIX)
    return of_record(cast(Mapping[str, Any], value))


def sign_note(checkpoint: Checkpoint, private: Ed25519PrivateKey) -> str:
    """The checkpoint as a signed note; the key's name is the origin, as the format advises."""
    return notes.sign(checkpoint.head.text(), checkpoint.origin, private)


def verify_note(note: str | bytes, keys: Iterable[tuple[str, str]], origin: str) -> TreeHead:
    """The tree head in a note that at least one of `keys` (names with PEM) signed, of the log `origin`.

    Reads the checkpoints of other logs too. Raises InvalidInput, GateFailed (see `notes.verify`).
    """
    head = parse_note_text(notes.verify(note, keys))
    if head.origin != origin:
        raise GateFailed("a checkpoint of this log", "one of another log", "Pass the log's own checkpoint.")
    return head


def parse_note_text(text: str) -> TreeHead:
    """The tree head in the text of a note; what follows its three lines is left out. Raises InvalidInput."""
    lines = text.removesuffix("\n").split("\n")
    if len(lines) < 3 or not all(lines) or not text.endswith("\n") or not _SIZE.fullmatch(lines[1]):
        raise InvalidInput("lines of origin, size and root", "other text", _FIX)
    try:
        root = base64.b64decode(lines[2], validate=True)
    except ValueError:
        root = b""
    if len(root) != merkle.HASH_BYTES or base64.b64encode(root).decode() != lines[2]:
        raise InvalidInput(f"a root of {merkle.HASH_BYTES} bytes in base64", "other text", _FIX)
    return TreeHead(lines[0], int(lines[1]), merkle.text_of(root))
