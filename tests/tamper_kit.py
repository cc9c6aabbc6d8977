"""A registry in which everything has happened, and its database as rows, read without any of our code."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifecycle_kit import MERGED, alone, measured, proven, serve
from proof_kit import BUILDER, ORIGIN, key_id, private, trusting
from registry_kit import BASE, Clock, accept, answered, ask, audited, lora, release, seal, stack

from efface.registry import (
    Event,
    Registry,
    approve_release,
    close_request,
    compose,
    create_release,
    extend_request,
    ledger,
    purge_adapter,
    reject_adapter,
    retire_adapter,
    rule_channel,
    shred_request,
    step_request,
    withdraw_release,
)
from efface.registry.attest import attest_adapter, attest_audit, attest_release
from efface.registry.keys import revoke_key
from efface.registry.log_checkpoints import make_checkpoint
from efface.registry.tables import ALL

Rows = Mapping[str, Mapping[str, tuple[Any, ...]]]
TRIGGERS = ("event_is_never_updated", "event_is_never_deleted", "event_follows_the_last")


def everything_happened(work: Path) -> Path:
    """A folder in which `tell` was told."""
    root = work / "registry"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        tell(reg, work)
    return root


def tell(reg: Registry, work: Path) -> None:
    """Every kind of event of requests, adapters, audits, evidence, releases and keys, signed, with a checkpoint."""
    for role in ("auditor", "operator", "approver", "log"):
        trusting(reg, role)
    trusting(reg, 9, roles=["auditor"], valid_until=datetime(2030, 1, 1, tzinfo=UTC))
    revoke_key(reg, key_id(9), reason="retired", actor="root")
    received = datetime(2026, 2, 27, tzinfo=UTC)
    legal = ask(reg, basis="gdpr17", subject_ref="Zoë", received_at=received)
    extend_request(reg, legal, months=2, reason="many rows", actor="ana")
    step_request(reg, legal, "VERIFIED", actor="ana")
    step_request(reg, legal, "ACCEPTED", actor="ana")
    first = seal(reg, lora(work / "first", 1), [legal])
    attest_adapter(reg, first.digest, private=private("operator"), builder=BUILDER, actor="ana")
    release(reg, stack([first]))
    above = seal(reg, lora(work / "above", 2), [ask(reg)], trained_on=stack([first]).digest)
    release(reg, compose(BASE, "nf4", [(first.digest, 1), (above.digest, "0.5")]))
    measured(reg, legal)
    shred_request(reg, legal, actor="ana")
    close_request(reg, legal, actor="ana")
    rule_channel(reg, "prod", two_person=True, reason="four eyes", actor="cleo")
    proven(reg, legal)
    serve(reg, alone())
    close_request(reg, legal, actor="ana")
    merged = accept(reg, ask(reg, basis="ccpa", subject_ref="Ana"))
    proven(reg, merged)
    _, spare = answered(reg, work, 3)
    reject_adapter(reg, spare.digest, reason="too weak", actor="ana")
    retire_adapter(reg, spare.digest, reason="too weak", actor="ana")
    purge_adapter(reg, spare.digest, reason="too weak", actor="ana")
    refused = ask(reg)
    step_request(reg, refused, "REFUSED", actor="ana", reason="no identity")
    shred_request(reg, refused, actor="ana")
    for _ in range(2):
        create_release(reg, "canary", alone(MERGED, "nf4"), rendered=None, reason="try", actor="ana")
    evidence = audited(reg, alone(MERGED, "nf4"))
    attest_audit(reg, evidence.digest, private=private("auditor"), actor="zoe")
    approve_release(reg, "canary", 1, audit=evidence.digest, approved_by="ben")
    withdraw_release(reg, "canary", 1, reason="a mistake", actor="ben")
    active = release(reg, stack([first]))
    attest_release(reg, "prod", active.version, private=private("approver"), actor="ben")
    make_checkpoint(reg, private("log"), origin=ORIGIN)


def forge(reg: Registry, *events: tuple[str, str, Mapping[str, Any]]) -> None:
    """Chain events to the ledger as its owner could, without asking anything."""
    with reg.write("eve") as tx:
        for kind, subject, body in events:
            head = tx.db.get("head", 1)
            assert head
            subject_kind = kind.partition(".")[0]
            values = (head["seq"] + 1, 1, tx.at, kind, "eve", subject_kind, subject, body, head["hash"])
            bare = Event(*values, "")
            event = replace(bare, hash=ledger.hash_of(bare))
            tx.db.insert("event", **ledger.row_of(event))
            tx.db.update("head", (1,), seq=event.seq, hash=event.hash)


def rows(path: Path) -> Rows:
    """Table → key → row, of every table, in the bytes that are stored. Raises sqlite3.Error."""
    found: dict[str, dict[str, tuple[Any, ...]]] = {}
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = bytes
        for table in ALL.values():
            query = f"SELECT {', '.join(table.columns)} FROM {table.name} NOT INDEXED"
            found[table.name] = {_key(row[: table.keys]): tuple(row) for row in db.execute(query)}
    return found


def changed(before: Rows, after: Rows) -> set[str]:
    """The rows that are not what they were, named as `verify` names them."""
    return {
        name_of(table, key)
        for table in before
        for key in before[table].keys() | after[table].keys()
        if before[table].get(key) != after[table].get(key)
    }


def name_of(table: str, key: str) -> str:
    """How `verify` names a row."""
    own = {"event": f"event {key}", "head": "head", "checkpoint": f"checkpoint {key}"}
    return own.get(table, f"{table}[{key}]")


def update(db: sqlite3.Connection, statement: str, values: tuple[Any, ...] = ()) -> None:
    """Run SQL as somebody would who owns the file: triggers dropped, and put back afterwards."""
    triggers = [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'")]
    for name in TRIGGERS:
        db.execute(f"DROP TRIGGER {name}")
    try:
        db.execute(statement, values)
    finally:
        for sql in triggers:
            db.execute(sql)


def _key(cells: tuple[Any, ...]) -> str:
    return ", ".join(
        cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in cells
    )
