"""Requests: ids, deadlines, repeat subjects, decisions, and rows that only the vault holds."""

import base64
import hashlib
import hmac
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from registry_kit import CANARY, ask, contents

from efface.registry import (
    BrokenRegistry,
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    canonical,
    get_request,
    list_requests,
    log,
    open_request,
    read_payload,
    requests_of_subject,
    step_request,
    verify,
)

GOOD: dict[str, Any] = {"basis": "gdpr17", "payload": b"rows", "n_items": 2, "actor": "ana"}


def test_opening_and_reading_back(reg: Registry) -> None:
    request = open_request(reg, **GOOD, received_at=datetime(2026, 1, 31, 8, tzinfo=UTC))
    assert (request.id, request.state, request.n_items) == ("req-000001", "RECEIVED", 2)
    assert request.due_at == "2026-02-28T08:00:00.000000Z"
    assert request.updated_at == log(reg)[0].at
    assert get_request(reg, "req-000001") == request
    assert list_requests(reg) == list_requests(reg, "RECEIVED") == [request]
    assert list_requests(reg, "TRAINED") == []
    assert read_payload(reg, request.id) == b"rows"


@pytest.mark.parametrize(
    ("basis", "due"),
    [
        ("gdpr17", True),
        ("uk_gdpr", True),
        ("ccpa", True),
        ("copyright", False),
        ("safety", False),
        ("test", False),
    ],
)
def test_privacy_requests_fall_due(reg: Registry, basis: str, due: bool) -> None:
    assert (open_request(reg, **{**GOOD, "basis": basis}).due_at is not None) == due


def test_a_repeat_subject_is_found_and_never_named(reg: Registry) -> None:
    first = open_request(reg, **GOOD, subject_ref="Zoë Canary")
    again = open_request(reg, **GOOD, subject_ref="Zoe\u0308 Canary ")  # decomposed, with a space
    other = open_request(reg, **GOOD, subject_ref="someone else")
    assert first.subject_ref == again.subject_ref != other.subject_ref
    assert requests_of_subject(reg, "Zoë Canary") == [first, again]
    assert requests_of_subject(reg, "nobody") == []
    bare = hashlib.sha256("Zoë Canary".encode()).hexdigest()
    assert not any(b"Canary" in data or bare.encode() in data for _, data in contents(reg.root).values())


def test_no_subject_is_known_before_the_first_request(reg: Registry) -> None:
    before = contents(reg.root)
    assert requests_of_subject(reg, "anyone") == []
    assert contents(reg.root) == before


@pytest.mark.parametrize(
    "change",
    [
        {"basis": "whim"},
        {"payload": b""},
        {"payload": "text"},
        {"n_items": 0},
        {"n_items": True},
        {"n_items": 2**53},
        {"actor": ""},
        {"actor": "a" * 201},
        {"actor": "ana\nbob"},
        {"actor": "\ud800"},
        {"subject_ref": " "},
        {"subject_ref": "s" * 501},
        {"received_at": datetime(2026, 1, 1)},
        {"received_at": datetime(2096, 1, 1, tzinfo=UTC)},
    ],
)
def test_bad_arguments_write_nothing(reg: Registry, change: dict[str, Any]) -> None:
    before = contents(reg.root)
    with pytest.raises(InvalidInput):
        open_request(reg, **{**GOOD, **change})
    assert contents(reg.root) == before


def test_errors_do_not_repeat_what_they_were_given(reg: Registry) -> None:
    for change in ({"actor": CANARY * 9}, {"basis": CANARY}, {"subject_ref": CANARY * 20}):
        with pytest.raises(InvalidInput) as caught:
            open_request(reg, **{**GOOD, **change})
        assert "heron" not in str(caught.value)


def test_decisions(reg: Registry) -> None:
    request_id = ask(reg)
    verified = step_request(reg, request_id, "VERIFIED", actor="ben")
    assert (verified.state, verified.updated_at) == ("VERIFIED", log(reg)[-1].at)
    refused = step_request(reg, request_id, "REFUSED", actor="ben", reason="identity not shown")
    assert refused.state == "REFUSED"
    last = log(reg)[-1]
    assert (last.kind, last.actor, last.body) == ("request.refused", "ben", {"reason": "identity not shown"})


@pytest.mark.parametrize(
    ("to", "reason", "error"),
    [
        ("ACCEPTED", None, Conflict),
        ("CLOSED", None, InvalidInput),
        ("REFUSED", None, InvalidInput),
        ("WITHDRAWN", "two\nlines", InvalidInput),
        ("RELEASED", None, InvalidInput),
        ("FORGOTTEN", None, InvalidInput),
    ],
)
def test_steps_that_are_not_allowed_write_nothing(reg: Registry, to: str, reason: str | None, error) -> None:
    request_id = ask(reg)
    before = contents(reg.root)
    with pytest.raises(error):
        step_request(reg, request_id, to, actor="ben", reason=reason)
    assert contents(reg.root) == before


@pytest.mark.parametrize("request_id", ["req-000002", "", "../master", "req-1"])
def test_an_unknown_request_is_not_found(reg: Registry, request_id: str) -> None:
    ask(reg)
    for call in (get_request, read_payload):
        with pytest.raises(NotFound, match="efface request list"):
            call(reg, request_id)


def test_vault_files_are_private(reg: Registry) -> None:
    ask(reg)
    modes = {path.name: path.stat().st_mode & 0o777 for path in reg.vault.folder.iterdir()}
    assert modes == dict.fromkeys(("master.key", "subject.key", "vault.id", "req-000001.json"), 0o600)
    assert reg.vault.folder.stat().st_mode & 0o777 == 0o700


def test_the_key_may_come_from_the_environment(reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_VAULT_KEY", base64.b64encode(b"k" * 32).decode())
    request_id = ask(reg)
    assert not (reg.vault.folder / "master.key").exists()
    assert read_payload(reg, request_id) == CANARY.encode()
    monkeypatch.setenv("EFFACE_VAULT_KEY", base64.b64encode(b"x" * 32).decode())
    before = contents(reg.root)
    for call in (lambda: read_payload(reg, request_id), lambda: ask(reg)):
        with pytest.raises(InvalidInput, match="EFFACE_VAULT_KEY"):
            call()
    monkeypatch.delenv("EFFACE_VAULT_KEY")
    for call in (lambda: read_payload(reg, request_id), lambda: ask(reg)):
        with pytest.raises(NotFound, match="EFFACE_VAULT_KEY"):
            call()
    assert contents(reg.root) == before


@pytest.mark.parametrize("key", ["", "short", base64.b64encode(b"k" * 31).decode(), "é" * 44])
def test_a_bad_key_writes_nothing(reg: Registry, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("EFFACE_VAULT_KEY", key)
    before = contents(reg.root)
    with pytest.raises(InvalidInput, match="openssl rand"):
        ask(reg)
    assert contents(reg.root) == before


def _entry(reg: Registry, request_id: str) -> dict[str, Any]:
    return json.loads(reg.vault.path(request_id).read_bytes().partition(b"\n")[0])


def _flip(text: str) -> str:
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return base64.b64encode(bytes(data)).decode()


@pytest.mark.parametrize("field", ["key", "nonce"])
def test_a_flipped_bit_in_the_vault_is_noticed(reg: Registry, field: str) -> None:
    request_id = ask(reg)
    entry = _entry(reg, request_id)
    body = reg.vault.path(request_id).read_bytes().partition(b"\n")[2]
    header = canonical({**entry, field: _flip(entry[field])})
    reg.vault.path(request_id).write_bytes(header + b"\n" + body)
    with pytest.raises(BrokenRegistry):
        read_payload(reg, request_id)
    assert [p.kind for p in verify(reg, deep=True).problems] == ["vault-damaged"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key":1,"nonce":2,"data":3}', "\x00"])
def test_a_vault_file_of_anything_is_noticed(reg: Registry, text: str) -> None:
    request_id = ask(reg)
    reg.vault.path(request_id).write_text(text)
    with pytest.raises(BrokenRegistry):
        read_payload(reg, request_id)


def test_entries_cannot_be_swapped(reg: Registry) -> None:
    one, two = ask(reg, b"first"), ask(reg, b"second")
    reg.vault.path(one).write_bytes(reg.vault.path(two).read_bytes())
    with pytest.raises(BrokenRegistry):
        read_payload(reg, one)


def test_another_payload_under_the_right_key_is_not_what_was_committed_to(reg: Registry) -> None:
    request_id = ask(reg, b"first")
    reg.vault.put(request_id, b"second")
    with pytest.raises(BrokenRegistry, match="commits to"):
        read_payload(reg, request_id)


def test_a_lost_entry_is_named(reg: Registry) -> None:
    request_id = ask(reg)
    reg.vault.path(request_id).unlink()
    with pytest.raises(NotFound):
        read_payload(reg, request_id)
    assert [(p.kind, p.where) for p in verify(reg).problems] == [("vault-missing", request_id)]


def test_the_commitment_is_keyed(reg: Registry) -> None:
    """Two requests with one payload differ, and no unkeyed hash of it is stored: a guess cannot be tested."""
    one, two = (get_request(reg, ask(reg)) for _ in range(2))
    assert one.commitment != two.commitment
    bare = {hashlib.sha256(CANARY.encode()).hexdigest(), hmac.new(b"", CANARY.encode(), "sha256").hexdigest()}
    assert not any(guess.encode() in data for _, data in contents(reg.root).values() for guess in bare)


def test_a_lost_subject_key_stops_new_requests(reg: Registry, tmp_path: Path) -> None:
    ask(reg)
    (reg.vault.folder / "subject.key").unlink()
    before = contents(reg.root)
    with pytest.raises(BrokenRegistry, match="backup"):
        ask(reg)
    assert contents(reg.root) == before


def test_a_ledger_that_refuses_leaves_no_entry_in_the_vault(reg: Registry) -> None:
    ask(reg)
    with reg.database.writing() as db:
        trigger = "CREATE TRIGGER full BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no'); END"
        db.connection.exec_driver_sql(trigger)
    before = contents(reg.root)
    with pytest.raises(BrokenRegistry):
        ask(reg)
    assert contents(reg.root) == before


@pytest.fixture
def older(tmp_path: Path) -> tuple[Registry, bytes]:
    """A registry whose ledger was restored from before its second request, and that request's entry."""
    root = tmp_path / "older"
    with Registry.open(root, create=True) as reg:
        ask(reg, b"first", subject_ref="Zoë")
    shutil.copy(root / "registry.db", tmp_path / "backup.db")
    with Registry.open(root) as reg:
        entry = reg.vault.path(ask(reg, b"second")).read_bytes()
    for name in ("registry.db-wal", "registry.db-shm"):
        (root / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", root / "registry.db")
    return Registry.open(root), entry


def test_an_older_ledger_destroys_no_entry(older: tuple[Registry, bytes]) -> None:
    reg, entry = older
    request_id = ask(reg, b"another")
    assert (request_id, read_payload(reg, request_id)) == ("req-000002", b"another")
    assert (reg.vault.folder / "req-000002.orphan-1.json").read_bytes() == entry
    assert reg.vault.requests() == ["req-000001", "req-000002"]
    assert verify(reg, deep=True).ok


def test_entries_that_are_damaged_or_sealed_by_another_key_are_kept_too(
    older: tuple[Registry, bytes],
) -> None:
    reg, _ = older
    for number, text in enumerate((b"", bytes(200), b"rows in the clear"), 2):
        reg.vault.path(f"req-{number:06d}").write_bytes(text)
        request_id = ask(reg, b"another")
        assert (reg.vault.folder / f"{request_id}.orphan-1.json").read_bytes() == text
        assert read_payload(reg, request_id) == b"another"


def test_an_older_ledger_takes_up_the_same_rows(older: tuple[Registry, bytes]) -> None:
    reg, entry = older
    reg.vault.path("req-000002").chmod(0o400)
    request_id = ask(reg, b"second")
    assert reg.vault.path(request_id).read_bytes() == entry
    assert read_payload(reg, request_id) == b"second"
    assert verify(reg, deep=True).ok


def test_what_was_there_outlives_a_failure(
    older: tuple[Registry, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reg, entry = older

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("efface.registry.ledger.append", fail)
    for payload, name in ((b"second", "req-000002.json"), (b"another", "req-000002.orphan-1.json")):
        with pytest.raises(RuntimeError):
            ask(reg, payload)
        assert (reg.vault.folder / name).read_bytes() == entry
    assert not reg.vault.has("req-000002")


def test_a_lost_subject_key_is_not_no_requests(reg: Registry) -> None:
    assert requests_of_subject(reg, "Zoë") == []
    ask(reg)
    (reg.vault.folder / "subject.key").rename(reg.vault.folder / "elsewhere")
    assert requests_of_subject(reg, "Zoë") == []
    (reg.vault.folder / "elsewhere").rename(reg.vault.folder / "subject.key")
    ask(reg, subject_ref="Zoë")
    (reg.vault.folder / "subject.key").unlink()
    with pytest.raises(BrokenRegistry, match=r"subject\.key"):
        requests_of_subject(reg, "Zoë")
