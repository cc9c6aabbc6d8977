"""Keys as events: who may sign what, from when, and until when."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from proof_kit import key_id, pem, private, trusting
from registry_kit import contents

from efface.registry import Conflict, InvalidInput, NotFound, Registry, log, rebuild, signing, verify
from efface.registry.keys import add_key, list_keys, revoke_key, trusted_keys
from efface.registry.trust import KeyRefused, allowed

LATER = datetime(2027, 1, 1, tzinfo=UTC)
EARLIER = datetime(2026, 2, 1, tzinfo=UTC)


def test_a_key_is_added_once(reg: Registry) -> None:
    key = trusting(reg, "log")
    assert (key.key_id, key.public, key.roles, key.name) == (key_id("log"), pem("log"), ("log",), "log 1")
    assert trusting(reg, "log") == key
    assert trusting(reg, "log", valid_from=datetime.fromisoformat(key.valid_from)) == key
    assert [event.kind for event in log(reg)] == ["key.added"]
    assert list_keys(reg) == [key]
    with reg.read() as db:
        assert trusted_keys(db) == [key]


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"roles": ["log", "auditor"]}, {"valid_from": EARLIER}, {"valid_until": LATER}],
)
def test_another_record_of_the_same_key_is_refused(reg: Registry, change: dict[str, object]) -> None:
    trusting(reg, "log")
    before = contents(reg.root)
    with pytest.raises(Conflict):
        trusting(reg, "log", **change)
    assert contents(reg.root) == before


@pytest.mark.parametrize(
    "change",
    [
        {"roles": []},
        {"roles": "log"},
        {"roles": ["root"]},
        {"name": ""},
        {"name": "a\nb"},
        {"valid_from": datetime(2026, 1, 1)},
        {"valid_until": EARLIER},
        {"actor": ""},
    ],
)
def test_what_is_no_key_record_is_refused(reg: Registry, change: dict[str, object]) -> None:
    before = contents(reg.root)
    with pytest.raises(InvalidInput):
        trusting(reg, "log", **change)
    assert contents(reg.root) == before


def test_a_private_key_is_not_taken_for_a_public_one(reg: Registry) -> None:
    with pytest.raises(InvalidInput) as refused:
        add_key(reg, signing.private_pem(private("log")).decode(), name="x", roles=["log"], actor="ana")
    assert "PRIVATE" not in str(refused.value)
    assert log(reg) == []


def test_a_key_ends_now_or_earlier(reg: Registry) -> None:
    trusting(reg, "log", valid_from=EARLIER)
    key = revoke_key(reg, key_id("log")[7:17], reason="retired", actor="root")
    assert key.revoked_reason == "retired"
    assert key.revoked_at == log(reg)[-1].at
    before, after = "2026-02-02T00:00:00.000000Z", key.revoked_at
    assert allowed([key], key.key_id, "log", before) == key
    with pytest.raises(KeyRefused):
        allowed([key], key.key_id, "log", after)
    with pytest.raises(Conflict):
        revoke_key(reg, key.key_id, reason="retired", actor="root")
    with pytest.raises(Conflict):
        trusting(reg, "log", valid_from=EARLIER)


def test_a_revoked_key_may_turn_out_to_be_compromised(reg: Registry) -> None:
    trusting(reg, "log", valid_from=EARLIER)
    revoke_key(reg, key_id("log"), reason="superseded", revoked_at=EARLIER + timedelta(1), actor="root")
    key = revoke_key(reg, key_id("log"), reason="compromised", actor="root")
    assert (key.revoked_at, key.revoked_reason) == ("2026-02-02T00:00:00.000000Z", "compromised")
    with pytest.raises(KeyRefused):
        allowed([key], key.key_id, "log", "2026-02-01T12:00:00.000000Z")
    assert verify(reg).ok
    rebuild(reg)
    assert list_keys(reg) == [key]


def test_what_cannot_be_revoked(reg: Registry) -> None:
    trusting(reg, "log")
    before = contents(reg.root)
    for ref, reason, moment, error in (
        (key_id("auditor"), "retired", None, NotFound),
        ("nonsense", "retired", None, InvalidInput),
        ("sha256:ab", "retired", None, InvalidInput),
        (key_id("log"), "lost", None, InvalidInput),
        (key_id("log"), "retired", LATER, InvalidInput),
    ):
        with pytest.raises(error):
            revoke_key(reg, ref, reason=reason, revoked_at=moment, actor="root")
    assert contents(reg.root) == before


def test_a_signing_key_from_the_environment(tmp_path: Path) -> None:
    from efface.registry.attest import signer

    assert signer({}) is None
    signing.write_private(private("log"), tmp_path / "key")
    found = signer({signing.FILE_VARIABLE: str(tmp_path / "key")})
    assert found is not None
    assert signing.public_pem(found) == pem("log")
    with pytest.raises(NotFound):
        signer({signing.FILE_VARIABLE: str(tmp_path / "absent")})
