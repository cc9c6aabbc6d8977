"""Merkle trees over the ledger: the roots and proofs of RFC 6962 §2.1, checked as RFC 9162 §2.1 says.

    leaf hash = sha256(0x00 || data)      node hash = sha256(0x01 || left || right)

The data of a leaf is the 32 bytes of an event's hash (`leaf_of`). A root says what all events are; an
inclusion proof shows that one event is among them, and a consistency proof that an older root is of the same
events: both are O(log n) hashes, and checking them needs no event but that one.

A proof says nothing of its own about the size of the tree: some sizes give a leaf the same path (leaf 0 of 3
and of 4 leaves). Take size and root from one signed checkpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import checks
from .canon import JSON, Digest
from .errors import InvalidInput

Hash = bytes
"""32 bytes of SHA-256."""

HASH_BYTES = 32
LARGEST_SIZE = 2**53 - 1
"""Sizes are JSON integers."""
EMPTY_ROOT: Hash = hashlib.sha256(b"").digest()


def leaf_of(event_hash: str) -> bytes:
    """The data of an event's leaf: the 32 bytes of `sha256:<hex>`. Raises InvalidInput."""
    return bytes.fromhex(checks.digest(event_hash, "event hash").removeprefix("sha256:"))


def text_of(node: Hash) -> Digest:
    """A hash as `sha256:<hex>`, for JSON; `leaf_of` reads it back."""
    return Digest("sha256:" + node.hex())


def leaf_hash(data: bytes) -> Hash:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: Hash, right: Hash) -> Hash:
    """The hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Tree:
    """All nodes of a tree, leaves first: O(n) to build, O(log n) for each proof. Build it with `of`.

    A node without a sibling stands for itself in the next level, so `levels[k][i]` is the root of the leaves
    from i·2^k to (i+1)·2^k or to the end.
    """

    levels: tuple[Sequence[Hash], ...]

    @staticmethod
    def of(leaves: Iterable[bytes]) -> Tree:
        """The tree of the data in `leaves`."""
        sha256 = hashlib.sha256  # bound here and inlined below: 100,000 leaves in 0.1 s
        levels = [[sha256(b"\0" + data).digest() for data in leaves]]
        while len(below := levels[-1]) > 1:
            pairs = zip(below[::2], below[1::2], strict=False)
            above = [sha256(b"\1" + left + right).digest() for left, right in pairs]
            levels.append(above + below[-1:] if len(below) % 2 else above)
        return Tree(tuple(levels))

    @property
    def size(self) -> int:
        """The number of leaves."""
        return len(self.levels[0])

    @property
    def root(self) -> Hash:
        """The Merkle tree hash; that of no leaves is sha256 of nothing."""
        return self.levels[-1][0] if self.size else EMPTY_ROOT

    def inclusion(self, index: int) -> tuple[Hash, ...]:
        """The audit path of leaf `index`, lowest node first. Raises InvalidInput outside the tree."""
        _bounds("index", index, 0, self.size - 1)
        return tuple(self._siblings(0, index))

    def consistency(self, first: int) -> tuple[Hash, ...]:
        """The proof that the tree of the first `first` leaves is a prefix. Raises InvalidInput.

        It starts at the largest full subtree that ends where the first tree ends. When that is the whole
        first tree its root is what the verifier has, and it is left out.
        """
        _bounds("first size", first, 0, self.size)
        if first in (0, self.size):
            return ()
        level = _trailing_zeros(first)
        index = (first - 1) >> level
        start = (self.levels[level][index],) if index else ()
        return (*start, *self._siblings(level, index))

    def _siblings(self, level: int, index: int) -> Iterable[Hash]:
        for nodes in self.levels[level:]:
            if (sibling := index ^ 1) < len(nodes):
                yield nodes[sibling]
            index >>= 1


def root(leaves: Iterable[bytes]) -> Hash:
    """The Merkle tree hash of the data in `leaves`."""
    return Tree.of(leaves).root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[Hash, ...]:
    """The audit path of `leaves[index]`; build a `Tree` for many of them. Raises InvalidInput."""
    return Tree.of(leaves).inclusion(index)


def consistency_proof(leaves: Sequence[bytes], first: int, second: int) -> tuple[Hash, ...]:
    """The proof that the first `first` of the first `second` leaves are their prefix. Raises InvalidInput."""
    _bounds("second size", second, 0, len(leaves))
    return Tree.of(leaves[:second]).consistency(first)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[Hash], root: Hash) -> bool:
    """Whether `leaf` is number `index` of the `size` leaves under `root` (RFC 9162 §2.1.3.2).

    The numbers, hashes and nodes may be anything: what is malformed is False.
    """
    if not (_are_sizes(index, size) and index < size and _are_hashes(root, *proof)):
        return False
    fn, sn, computed = index, size - 1, leaf_hash(leaf)
    for node in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            computed = node_hash(node, computed)
            shift = _trailing_zeros(fn)
            fn, sn = fn >> shift, sn >> shift
        else:
            computed = node_hash(computed, node)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and computed == root


def verify_consistency(
    first: int, second: int, first_root: Hash, second_root: Hash, proof: Sequence[Hash]
) -> bool:
    """Whether the tree under `first_root` is a prefix of that under `second_root` (RFC 9162 §2.1.4.2).

    Beyond the RFC, which asks for 0 < first < second: a tree is consistent with itself and with the empty
    tree, both by an empty proof. The numbers, hashes and nodes may be anything: what is malformed is False.
    """
    if not (_are_sizes(first, second) and first <= second and _are_hashes(first_root, second_root, *proof)):
        return False
    if first in (0, second):
        known = EMPTY_ROOT if first == 0 else second_root
        return not proof and first_root == known and (second > 0 or second_root == EMPTY_ROOT)
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    return bool(proof) and _climb(first, second, path) == (first_root, second_root)


def _climb(first: int, second: int, path: Sequence[Hash]) -> tuple[Hash, Hash] | None:
    """The two roots that a consistency path leads to; None when it is too long or too short."""
    shift = _trailing_zeros(first)
    fn, sn = (first - 1) >> shift, (second - 1) >> shift
    old = new = path[0]
    for node in path[1:]:
        if sn == 0:
            return None
        if fn & 1 or fn == sn:
            old, new = node_hash(node, old), node_hash(node, new)
            shift = _trailing_zeros(fn)
            fn, sn = fn >> shift, sn >> shift
        else:
            new = node_hash(new, node)
        fn, sn = fn >> 1, sn >> 1
    return (old, new) if sn == 0 else None


@dataclass(frozen=True, slots=True)
class Frontier:
    """What is needed to add leaves to a tree and to know its root: the roots of its full subtrees.

    There is one for each bit that is set in `size`, the largest subtree first, so the state is O(log n).
    """

    size: int = 0
    nodes: tuple[Hash, ...] = ()

    def __post_init__(self) -> None:
        """Raises InvalidInput unless there are as many nodes as bits set in the size."""
        if not (_are_sizes(self.size) and self.size.bit_count() == len(self.nodes)):
            raise InvalidInput("one node for each bit of a tree's size", "another number", _RECOUNT)
        if not _are_hashes(*self.nodes):
            raise InvalidInput(f"nodes of {HASH_BYTES} bytes", "other values", _RECOUNT)

    def append(self, leaf: bytes) -> Frontier:
        """The frontier with one more leaf; amortised O(1) hashes."""
        return self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> Frontier:
        """The frontier with more leaves, in order."""
        size, nodes = self.size, list(self.nodes)
        for leaf in leaves:
            node = leaf_hash(leaf)
            for _ in range(_trailing_zeros(size + 1)):  # each full pair becomes one subtree
                node = node_hash(nodes.pop(), node)
            nodes.append(node)
            size += 1
        return Frontier(size, tuple(nodes))

    @property
    def root(self) -> Hash:
        """The Merkle tree hash of the leaves so far."""
        if not self.nodes:
            return EMPTY_ROOT
        found = self.nodes[-1]
        for node in reversed(self.nodes[:-1]):
            found = node_hash(node, found)
        return found

    def record(self) -> dict[str, JSON]:
        """The JSON object to store; `of_record` reads it back."""
        return {"size": self.size, "nodes": [text_of(node) for node in self.nodes]}

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> Frontier:
        """The frontier in a stored record. Raises InvalidInput for any other object."""
        if set(record) != {"size", "nodes"} or not isinstance(record["nodes"], (list, tuple)):
            raise InvalidInput("an object of size and nodes", "another object", _RECOUNT)
        return Frontier(record["size"], tuple(leaf_of(node) for node in record["nodes"]))


_RECOUNT = "Build it again from the events: Frontier().extend(…)."


def _trailing_zeros(number: int) -> int:
    """How often `number` can be halved; 0 for 0."""
    return (number & -number).bit_length() - 1 if number else 0


def _are_sizes(*numbers: int) -> bool:
    return all(type(number) is int and 0 <= number <= LARGEST_SIZE for number in numbers)


def _are_hashes(*nodes: Hash) -> bool:
    return all(type(node) is bytes and len(node) == HASH_BYTES for node in nodes)


def _bounds(name: str, value: int, least: int, most: int) -> None:
    if not (_are_sizes(value) and least <= value <= most):
        raise InvalidInput(f"{name} from {least} to {most}", "another value", "Ask within the tree.")
