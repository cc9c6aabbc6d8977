"""Signing a report in a file and checking it: any change of one byte is noticed, and who may sign is kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from audit_kit import PROMPT, by_figures, evaluation, full_report, known, report
from cli_kit import checked, efface
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_kit import CANARY

from efface.audits.gates import check
from efface.registry import GateFailed, InvalidInput, Registry, dsse, signing, statements
from efface.registry.report_statement import SUFFIX, report_facts, sign_report, verify_report

PRIVATE = signing.load_private(signing.private_pem(signing.generate()))
PEM = signing.public_pem(PRIVATE)
KEYS = {signing.key_id(PEM): PEM}


def written(made: Any = None) -> bytes:
    return json.dumps((made or full_report()).to_json(), indent=2).encode()


DATA = written()
ENVELOPE = sign_report(DATA, PRIVATE)


def test_a_signed_report_is_a_test_result_of_its_composition() -> None:
    assert verify_report(DATA, ENVELOPE, KEYS) == tuple(KEYS)
    statement = statements.parse_statement(dsse.parse(ENVELOPE).payload)
    assert statement.predicate_type == statements.TEST_RESULT_TYPE
    assert statement.covers("sha256:" + "ab" * 32)
    assert statement.predicate["result"] == "PASSED"
    assert "max_mention_rate_forget forget q1" in statement.predicate["passedTests"]  # type: ignore[operator]
    assert PROMPT.encode() not in dsse.parse(ENVELOPE).payload


def test_a_failed_audit_is_signed_as_failed() -> None:
    before, after = evaluation("base", *known()), evaluation("+ q1", *known(), active=("q1",))
    data = written(report(evaluations=(before, after), findings=check(before, after, by_figures())))
    envelope = sign_report(data, PRIVATE)
    assert report_facts(data).verdict == "fail"
    assert statements.parse_statement(dsse.parse(envelope).payload).predicate["result"] == "FAILED"
    verify_report(data, envelope, KEYS)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_no_byte_of_a_report_can_change(at: int, flip: int) -> None:
    with pytest.raises((GateFailed, InvalidInput)):
        verify_report(DATA[:at] + bytes([DATA[at] ^ flip]) + DATA[at + 1 :], ENVELOPE, KEYS)


@settings(max_examples=60)
@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_a_changed_envelope_verifies_only_where_nothing_that_counts_changed(at: int, flip: int) -> None:
    changed = ENVELOPE[:at] + bytes([ENVELOPE[at] ^ flip]) + ENVELOPE[at + 1 :]
    try:
        verify_report(DATA, changed, KEYS)
    except (GateFailed, InvalidInput):
        return
    was, now = dsse.parse(ENVELOPE), dsse.parse(changed)
    assert (was.payload, was.signatures[0].sig) == (now.payload, now.signatures[0].sig)  # a hint of the key


def test_another_report_of_the_same_composition_is_not_covered() -> None:
    with pytest.raises(GateFailed, match="Ask for the report that was signed"):
        verify_report(written(report(title="another")), ENVELOPE, KEYS)


def test_a_verdict_that_its_findings_do_not_give_is_not_signed() -> None:
    document = json.loads(DATA)
    document["verdict"] = "fail"
    with pytest.raises(InvalidInput, match="verdict that the findings"):
        sign_report(json.dumps(document).encode(), PRIVATE)
    document["verdict"] = "pass"
    document["findings"] = []
    with pytest.raises(InvalidInput, match="verdict that the findings"):
        sign_report(json.dumps(document).encode(), PRIVATE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema": "efface.audit/2"}',
        b'{"schema": "efface.audit/1"}',
        b'{"schema": "efface.audit/1", "findings": 3, "verdict": "pass", "after": "a", "evaluations": []}',
        b'{"schema": "efface.audit/1", "findings": [[]], "verdict": "pass", "after": "a", "evaluations": ["a"]}',
        b'{"schema": "efface.reversibility/1", "findings": [], "verdict": "fail", "composition": "canary-secret"}',
        b'{"schema": "efface.reversibility/1", "findings": [], "verdict": "fail", "composition": 7}',
        b'{"schema": ["efface.audit/1"]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_report_is_refused_and_not_quoted(data: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        report_facts(data)
    assert "canary" not in str(caught.value)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_bytes(DATA)
    signing.write_private(PRIVATE, tmp_path / "auditor.key")
    (tmp_path / "auditor.pem").write_text(PEM)
    return tmp_path


def test_the_commands_sign_and_verify_offline(place: Path) -> None:
    file, envelope = place / "report.json", place / f"report.json{SUFFIX}"
    signed = checked(None, "audit", "sign", file, "--key", place / "auditor.key")
    assert signed["signature"] == str(envelope)
    assert signed["key_id"] == next(iter(KEYS))
    found = checked(None, "audit", "verify", file, "--key", place / "auditor.pem")
    assert (found["keys"], found["verdict"]) == (list(KEYS), "pass")
    file.write_bytes(DATA.replace(b"One request", b"Two request"))
    tampered = efface("audit", "verify", file, "--key", place / "auditor.pem")
    assert (tampered.code, tampered.out) == (1, "")
    assert "report that was signed" in tampered.err


def test_the_key_of_the_environment_signs_and_somebody_elses_does_not_count(place: Path) -> None:
    file = place / "report.json"
    done = efface("audit", "sign", file, variables={"EFFACE_SIGNING_KEY_FILE": str(place / "auditor.key")})
    assert done.code == 0, done
    (place / "other.pem").write_text(signing.public_pem(signing.generate()))
    assert efface("audit", "verify", file, "--key", place / "other.pem").code == 1
    assert (
        efface("audit", "verify", file, "--key", place / "other.pem", "--key", place / "auditor.pem").code
        == 0
    )


def test_the_auditors_of_a_registry_count_and_others_do_not(place: Path) -> None:
    file, root = place / "report.json", place / "registry"
    Registry.open(root, create=True).close()
    assert efface("audit", "sign", file, "--key", place / "auditor.key").code == 0
    where = ("--registry", root)
    assert efface("audit", "verify", file, *where).code == 1
    assert (
        efface("key", "add", place / "auditor.pem", "--role", "operator", "--name", "ana", *where).code == 0
    )
    assert efface("audit", "verify", file, *where).code == 1
    other = signing.generate()
    (place / "second.pem").write_text(signing.public_pem(other))
    signing.write_private(other, place / "second.key")
    assert efface("key", "add", place / "second.pem", "--role", "auditor", "--name", "bea", *where).code == 0
    assert efface("audit", "sign", file, "--key", place / "second.key").code == 0
    assert efface("audit", "verify", file, *where).code == 0
    revoked = efface(
        "key", "revoke", signing.key_id(signing.public_pem(other)), "--reason", "retired", *where
    )
    assert revoked.code == 0, revoked
    assert efface("audit", "verify", file, *where).code == 1


@pytest.mark.parametrize("verb", ["sign", "verify"])
def test_a_file_that_is_not_there_says_how_to_get_one(place: Path, verb: str) -> None:
    key = place / ("auditor.key" if verb == "sign" else "auditor.pem")
    ran = efface("audit", verb, place / "none.json", "--key", key)
    assert ran.code == 2
    assert "audit run --json" in ran.err
    assert CANARY not in ran.err
    assert efface("audit", verb, place, "--key", key).code == 2


def test_a_report_without_an_envelope_is_an_error_not_a_pass(place: Path) -> None:
    ran = efface("audit", "verify", place / "report.json", "--key", place / "auditor.pem")
    assert ran.code == 2
    assert "audit sign" in ran.err
