"""Attestations: only the key of the role signs, and the statement says what the ledger says."""

from pathlib import Path
from typing import Any

import pytest
from proof_kit import BUILDER, key_id, private, signed_story, trusting
from registry_kit import answered, contents, release, stack

from efface.registry import (
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    create_release,
    dsse,
    get_adapter,
    get_audit,
    log,
    rebuild,
    statements,
    verify,
)
from efface.registry.approvals import APPROVAL_TYPE, check
from efface.registry.attest import attest_adapter, attest_audit, attest_release, attestations_of, described
from efface.registry.canon import canonical, digest_bytes, parse
from efface.registry.keys import revoke_key
from efface.registry.trust import KeyRefused


@pytest.fixture
def active(reg: Registry, tmp_path: Path):
    return signed_story(reg, tmp_path)[1]


def payload(reg: Registry, digest: str) -> Any:
    return parse(dsse.parse(reg.blobs.read(digest)).payload)


def test_each_kind_is_signed_and_found_again(reg: Registry, active) -> None:
    adapter = active.composition.adapters[0]
    for kind, about, role, predicate in (
        ("adapter", adapter, "operator", statements.PROVENANCE_TYPE),
        ("audit", active.audit, "auditor", statements.TEST_RESULT_TYPE),
        ("release", "prod@1", "approver", APPROVAL_TYPE),
    ):
        (found,) = attestations_of(reg, kind, about)
        assert (found.about_kind, found.about_id, found.predicate) == (kind, about, predicate)
        assert found.keys == (key_id(role),)
        envelope = reg.blobs.read(found.digest)
        assert digest_bytes(envelope) == found.digest
        assert payload(reg, found.digest)["predicateType"] == predicate
        event = next(event for event in log(reg) if event.subject_id == found.digest)
        assert (event.kind, event.at) == ("attestation.recorded", found.at)
    assert attestations_of(reg, "adapter", adapter[7:15]) == attestations_of(reg, "adapter", adapter)
    assert verify(reg, deep=True).ok
    rebuild(reg)
    assert verify(reg, deep=True).ok


def test_an_approval_names_composition_version_and_audit(reg: Registry, active) -> None:
    (found,) = attestations_of(reg, "release", "prod@1")
    said = payload(reg, found.digest)
    hexed = {"sha256": active.composition.digest[7:]}
    assert said["subject"] == [{"name": "composition", "digest": hexed}]
    audit = {"name": "audit", "digest": {"sha256": active.audit[7:]}}
    assert said["predicate"] == {"channel": "prod", "version": 1, "audit": audit}


def test_signing_the_same_twice_is_signing_it_once(reg: Registry, active) -> None:
    before = log(reg)
    attest_audit(reg, active.audit, private=private("auditor"), actor="else")
    assert log(reg) == before
    other = attest_audit(
        reg, active.audit, private=private("auditor"), tests={"forget": True, "retain": True}, actor="zoe"
    )
    assert attestations_of(reg, "audit", active.audit)[-1] == other
    assert payload(reg, other.digest)["predicate"]["passedTests"] == ["forget", "retain"]
    assert verify(reg).ok


@pytest.mark.parametrize("role", ["operator", "approver", "log", 9])
def test_another_key_may_not_sign_an_audit(reg: Registry, active, role: str | int) -> None:
    before = contents(reg.root)
    with pytest.raises(KeyRefused):
        attest_audit(reg, active.audit, private=private(role), actor="zoe")
    assert contents(reg.root) == before


def test_nor_may_a_revoked_or_expired_one(reg: Registry, active) -> None:
    revoke_key(reg, key_id("auditor"), reason="retired", actor="root")
    with pytest.raises(KeyRefused) as refused:
        attest_audit(reg, active.audit, private=private("auditor"), tests={"a": True}, actor="zoe")
    assert refused.value.why == "revoked"
    assert verify(reg).ok


def test_bad_input_changes_nothing(reg: Registry, active, tmp_path: Path) -> None:
    create_release(reg, "next", active.composition, rendered=None, reason="r", actor="ana")
    before = contents(reg.root)
    operator, auditor, approver = (private(role) for role in ("operator", "auditor", "approver"))
    adapter = active.composition.adapters[0]
    with pytest.raises(InvalidInput):
        attest_adapter(reg, adapter, private=operator, builder="no uri", actor="ana")
    with pytest.raises(NotFound):
        attest_adapter(reg, "0" * 8, private=operator, builder=BUILDER, actor="ana")
    with pytest.raises(InvalidInput):
        attest_audit(reg, active.audit, private=auditor, tests={"forget": False}, actor="zoe")
    with pytest.raises(GateFailed):
        attest_release(reg, "next", 1, private=approver, actor="ben")
    with pytest.raises(NotFound):
        attest_release(reg, "prod", 9, private=approver, actor="ben")
    for kind, about in (("release", "prod@9"), ("release", "prod"), ("audit", "0" * 8), ("adapter", "0" * 8)):
        with pytest.raises(NotFound):
            attestations_of(reg, kind, about)
    with pytest.raises(InvalidInput):
        attestations_of(reg, "key", "x")
    assert contents(reg.root) == before


def test_a_failed_audit_is_attested_as_failed(reg: Registry, active) -> None:
    from registry_kit import audited

    failed = audited(reg, active.composition, verdict="fail", seed=3)
    made = attest_audit(reg, failed.digest, private=private("auditor"), actor="zoe")
    assert payload(reg, made.digest)["predicate"]["result"] == "FAILED"
    assert verify(reg).ok


def _edited(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = _edited(copy[path[0]], path[1:], new)
    return copy


HEX = {"sha256": "0" * 64}
EDITS = {
    "adapter": [
        (("subject", 0, "digest"), HEX),
        (("subject",), [{"name": "x", "digest": HEX}]),
        (("predicate", "buildDefinition", "buildType"), "https://example.com/other"),
        (("predicate", "buildDefinition", "externalParameters", "quantization"), "int8"),
        (("predicate", "buildDefinition", "resolvedDependencies"), []),
        (("predicateType",), statements.TEST_RESULT_TYPE),
    ],
    "audit": [
        (("subject", 0, "digest"), HEX),
        (("predicate", "result"), "FAILED"),
        (("predicate", "configuration", 1, "digest"), HEX),
        (("predicateType",), APPROVAL_TYPE),
    ],
    "release": [
        (("subject", 0, "digest"), HEX),
        (("predicate", "version"), 2),
        (("predicate", "channel"), "prod2"),
        (("predicate", "audit", "digest"), HEX),
        (("predicate", "extra"), None),
        (("predicateType",), "https://example.com/other"),
    ],
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_statement_of_anything_else_is_refused(reg: Registry, active, kind: str) -> None:
    about = {"adapter": active.composition.adapters[0], "audit": active.audit, "release": "prod@1"}[kind]
    (found,) = attestations_of(reg, kind, about)
    with reg.read() as db:
        record = described(db, kind, about)
    said = payload(reg, found.digest)
    check(kind, record, canonical(said))
    for path, new in EDITS[kind]:
        if path[-1] == "extra":
            changed = {**said, "predicate": {**said["predicate"], "extra": 1}}
        else:
            changed = _edited(said, path, new)
        with pytest.raises((GateFailed, InvalidInput)):
            check(kind, record, canonical(changed))


def test_two_releases_of_one_stack_are_approved_apart(reg: Registry, tmp_path: Path) -> None:
    trusting(reg, "approver")
    _, adapter = answered(reg, tmp_path, 1)
    for channel in ("one", "two"):
        release(reg, stack([adapter]), channel)
        attest_release(reg, channel, 1, private=private("approver"), actor="ben")
    digests = {attestations_of(reg, "release", f"{name}@1")[0].digest for name in ("one", "two")}
    assert len(digests) == 2
    assert get_adapter(reg, adapter.digest).state == "QUALIFIED"
    assert get_audit(reg, release(reg, stack([adapter]), "three").audit or "").verdict == "pass"
