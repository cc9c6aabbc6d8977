"""Laws of Merkle trees over generated sizes: proofs hold, and nothing that was changed does."""

import hashlib
import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from efface.registry.merkle import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    consistency_proof,
    inclusion_proof,
    root,
    verify_consistency,
    verify_inclusion,
)

MOST = 70
LEAVES = [hashlib.sha256(bytes([number])).digest() for number in range(MOST)]
sizes = st.integers(1, MOST)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def split(count: int) -> int:
    """The largest power of two below `count`: RFC 6962's k."""
    return 1 << (count - 1).bit_length() - 1


def mth(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word: the oracle of `root`."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return sha(b"\0" + leaves[0])
    k = split(len(leaves))
    return sha(b"\1" + mth(leaves[:k]) + mth(leaves[k:]))


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1, PATH(m, D[n])."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], complete: bool) -> list[bytes]:
    """RFC 6962 §2.1.2, SUBPROOF(m, D[n], b); PROOF(m, D[n]) is SUBPROOF(m, D[n], true)."""
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def sides(index: int, size: int) -> list[str]:
    """On which side of the path each of its nodes stands, lowest first."""
    if size == 1:
        return []
    k = split(size)
    return [*sides(index, k), "right"] if index < k else [*sides(index - k, size - k), "left"]


def steps(first: int, second: int) -> list[str]:
    """The same for a consistency proof, with what it starts from."""
    full = first & -first  # the leaves of the full subtree at the end of the first tree
    rest = sides(first - 1, second)[full.bit_length() - 1 :]
    return ["whole" if full == first else "part", *rest]


def flipped(node: bytes, bit: int) -> bytes:
    """The hash with one bit changed."""
    return (int.from_bytes(node, "big") ^ 1 << bit).to_bytes(32, "big")


@st.composite
def wrong_nodes(draw: st.DrawFn, nodes: Sequence[bytes]) -> list[bytes]:
    """A list of nodes that differs: one bit, one node more, one less, or two that changed places."""
    changed = list(nodes)
    where = draw(st.integers(0, max(0, len(changed) - 1)))
    how = draw(st.sampled_from(["add", "flip", "drop", "swap"][: 1 + min(len(nodes) * 2, 3)]))
    if how == "flip" or (how == "swap" and len(nodes) == 1):
        changed[where] = flipped(changed[where], draw(st.integers(0, 255)))
    elif how == "drop":
        del changed[where]
    elif how == "swap":
        other = (where + 1) % len(changed)
        changed[where], changed[other] = changed[other], changed[where]
    else:
        changed.insert(where, draw(st.sampled_from([*nodes, EMPTY_ROOT])))
    return changed


@given(st.integers(0, MOST))
def test_root_is_the_recursive_definition(size: int) -> None:
    assert root(LEAVES[:size]) == mth(LEAVES[:size])


@given(sizes, st.data())
def test_inclusion_paths_are_the_recursive_definition_and_hold(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(LEAVES[:size], index)
    assert list(proof) == path(index, LEAVES[:size])
    assert verify_inclusion(LEAVES[index], index, size, proof, mth(LEAVES[:size]))


@given(sizes, st.data())
def test_consistency_proofs_are_the_recursive_definition_and_hold(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size))
    proof = consistency_proof(LEAVES, first, size)
    assert list(proof) == subproof(first, LEAVES[:size], True)
    assert verify_consistency(first, size, mth(LEAVES[:first]), mth(LEAVES[:size]), proof)


@given(sizes, st.data())
def test_a_changed_inclusion_proof_fails(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof, top = inclusion_proof(LEAVES[:size], index), mth(LEAVES[:size])
    assert not verify_inclusion(LEAVES[index], index, size, data.draw(wrong_nodes(proof)), top)
    other = data.draw(st.integers(-2, MOST + 2).filter(lambda n: n % MOST != index))
    assert not verify_inclusion(LEAVES[index], other, size, proof, top)
    assert not verify_inclusion(LEAVES[other % MOST], index, size, proof, top)
    wrong_root = flipped(top, data.draw(st.integers(0, 255)))
    assert not verify_inclusion(LEAVES[index], index, size, proof, wrong_root)


@given(sizes, sizes, st.data())
def test_another_size_fails_unless_the_leaf_has_the_same_path_there(
    size: int, other: int, data: st.DataObject
) -> None:
    """An inclusion proof does not name the size: the signed checkpoint does."""
    index = data.draw(st.integers(0, size - 1))
    proof, top = inclusion_proof(LEAVES[:size], index), mth(LEAVES[:size])
    same_path = index < other and sides(index, other) == sides(index, size)
    assert verify_inclusion(LEAVES[index], index, other, proof, top) is same_path


@given(sizes, st.data())
def test_a_changed_consistency_proof_fails(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size))
    proof = consistency_proof(LEAVES, first, size)
    old, new = mth(LEAVES[:first]), mth(LEAVES[:size])
    assert not verify_consistency(first, size, old, new, data.draw(wrong_nodes(proof)))
    if first < size:
        assert not verify_consistency(first, size, new, old, proof)
    forged = [*LEAVES[: first - 1], b"\0" * 32, *LEAVES[first:size]]
    assert not verify_consistency(first, size, old, mth(forged), consistency_proof(forged, first, size))
    assert not verify_consistency(first, size, mth(forged[:first]), new, proof)


def test_other_sizes_fail_unless_the_proof_has_the_same_steps_there() -> None:
    """Each proof between small trees, claimed for every other pair: some hold, as for inclusion."""
    roots = [mth(LEAVES[:size]) for size in range(18)]
    pairs = list(itertools.combinations(range(1, 18), 2))
    for first, second in pairs:
        proof = consistency_proof(LEAVES, first, second)
        for claimed in pairs:
            held = verify_consistency(*claimed, roots[first], roots[second], proof)
            assert held is (steps(*claimed) == steps(first, second))


def test_other_places_fail_unless_the_path_is_the_same_there() -> None:
    places = [(index, size) for size in range(1, 12) for index in range(size)]
    for index, size in places:
        proof, top = inclusion_proof(LEAVES[:size], index), mth(LEAVES[:size])
        for claimed in places:
            held = verify_inclusion(LEAVES[index], *claimed, proof, top)
            assert held is (sides(*claimed) == sides(index, size))


@given(st.lists(st.integers(0, 9), max_size=8))
def test_a_frontier_gives_the_root_at_each_size(parts: list[int]) -> None:
    frontier, size = Frontier(), 0
    for part in parts:
        frontier = frontier.extend(LEAVES[size : size + part]) if size + part <= MOST else frontier
        size = frontier.size
        assert frontier.root == mth(LEAVES[:size])
        assert Frontier.of_record(frontier.record()) == frontier
        assert len(frontier.nodes) == size.bit_count()
        if size < MOST:
            assert frontier.append(LEAVES[size]).root == mth(LEAVES[: size + 1])


@given(
    st.integers() | st.none() | st.text(),
    st.integers() | st.floats(),
    st.lists(st.binary(max_size=40) | st.none() | st.binary(min_size=32, max_size=32), max_size=70),
    st.binary(max_size=40),
)
def test_no_input_makes_a_verifier_raise(index, size, nodes, top) -> None:
    assert verify_inclusion(b"", index, size, nodes, top) is (
        (index, size, nodes) == (0, 1, []) and type(size) is int and top == mth([b""])
    )
    held = verify_consistency(index, size, top, top, nodes)
    assert held is (
        type(index) is int
        and type(size) is int
        and not nodes
        and 0 <= index == size < 2**53
        and len(top) == 32
        and (size > 0 or top == EMPTY_ROOT)
    )


@given(sizes)
def test_a_tree_gives_the_proofs_of_its_leaves(size: int) -> None:
    tree = Tree.of(LEAVES[:size])
    assert (tree.size, tree.root) == (size, mth(LEAVES[:size]))
    assert [tree.inclusion(i) for i in range(size)] == [tuple(path(i, LEAVES[:size])) for i in range(size)]
