"""What a request asks to forget, and who asks, is in no byte that is written, no log line and no error's text.

Free text that people type to be recorded (who acts, why, a statement) is in the ledger by design; everything else is
tried here with the forgotten text in its place.
"""

import logging
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import alone, measured, proven, serve
from registry_kit import BASE, Clock, accept, answered, ask, audited, lora, release, seal, stack
from vault_kit import SECRET, leaks, traces

from efface.registry import (
    Registry,
    RegistryError,
    activate_release,
    active_release,
    adapter_folder,
    adapter_for_request,
    approve_release,
    canonical,
    close_request,
    collect,
    compose,
    create_release,
    diff_releases,
    evidence_of,
    extend_request,
    find_audit,
    get_adapter,
    get_audit,
    get_release,
    get_request,
    history,
    ledger,
    list_adapters,
    list_requests,
    log,
    open_request,
    plan_collection,
    plan_removal,
    plan_shredding,
    purge_adapter,
    read_payload,
    rebuild,
    record_audit,
    reject_adapter,
    requests_of_subject,
    retire_adapter,
    seal_adapter,
    shred_request,
    step_request,
    supported_claim,
    verify,
    withdraw_release,
    without,
)
from efface.registry.canon import parse, parse_timestamp, weight
from efface.registry.gc import plan_from_json
from efface.registry.locations import locate

LINE = SECRET.splitlines()[0]
SUBJECT = "Zoë Ünlü, 17 Canary Row"
ROWS_MARKS, SUBJECT_MARKS = traces(SECRET.encode()), traces(SUBJECT.encode())
MARKS = ROWS_MARKS | SUBJECT_MARKS
OPEN: dict[str, Any] = {"basis": "gdpr17", "payload": SECRET.encode(), "n_items": 2, "actor": "ana"}
AUDIT: dict[str, Any] = {
    "composition": "sha256:" + "1" * 64, "precision": "nf4", "suite": "quick@1", "seed": 0, "verdict": "pass",
    "report": b"{}", "environment": {}, "actor": "ana",
}  # fmt: skip
SEAL: dict[str, Any] = {"kind": "trained", "base": BASE, "quantization": "nf4", "facts": {}, "actor": "ana"}


@pytest.fixture
def loud(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A registry whose every library logs all that it can."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "sqlalchemy")  # it has a level of its own
    with Registry.open(
        tmp_path / "registry", create=True, clock=Clock(datetime(2026, 3, 1, tzinfo=UTC))
    ) as reg:
        yield reg


def said(caplog: pytest.LogCaptureFixture) -> bytes:
    records = [f"{record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records]
    return "\n".join([caplog.text, *records]).encode("utf-8", "surrogateescape")


def held(text: bytes, marks: set[bytes] = MARKS) -> set[bytes]:
    return {mark for mark in marks if mark in text}


def test_the_marks_are_found_where_they_are(tmp_path: Path) -> None:
    for number, mark in enumerate(sorted(MARKS)):
        (tmp_path / str(number)).write_bytes(b"before" + mark + b"after")
    assert len(leaks(tmp_path, MARKS)) == len(MARKS) > 20


def test_a_whole_life(loud: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After every step, and once inside a transaction, with its journal on the disk."""
    reg, root = loud, tmp_path / "registry"

    def quiet() -> None:
        assert leaks(root, MARKS) == []
        assert held(said(caplog)) == set()

    request_id = open_request(reg, **OPEN, subject_ref=SUBJECT).id
    quiet()
    with reg.write("ana") as tx:
        ledger.append(tx, "request.verified", request_id, {})
        assert (root / "registry.db-journal").exists()
        quiet()
    step_request(reg, request_id, "ACCEPTED", actor="ana")
    assert read_payload(reg, request_id) == SECRET.encode()
    assert [one.id for one in requests_of_subject(reg, SUBJECT)] == [request_id]
    extend_request(reg, request_id, months=1, reason="many rows", actor="ana")
    below = seal(reg, lora(tmp_path / "one", 1), [request_id])
    quiet()
    release(reg, stack([below]))
    _, other = answered(reg, tmp_path, 2)
    release(reg, stack([below, other]))
    adapter_folder(reg, below.digest)
    quiet()
    measured(reg, request_id)
    shred_request(reg, request_id, actor="ana")
    quiet()
    close_request(reg, request_id, actor="ana")
    proven(reg, request_id)
    serve(reg, alone(), reason="merged")
    for end in (retire_adapter, purge_adapter):
        end(reg, below.digest, reason="merged", actor="ana")
    collect(reg, plan_collection(reg), actor="ana")
    rebuild(reg)
    assert verify(reg, deep=True).ok
    again = open_request(reg, **OPEN, subject_ref=SUBJECT).id
    assert [one.id for one in requests_of_subject(reg, SUBJECT)] == [request_id, again]
    quiet()
    assert any(record.name.startswith("sqlalchemy") for record in caplog.records)


Calls = dict[str, Callable[[Registry, str, Path], object]]
REQUESTS: Calls = {
    **{
        f"open {name}": lambda reg, text, _, name=name: open_request(reg, **{**OPEN, name: text})
        for name in ("basis", "payload", "n_items", "actor")
    },
    "open subject": lambda reg, text, _: open_request(reg, **OPEN, subject_ref=text * 20),
    "open subject lines": lambda reg, text, _: open_request(reg, **OPEN, subject_ref=text),
    "open subject surrogates": lambda reg, text, _: open_request(reg, **OPEN, subject_ref=LINE + "\ud800"),
    "subject": lambda reg, text, _: requests_of_subject(reg, text),
    "get": lambda reg, text, _: get_request(reg, text),
    "get line": lambda reg, text, _: get_request(reg, LINE),
    "list state": lambda reg, text, _: list_requests(reg, text),
    "list after": lambda reg, text, _: list_requests(reg, after=text),
    "list limit": lambda reg, text, _: list_requests(reg, limit=text),  # pyright: ignore
    "read": lambda reg, text, _: read_payload(reg, text),
    "vault": lambda reg, text, _: reg.vault.read(text),
    "step id": lambda reg, text, _: step_request(reg, text, "VERIFIED", actor="a"),
    "step to": lambda reg, text, _: step_request(reg, "req-000001", text, actor="a"),
    "step actor": lambda reg, text, _: step_request(reg, "req-000001", "VERIFIED", actor=text),
    "step reason": lambda reg, text, _: step_request(reg, "req-000001", "REFUSED", actor="a", reason=text),
    "extend id": lambda reg, text, _: extend_request(reg, text, months=1, reason="r", actor="a"),
    "extend months": lambda reg, text, _: extend_request(
        reg, "req-000001", months=text, reason="r", actor="a"  # pyright: ignore
    ),
    "extend reason": lambda reg, text, _: extend_request(reg, "req-000001", months=1, reason=text, actor="a"),
    "shred": lambda reg, text, _: shred_request(reg, text, actor="a"),
    "plan shred": lambda reg, text, _: plan_shredding(reg, text),
    "close id": lambda reg, text, _: close_request(reg, text, actor="a"),
    "close claim": lambda reg, text, _: close_request(reg, "req-000001", claim=text, actor="a"),
    "supported": lambda reg, text, _: supported_claim(reg, text),
    "evidence of": lambda reg, text, _: evidence_of(reg, text),
    "evidence id": lambda reg, text, _: proven(reg, text, audit="0" * 64),
    **{
        f"evidence {name}": lambda reg, text, _, name=name: proven(
            reg, "req-000001", **{"audit": "0" * 64, name: text}
        )
        for name in ("method", "artefact", "audit", "statement", "actor")
        if name != "artefact"
    },
    "log": lambda reg, text, _: log(reg, kind=text),
}  # fmt: skip
ADAPTERS: Calls = {
    **{
        f"seal {name}": lambda reg, text, work, name=name: seal_adapter(
            reg, work / "lora", request_ids=["req-000001"], **{**SEAL, name: text}
        )
        for name in ("kind", "base", "quantization", "actor", "trained_on", "error_bound")
    },
    "seal request": lambda reg, text, work: seal(reg, work / "lora", [text]),
    "seal requests": lambda reg, text, work: seal(reg, work / "lora", text),
    "seal facts": lambda reg, text, work: seal(reg, work / "lora", ["req-000001"], facts={text: object()}),
    "seal long facts": lambda reg, text, work: seal(
        reg, work / "lora", ["req-000001"], facts={"a": text * 999}
    ),
    "get": lambda reg, text, _: get_adapter(reg, text),
    "list request": lambda reg, text, _: list_adapters(reg, text),
    "list state": lambda reg, text, _: list_adapters(reg, state=text),
    "list after": lambda reg, text, _: list_adapters(reg, after=text),
    "of request": lambda reg, text, _: adapter_for_request(reg, text),
    "folder": lambda reg, text, _: adapter_folder(reg, text),
    "reject": lambda reg, text, _: reject_adapter(reg, text, reason="r", actor="a"),
    "retire reason": lambda reg, text, _: retire_adapter(reg, "0" * 64, reason=text, actor="a"),
    "purge actor": lambda reg, text, _: purge_adapter(reg, "0" * 64, reason="r", actor=text),
    **{
        f"audit {name}": lambda reg, text, _, name=name: record_audit(reg, **{**AUDIT, name: text})
        for name in ("composition", "precision", "suite", "seed", "verdict", "report", "actor")
    },
    "audit report bytes": lambda reg, text, _: record_audit(reg, **{**AUDIT, "report": text.encode()}),
    "audit report utf-16": lambda reg, text, _: record_audit(
        reg, **{**AUDIT, "report": text.encode("utf-16")}
    ),
    "audit environment name": lambda reg, text, _: record_audit(reg, **{**AUDIT, "environment": {text: "1"}}),
    "audit environment": lambda reg, text, _: record_audit(reg, **{**AUDIT, "environment": {"a": text}}),
    "get audit": lambda reg, text, _: get_audit(reg, text),
    "find audit": lambda reg, text, _: find_audit(reg, composition=text, precision="nf4", suite="q"),
    "find precision": lambda reg, text, _: find_audit(
        reg, composition=alone().digest, precision=text, suite="q"
    ),
    "find suite": lambda reg, text, _: find_audit(
        reg, composition=alone().digest, precision="nf4", suite=text
    ),
}
RELEASES: Calls = {
    "base": lambda reg, text, _: compose(text, "nf4", []),
    "quantization": lambda reg, text, _: compose(BASE, text, []),
    "render": lambda reg, text, _: compose(BASE, "nf4", [], text),
    "adapter": lambda reg, text, _: compose(BASE, "nf4", [(text, 1)]),
    "weight": lambda reg, text, _: compose(BASE, "nf4", [("sha256:" + "1" * 64, text)]),
    "without": lambda reg, text, _: without(compose(BASE, "nf4", []), [text]),
    "create channel": lambda reg, text, _: create_release(
        reg, text, alone(), rendered=None, reason="r", actor="a"
    ),
    "create rendered": lambda reg, text, _: create_release(
        reg, "prod", alone(), rendered=text, reason="r", actor="a"
    ),
    "create reason": lambda reg, text, _: create_release(
        reg, "prod", alone(), rendered=None, reason=text, actor="a"
    ),
    "create actor": lambda reg, text, _: create_release(
        reg, "prod", alone(), rendered=None, reason="r", actor=text
    ),
    "approve": lambda reg, text, _: approve_release(reg, "prod", 1, audit=text, approved_by="a"),
    "approve by": lambda reg, text, _: approve_release(reg, "prod", 1, audit="0" * 64, approved_by=text),
    "activate": lambda reg, text, _: activate_release(reg, "prod", 1, audit=text, approved_by="a"),
    "activate channel": lambda reg, text, _: activate_release(reg, text, 1, approved_by="a"),
    "version": lambda reg, text, _: get_release(reg, "prod", text),  # pyright: ignore
    "withdraw": lambda reg, text, _: withdraw_release(reg, "prod", 1, reason=text, actor="a"),
    "get": lambda reg, text, _: get_release(reg, text, 1),
    "active": lambda reg, text, _: active_release(reg, text),
    "history": lambda reg, text, _: history(reg, text),
    "diff": lambda reg, text, _: diff_releases(reg, text, 1, 1),
    "removal channel": lambda reg, text, _: plan_removal(reg, text, ["req-000001"]),
    "removal request": lambda reg, text, _: plan_removal(reg, "prod", [text]),
    "removal requests": lambda reg, text, _: plan_removal(reg, "prod", [LINE, "req-000001"]),
}
VALUES: Calls = {
    "gc plan": lambda reg, text, _: plan_from_json(
        {"items": [{text: text}], "min_age_seconds": 1, "digest": text}
    ),
    "gc seconds": lambda reg, text, _: plan_from_json({"items": [], "min_age_seconds": text, "digest": "x"}),
    "gc actor": lambda reg, text, _: collect(reg, plan_collection(reg), actor=text),
    "parse": lambda reg, text, _: parse(text),
    "parse bytes": lambda reg, text, _: parse(b"\xff" + text.encode()),
    "parse key": lambda reg, text, _: parse(canonical({text: 1})[:-1]),
    "canonical": lambda reg, text, _: canonical({text: {text}}),  # pyright: ignore
    "canonical surrogates": lambda reg, text, _: canonical({text + "\ud800": 1}),
    "timestamp": lambda reg, text, _: parse_timestamp(text),
    "weight": lambda reg, text, _: weight(text),
    "blob": lambda reg, text, _: reg.blobs.read(text),
    "location": lambda reg, text, _: locate(f"{text}://x"),
    "location parameter": lambda reg, text, _: locate(f"sqlite:///x?{text}=1"),
    "location host": lambda reg, text, _: locate(f"postgresql://[{text}/x"),
}
ALL_CALLS = [
    pytest.param(call, id=f"{group} {name}")
    for group, calls in {
        "request": REQUESTS,
        "adapter": ADAPTERS,
        "release": RELEASES,
        "value": VALUES,
    }.items()
    for name, call in calls.items()
]


@pytest.mark.parametrize("call", ALL_CALLS)
def test_no_error_says_it(
    loud: Registry,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[Registry, str, Path], object],
) -> None:
    """Nor any log, nor any byte: with the text where something else belongs."""
    lora(tmp_path / "lora")
    request_id = ask(loud, b"other rows")
    adapter = seal(loud, lora(tmp_path / "sealed", 3), [request_id])
    release(loud, stack([adapter]))
    audited(loud, alone())
    with pytest.raises(RegistryError) as caught:
        call(loud, SECRET, tmp_path)
    error = caught.value
    text = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + str(error.__cause__)
    code = "".join(line for frame in traceback.extract_tb(error.__traceback__) for line in [frame.line or ""])
    assert LINE not in code
    assert held(text.encode("utf-8", "surrogateescape")) == set()
    assert held(said(caplog)) == set()
    assert leaks(tmp_path / "registry", MARKS) == []


def test_a_broken_database_does_not_say_it(loud: Registry, caplog: pytest.LogCaptureFixture) -> None:
    """A driver's error quotes its statement's values; ours does not."""
    ask(loud, b"other rows")
    path = loud.root / "registry.db"
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 8] = b"\xff" * 8
    path.write_bytes(data)
    for call in (lambda: get_request(loud, SECRET), lambda: get_request(loud, LINE)):
        with pytest.raises(RegistryError) as caught:
            call()
        assert held("".join(traceback.format_exception(caught.value)).encode()) == set()
    assert held(said(caplog)) == set()


def test_nothing_is_left_after_shredding(loud: Registry, tmp_path: Path) -> None:
    """With the vault's key, and every file that a training may leave."""
    reg, root = loud, tmp_path / "registry"
    request_id = open_request(reg, **OPEN, subject_ref=SUBJECT).id
    for place in (f"work/{request_id}", f"cache/rows/{request_id}"):
        (root / place).mkdir(parents=True)
        (root / place / "rows.jsonl").write_text(SECRET)
    entry = reg.vault.path(request_id).read_bytes()
    wrapped, ciphertext = entry.partition(b"\n")[0], entry.partition(b"\n")[2]
    release(reg, stack([seal(reg, lora(tmp_path / "lora"), [accept(reg, request_id)])]))
    assert leaks(root, MARKS) != []
    shred_request(reg, request_id, actor="ana")
    assert leaks(root, MARKS | {wrapped, ciphertext[:32]}) == []
    with pytest.raises(RegistryError):
        read_payload(reg, request_id)
