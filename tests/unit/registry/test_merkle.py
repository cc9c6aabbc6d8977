"""Merkle trees against the published vectors of Certificate Transparency."""

import time

import pytest

from efface.registry import InvalidInput, digest_bytes
from efface.registry.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    leaf_of,
    node_hash,
    root,
    text_of,
    verify_consistency,
    verify_inclusion,
)

# Inputs, roots and proofs of the reference tests of Certificate Transparency
# (google/certificate-transparency, merkle_tree_test.cc; transparency-dev/merkle, proof/verify_test.go).
INPUTS = " 00 10 2021 3031 40414243 5051525354555657 606162636465666768696a6b6c6d6e6f"
LEAVES = [bytes.fromhex(text) for text in INPUTS.split(" ")]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = [  # index, size, path
    (0, 1, []),
    (
        0,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
]
CONSISTENCY = [  # first, second, path
    (1, 1, []),
    (
        1,
        8,
        [
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        [
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
    (
        6,
        7,
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
]


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert root(LEAVES[:size]).hex() == ROOTS[size]
    assert Frontier().extend(LEAVES[:size]).root.hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "path"), INCLUSION)
def test_published_inclusion_paths(index: int, size: int, path: list[str]) -> None:
    proof = inclusion_proof(LEAVES[:size], index)
    assert [node.hex() for node in proof] == path
    assert verify_inclusion(LEAVES[index], index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("first", "second", "path"), CONSISTENCY)
def test_published_consistency_paths(first: int, second: int, path: list[str]) -> None:
    proof = consistency_proof(LEAVES, first, second)
    assert [node.hex() for node in proof] == path
    old, new = bytes.fromhex(ROOTS[first]), bytes.fromhex(ROOTS[second])
    assert verify_consistency(first, second, old, new, proof)


def test_a_leaf_is_the_bytes_of_an_event_hash() -> None:
    event = digest_bytes(b"event")
    assert len(leaf_of(event)) == 32
    assert text_of(leaf_of(event)) == event
    for wrong in ("", "sha256:", event[7:], event.upper(), event + "0", f"md5:{event[7:]}"):
        with pytest.raises(InvalidInput):
            leaf_of(wrong)


def test_a_node_is_no_leaf() -> None:
    """Domain separation: the two children of a root as one leaf's data give another root."""
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert root([b"a", b"b"]) == node_hash(left, right) != root([left + right])


@pytest.mark.parametrize(
    ("first", "second", "old", "new", "proof", "holds"),
    [
        (0, 0, EMPTY_ROOT, EMPTY_ROOT, (), True),
        (0, 1, EMPTY_ROOT, leaf_hash(b""), (), True),
        (1, 1, leaf_hash(b""), leaf_hash(b""), (), True),
        (0, 1, leaf_hash(b""), leaf_hash(b""), (), False),  # not the root of the empty tree
        (0, 0, EMPTY_ROOT, leaf_hash(b""), (), False),
        (1, 1, leaf_hash(b""), leaf_hash(b"x"), (), False),
        (0, 1, EMPTY_ROOT, leaf_hash(b""), (EMPTY_ROOT,), False),
        (1, 1, leaf_hash(b""), leaf_hash(b""), (EMPTY_ROOT,), False),
        (1, 2, leaf_hash(b""), leaf_hash(b""), (), False),
        (2, 1, leaf_hash(b""), leaf_hash(b""), (), False),  # into the past
        (-1, 1, leaf_hash(b""), leaf_hash(b""), (), False),
        (True, 1, leaf_hash(b""), leaf_hash(b""), (), False),
        (1, 2.0, leaf_hash(b""), leaf_hash(b""), (), False),
        (1, 1, "", "", (), False),
        (2, 2**60, leaf_hash(b""), leaf_hash(b""), (EMPTY_ROOT,) * 59, False),
    ],
)
def test_consistency_at_the_edges(first, second, old, new, proof, holds: bool) -> None:
    assert verify_consistency(first, second, old, new, proof) is holds


@pytest.mark.parametrize(
    ("index", "size", "proof", "top"),
    [
        (0, 0, (), EMPTY_ROOT),
        (1, 1, (), leaf_hash(b"")),
        (-1, 1, (), leaf_hash(b"")),
        (False, 1, (), leaf_hash(b"")),
        (0, True, (), leaf_hash(b"")),
        (0, "1", (), leaf_hash(b"")),
        (0, 1, (), leaf_hash(b"").hex()),
        (0, 1, (), leaf_hash(b"")[:-1]),
        (0, 1, (b"",), leaf_hash(b"")),
        (0, 1, (None,), leaf_hash(b"")),
        (0, 2**60, (EMPTY_ROOT,) * 60, EMPTY_ROOT),
    ],
)
def test_malformed_inclusion_is_false(index, size, proof, top) -> None:
    assert verify_inclusion(b"", index, size, proof, top) is False


@pytest.mark.parametrize("index", [-1, 3, True, 1.0])
def test_no_proof_for_what_is_outside(index) -> None:
    with pytest.raises(InvalidInput):
        inclusion_proof(LEAVES[:3], index)
    with pytest.raises(InvalidInput):
        Tree.of([]).inclusion(0)
    with pytest.raises(InvalidInput):
        consistency_proof(LEAVES[:3], 4 if index == 3 else index, 3)
    with pytest.raises(InvalidInput):
        consistency_proof(LEAVES[:3], 0, 4)


def test_a_frontier_is_small_and_reads_back() -> None:
    frontier = Frontier().extend(LEAVES[:7])
    assert len(frontier.nodes) == 3
    assert Frontier.of_record(frontier.record()) == frontier
    assert frontier.append(LEAVES[7]).root.hex() == ROOTS[8]
    assert frontier.size == 7  # a value: appending makes another one


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"size": 1, "nodes": []},
        {"size": 0, "nodes": ["sha256:" + "0" * 64]},
        {"size": 1, "nodes": ["0" * 64]},
        {"size": 1, "nodes": [None]},
        {"size": 1, "nodes": "sha256"},
        {"size": True, "nodes": ["sha256:" + "0" * 64]},
        {"size": 2**53, "nodes": ["sha256:" + "0" * 64]},
        {"size": 0, "nodes": [], "more": 1},
    ],
)
def test_other_records_of_a_frontier_are_refused(record) -> None:
    with pytest.raises(InvalidInput):
        Frontier.of_record(record)


def test_a_hundred_thousand_leaves_take_well_under_half_a_second() -> None:
    leaves = [number.to_bytes(32, "big") for number in range(100_000)]
    started = time.process_time()
    whole = root(leaves)
    assert time.process_time() - started < 0.5
    assert Frontier().extend(leaves).root == whole
