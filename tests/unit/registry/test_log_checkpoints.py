"""Checkpoints of a real ledger: incremental, signed twice over, and proofs against them."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proof_kit import ORIGIN, key_id, pem, private, signed_story
from registry_kit import ask, contents

from efface.registry import (
    BrokenRegistry,
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    checkpoints,
    database,
    dsse,
    ledger,
    log,
    merkle,
)
from efface.registry.canon import digest_bytes
from efface.registry.keys import add_key, revoke_key
from efface.registry.log_checkpoints import (
    consistency,
    inclusion,
    list_checkpoints,
    make_checkpoint,
    recorded,
)
from efface.registry.trust import KeyRefused


def make(reg: Registry, role: str | int = "log", origin: str = ORIGIN):
    return make_checkpoint(reg, private(role), origin=origin)


def edit(reg: Registry, statement: str) -> None:
    with closing(sqlite3.connect(reg.root / database.FILE_NAME)) as db, db:
        db.execute(statement)


@pytest.fixture
def told(reg: Registry, tmp_path: Path) -> Registry:
    signed_story(reg, tmp_path)
    return reg


def test_a_checkpoint_is_the_root_of_all_events(told: Registry) -> None:
    made = make(told)
    leaves = [merkle.leaf_of(event.hash) for event in log(told)[:-1]]
    assert made.checkpoint.tree_size == len(leaves) > 15
    assert made.checkpoint.root == merkle.text_of(merkle.root(leaves))
    assert made.keys == (key_id("log"),)
    keys = {key_id("log"): pem("log")}
    assert checkpoints.verify(dsse.parse(made.envelope.encode()), keys) == made.checkpoint
    head = checkpoints.verify_note(made.note, [(ORIGIN, pem("log"))], ORIGIN)
    assert head == made.checkpoint.head
    assert list_checkpoints(told) == [made]


def test_it_is_the_next_event_and_twice_is_once(told: Registry) -> None:
    before = log(told)
    made = make_checkpoint(told, private("log"), origin=ORIGIN, actor="ana")
    after = contents(told.root)
    assert make(told) == made
    assert contents(told.root) == after
    *rest, event = log(told)
    assert rest == before
    assert (event.kind, event.actor, event.subject_id) == ("checkpoint.signed", "ana", str(len(before)))
    assert event.body == {
        "root": made.checkpoint.root,
        "envelope": digest_bytes(made.envelope.encode()),
        "note": digest_bytes(made.note.encode()),
    }


def test_an_event_of_another_checkpoint_is_no_event(told: Registry) -> None:
    made = make(told)
    body = recorded(made.checkpoint.root, made.envelope, made.note)
    for size, changed in (
        (len(log(told)) - 1, body),
        (len(log(told)), {}),
        (len(log(told)), {**body, "x": 1}),
    ):
        with pytest.raises(BrokenRegistry), told.write("eve") as tx:
            ledger.append(tx, "checkpoint.signed", str(size), changed)


def test_the_next_one_goes_on_from_the_frontier(told: Registry) -> None:
    first = make(told)
    for _ in range(5):
        ask(told)
    edit(told, "DROP TRIGGER event_is_never_deleted")
    edit(told, f"DELETE FROM event WHERE seq < {first.checkpoint.tree_size}")
    second = make(told)
    assert second.checkpoint.tree_size == first.checkpoint.tree_size + 6
    assert second.checkpoint.at > first.checkpoint.at
    assert list_checkpoints(told) == [first, second]


def test_only_a_trusted_log_key_signs(told: Registry) -> None:
    before = contents(told.root)
    for role in ("auditor", "operator", 9):
        with pytest.raises(KeyRefused):
            make(told, role)
    with pytest.raises(InvalidInput):
        make(told, origin="with space")
    assert contents(told.root) == before


def test_a_log_keeps_its_name(told: Registry) -> None:
    make(told)
    with pytest.raises(Conflict):
        make(told, origin="example.com/other")


def test_a_compromised_key_gives_way_to_a_new_one(told: Registry) -> None:
    make(told)
    revoke_key(told, key_id("log"), reason="compromised", actor="root")
    add_key(told, pem(8), name="log 2", roles=["log"], actor="root")
    with pytest.raises(KeyRefused):
        make(told)
    made = make(told, 8)
    assert made.checkpoint.tree_size == len(log(told)) - 1
    revoke_key(told, key_id(8), reason="compromised", actor="root")
    add_key(told, pem(7), name="log 3", roles=["log"], actor="root")
    assert make(told, 7).keys == (key_id(7),)


@pytest.mark.parametrize(
    "change",
    [
        'frontier = \'{"nodes":[],"size":0}\'',
        "frontier = 'x'",
        "root = 'sha256:" + "0" * 64 + "'",
        "envelope = '{}'",
        "note = 'x'",
        "at = '2020-01-01T00:00:00.000000Z'",
        "tree_size = tree_size + 1",
    ],
)
def test_nothing_is_signed_on_a_damaged_checkpoint(told: Registry, change: str) -> None:
    make(told)
    ask(told)
    edit(told, f"UPDATE checkpoint SET {change}")
    before = contents(told.root)
    with pytest.raises(BrokenRegistry):
        make(told)
    with pytest.raises(BrokenRegistry):
        list_checkpoints(told)
    assert contents(told.root) == before


def test_nothing_is_signed_where_events_are_missing(told: Registry) -> None:
    make(told)
    ask(told)
    edit(told, "DROP TRIGGER event_is_never_deleted")
    edit(told, "DELETE FROM event WHERE seq = (SELECT max(seq) FROM event)")
    with pytest.raises(BrokenRegistry):
        make(told)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_proof_holds(told: Registry, data: st.DataObject) -> None:
    events = log(told)
    size = data.draw(st.integers(1, len(events)))
    seq = data.draw(st.integers(1, size))
    first = data.draw(st.integers(0, size))
    proof = inclusion(told, seq, size)
    path = [merkle.leaf_of(node) for node in proof.path]
    root = merkle.leaf_of(proof.root)
    assert proof.event_hash == events[seq - 1].hash
    assert merkle.verify_inclusion(merkle.leaf_of(proof.event_hash), seq - 1, size, path, root)
    grown = consistency(told, first, size)
    assert grown.first_root is not None
    path = [merkle.leaf_of(node) for node in grown.path]
    assert merkle.verify_consistency(first, size, merkle.leaf_of(grown.first_root), root, path)


def test_proofs_as_json(told: Registry) -> None:
    proof = inclusion(told, 2)
    assert set(json.loads(json.dumps(proof.record()))) == {"tree_size", "root", "path", "seq", "event_hash"}
    grown = consistency(told, 2)
    assert set(grown.record()) == {"tree_size", "root", "path", "first", "first_root"}
    made = make(told)
    assert proof.root == grown.root == made.checkpoint.root


@pytest.mark.parametrize(
    ("seq", "size", "error"),
    [(0, 5, InvalidInput), (6, 5, NotFound), (1, 999, NotFound), (1, 0, InvalidInput)],
)
def test_no_proof_outside_the_tree(told: Registry, seq: int, size: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        inclusion(told, seq, size)


def test_no_consistency_with_a_larger_tree(told: Registry) -> None:
    with pytest.raises(InvalidInput):
        consistency(told, 6, 5)
    with pytest.raises(NotFound):
        consistency(told, 1, 999)
