"""`verify` names truncated and rewritten ledgers by their checkpoints, and every signature that does not count."""

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from proof_kit import ORIGIN, key_id, pem, private, signed_story
from registry_kit import Clock, ask

from efface.registry import Registry, canonical, checkpoints, database, dsse, ledger, log, merkle, verify
from efface.registry.attest import attest_audit
from efface.registry.canon import parse
from efface.registry.checkpoints import Checkpoint
from efface.registry.keys import add_key, revoke_key
from efface.registry.ledger import GENESIS, hash_of, replay, row_of
from efface.registry.log_checkpoints import list_checkpoints, make_checkpoint
from efface.registry.types import Event

TRIGGERS = ("event_is_never_updated", "event_is_never_deleted", "event_follows_the_last")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signed and with checkpoints of two sizes. Copy it."""
    work = tmp_path_factory.mktemp("signed")
    with Registry.open(work / "registry", create=True, clock=Clock()) as reg:
        signed_story(reg, work)
        make_checkpoint(reg, private("log"), origin=ORIGIN)
        ask(reg)
        make_checkpoint(reg, private("log"), origin=ORIGIN)
    return work / "registry"


@pytest.fixture
def told(story: Path, tmp_path: Path) -> Registry:
    clock = Clock()
    clock.now = clock.now.replace(month=4)
    return Registry.open(shutil.copytree(story, tmp_path / "told"), clock=clock)


def rewrite(reg: Registry, edit: Callable[[list[Event]], list[Event]], *, project: bool = True) -> None:
    """Rewrite history as its owner could: edited events with new hashes, new head, new projections."""
    events, previous = [], GENESIS
    for seq, event in enumerate(edit(log(reg)), 1):
        unsigned = replace(event, seq=seq, prev_hash=previous, hash="")
        previous = hash_of(unsigned)
        events.append(replace(unsigned, hash=previous))
    with closing(sqlite3.connect(reg.root / database.FILE_NAME, isolation_level=None)) as db:
        triggers = [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'")]
        for name in TRIGGERS:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("DELETE FROM event")
        for sql in triggers:
            db.execute(sql)
    with reg.database.writing() as db:
        for event in events:
            db.insert("event", **row_of(event))
        db.update("head", (1,), seq=len(events), hash=previous)
        if project:
            replay(db)


def found(reg: Registry, witness: Sequence[Checkpoint] = ()) -> list[tuple[str, str]]:
    return [(p.kind, p.where) for p in verify(reg, witness=witness).problems]


def checkpoint_sizes(reg: Registry) -> list[int]:
    return [one.checkpoint.tree_size for one in list_checkpoints(reg)]


def execute(reg: Registry, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(reg.root / database.FILE_NAME)) as db, db:
        db.execute(statement, values)


def test_a_signed_registry_is_whole(told: Registry) -> None:
    result = verify(told, deep=True)
    assert result.problems == ()
    assert result.checkpoints == 2
    witness = [one.checkpoint for one in list_checkpoints(told)]
    assert verify(told, witness=witness).ok
    assert verify(told, witness=witness).checkpoints == 4


def test_a_rewritten_event_shows_at_every_checkpoint_after_it(told: Registry) -> None:
    small, large = checkpoint_sizes(told)

    rewrite(told, lambda events: [*events[:-2], replace(events[-2], actor="eve"), events[-1]])
    assert found(told) == [("checkpoint", f"checkpoint {large}")]
    rewrite(told, lambda events: [replace(event, actor="eve") for event in events])
    kinds = found(told)
    assert kinds[:2] == [("checkpoint", f"checkpoint {small}"), ("checkpoint", f"checkpoint {large}")]


def test_a_truncated_ledger_is_named(told: Registry) -> None:
    _, large = checkpoint_sizes(told)
    rewrite(told, lambda events: events[:-1])
    assert found(told) == [("checkpoint", f"checkpoint {large}")]  # its event is gone
    rewrite(told, lambda events: events[:-1])
    (problem,) = [p for p in verify(told).problems if p.kind == "checkpoint"]
    assert (problem.where, problem.expected, problem.found) == (
        f"checkpoint {large}", f"{large} events", f"{large - 1}",
    )  # fmt: skip


def test_a_witness_shows_it_even_where_the_checkpoints_were_removed_or_made_anew(told: Registry) -> None:
    witness = [one.checkpoint for one in list_checkpoints(told)]
    execute(told, "DELETE FROM checkpoint")
    rewrite(told, lambda events: [e for e in events[:-2] if e.kind != "checkpoint.signed"])
    make_checkpoint(told, private("log"), origin=ORIGIN)
    assert "checkpoint" not in {kind for kind, _ in found(told)}
    assert ("checkpoint", f"witness {witness[1].tree_size}") in found(told, witness)
    assert ("checkpoint", f"witness {witness[0].tree_size}") not in found(told, witness)
    other = Checkpoint(ORIGIN, 3, "sha256:" + "0" * 64, witness[0].at)
    assert ("checkpoint", "witness 3") in found(told, [other])


@pytest.mark.parametrize(
    "change",
    [
        "root = 'sha256:" + "0" * 64 + "'",
        "at = '2026-03-01T12:00:01.000000Z'",
        "frontier = replace(frontier, 'a', 'b')",
        "frontier = ''",
        "envelope = replace(envelope, 'payload', 'playload')",
        "envelope = ''",
        "note = 'x'",
        "note = replace(note, 'example.com/efface', 'example.com/other')",
    ],
)
def test_each_changed_column_of_a_checkpoint_is_named(told: Registry, change: str) -> None:
    small, _ = checkpoint_sizes(told)
    execute(told, f"UPDATE checkpoint SET {change} WHERE tree_size = {small}")
    (problem,) = found(told)
    assert problem in [("checkpoint", f"checkpoint {small}"), ("signature", f"checkpoint {small}")]


def _resigned(told: Registry, made: Checkpoint, signer: Any) -> None:
    """Put another checkpoint in the place of the largest, signed by anyone."""
    envelope = checkpoints.sign(made, [signer]).to_json().decode()
    note = checkpoints.sign_note(made, signer)
    execute(
        told,
        "UPDATE checkpoint SET root = ?, at = ?, envelope = ?, note = ? WHERE tree_size = ?",
        made.root, made.at, envelope, note, made.tree_size,
    )  # fmt: skip


def test_a_removed_checkpoint_is_named(told: Registry) -> None:
    small, large = checkpoint_sizes(told)
    execute(told, "DELETE FROM checkpoint WHERE tree_size = ?", small)
    (problem,) = verify(told).problems
    assert (problem.kind, problem.where, problem.found) == ("checkpoint", f"checkpoint {small}", "none")
    assert problem.expected == f"the checkpoint that event {small + 1} records"
    execute(told, "DELETE FROM checkpoint")
    assert found(told) == [("checkpoint", f"checkpoint {small}"), ("checkpoint", f"checkpoint {large}")]


def test_a_checkpoint_signed_anew_is_named_even_with_the_log_s_own_key(told: Registry) -> None:
    made = list_checkpoints(told)[1].checkpoint
    _resigned(told, replace(made, at="2026-03-05T00:00:00.000000Z"), private("log"))
    (problem,) = verify(told).problems
    assert (problem.kind, problem.found) == ("checkpoint", "another")


def test_a_checkpoint_that_no_event_records_is_named(told: Registry) -> None:
    """One more, of true events and well signed, is still not what the registry did."""
    ask(told)
    _, large = checkpoint_sizes(told)
    frontier = merkle.Frontier().extend(merkle.leaf_of(event.hash) for event in log(told))
    made = Checkpoint(ORIGIN, frontier.size, merkle.text_of(frontier.root), "2026-04-05T00:00:00.000000Z")
    execute(
        told,
        "INSERT INTO checkpoint (tree_size, root, at, frontier, envelope, note) VALUES (?, ?, ?, ?, ?, ?)",
        made.tree_size, made.root, made.at, canonical(frontier.record()).decode(),
        checkpoints.sign(made, [private("log")]).to_json().decode(), checkpoints.sign_note(made, private("log")),
    )  # fmt: skip
    assert made.tree_size > large
    (problem,) = verify(told).problems
    assert (problem.where, problem.expected) == (f"checkpoint {made.tree_size}", "an event that records it")


def test_checkpoints_of_before_there_were_events_of_them_go_on_verifying(told: Registry) -> None:
    """As efface wrote them before: the rows alone. The next one is recorded, and they stay what they are."""
    small, _ = checkpoint_sizes(told)
    rewrite(told, lambda events: events[:small])
    execute(told, "DELETE FROM checkpoint WHERE tree_size > ?", small)
    assert verify(told).ok
    assert make_checkpoint(told, private("log"), origin=ORIGIN).checkpoint.tree_size == small
    ask(told)
    assert make_checkpoint(told, private("log"), origin=ORIGIN).checkpoint.tree_size == small + 1
    assert verify(told).ok
    assert verify(told).checkpoints == 2


@pytest.mark.parametrize("signer", ["auditor", "operator", 9])
def test_a_checkpoint_by_another_key_is_named(told: Registry, signer: str | int) -> None:
    made = list_checkpoints(told)[1].checkpoint
    _resigned(told, made, private(signer))
    assert found(told) == [("signature", f"checkpoint {made.tree_size}")]


def test_a_backdated_checkpoint_is_named(told: Registry) -> None:
    made = list_checkpoints(told)[1].checkpoint
    _resigned(
        told, Checkpoint(ORIGIN, made.tree_size, made.root, "2026-01-01T00:00:00.000000Z"), private("log")
    )
    (problem,) = verify(told).problems
    assert (problem.kind, problem.found) == ("signature", "a key that is not valid yet")


def test_a_flipped_byte_of_a_signature_is_named(told: Registry) -> None:
    one = list_checkpoints(told)[1]
    envelope = dsse.parse(one.envelope.encode())
    for position in (0, 31, 32, 63):
        raw = bytearray(envelope.signatures[0].sig)
        raw[position] ^= 1
        bad = dsse.Envelope(
            envelope.payload_type, envelope.payload, (dsse.Signature(key_id("log"), bytes(raw)),)
        )
        size = one.checkpoint.tree_size
        execute(told, "UPDATE checkpoint SET envelope = ? WHERE tree_size = ?", bad.to_json().decode(), size)
        assert found(told) == [("signature", f"checkpoint {size}")]


def test_retired_keys_still_count_and_compromised_ones_until_signed_again(told: Registry) -> None:
    small, large = checkpoint_sizes(told)
    audit = next(event for event in log(told) if event.kind == "audit.recorded").subject_id
    revoke_key(told, key_id("log"), reason="retired", actor="root")
    revoke_key(told, key_id("auditor"), reason="retired", actor="root")
    assert verify(told).ok
    revoke_key(told, key_id("log"), reason="compromised", actor="root")
    revoke_key(told, key_id("auditor"), reason="compromised", actor="root")
    (attested,) = [
        e.subject_id
        for e in log(told)
        if e.kind == "attestation.recorded" and "audit" in str(e.body["about"])
    ]
    assert found(told) == [
        ("signature", f"checkpoint {small}"),
        ("signature", f"checkpoint {large}"),
        ("signature", f"attestation {attested}"),
    ]
    add_key(told, pem(8), name="new", roles=["log", "auditor"], actor="root")
    make_checkpoint(told, private(8), origin=ORIGIN)
    attest_audit(told, audit, private=private(8), actor="zoe")
    assert verify(told).ok


def _forged(reg: Registry, kind: str, about: str, envelope: bytes, keys: list[str]) -> str:
    """An attestation event that the ledger's own code would not have written."""
    digest = reg.blobs.put(envelope)
    body: dict[str, Any] = {
        "about": {"kind": kind, "id": about},
        "predicate": "https://example.com/x",
        "keys": keys,
        "blobs": [{"digest": digest, "size": len(envelope), "media_type": "application/json"}],
    }
    with reg.write("eve") as tx:
        ledger.append(tx, "attestation.recorded", digest, body)
    return digest


def test_a_forged_attestation_is_named(told: Registry) -> None:
    events = [event for event in log(told) if event.kind == "attestation.recorded"]
    audit = next(event for event in log(told) if event.kind == "audit.recorded").subject_id
    whole = {e.body["about"]["kind"]: dsse.parse(told.blobs.read(e.subject_id)) for e in events}  # pyright: ignore
    statement = parse(whole["audit"].payload)
    assert isinstance(statement, dict)
    lie = canonical({**statement, "predicate": {**statement["predicate"], "result": "FAILED"}})  # pyright: ignore

    def sealed(payload: bytes, role: str | int) -> bytes:
        return dsse.sign("application/vnd.in-toto+json", payload, [private(role)]).to_json()

    for data, keys in (
        (sealed(lie, "auditor"), [key_id("auditor")]),
        (sealed(whole["audit"].payload, "operator"), [key_id("operator")]),
        (sealed(whole["audit"].payload, 9), [key_id(9)]),
        (sealed(whole["adapter"].payload, "auditor"), [key_id("auditor")]),
        (sealed(b"{}", "auditor"), [key_id("auditor")]),
        (b"not an envelope", [key_id("auditor")]),
        (sealed(whole["audit"].payload, "auditor") + b" ", [key_id("operator")]),
    ):
        before = found(told)
        digest = _forged(told, "audit", audit, data, keys)
        assert found(told) == [*before, ("signature", f"attestation {digest}")]


def test_damaged_envelopes_are_named_once(told: Registry) -> None:
    digest = next(event for event in log(told) if event.kind == "attestation.recorded").subject_id
    path = told.blobs.local_path(digest)
    assert path is not None
    data = path.read_bytes()
    path.unlink()
    assert found(told) == [("blob-missing", digest)]
    path.write_bytes(data[:-1] + b"?")
    assert found(told) == [("signature", f"attestation {digest}")]


def test_a_key_that_came_later_signs_nothing_before(told: Registry) -> None:
    """An early `valid_from` does not let it sign what was before the event that added it."""
    early = datetime(2026, 1, 1, tzinfo=UTC)
    add_key(told, pem(8), name="late", roles=["log"], valid_from=early, actor="eve")
    made = list_checkpoints(told)[1].checkpoint
    _resigned(told, made, private(8))
    assert found(told) == [("signature", f"checkpoint {made.tree_size}")]


def test_a_replay_that_fails_leaves_the_roots_to_compare(told: Registry) -> None:
    small, large = checkpoint_sizes(told)
    edit = lambda events: [replace(events[0], kind="key.eaten"), *events[1:]]  # noqa: E731
    rewrite(told, edit, project=False)
    assert found(told)[:3] == [
        ("replay", "event 1"),
        ("checkpoint", f"checkpoint {small}"),
        ("checkpoint", f"checkpoint {large}"),
    ]
