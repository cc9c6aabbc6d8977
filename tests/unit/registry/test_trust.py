"""Keys with roles, validity and revocation."""

import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from efface.registry import Conflict, GateFailed, InvalidInput, signing, trust
from efface.registry.trust import KeyRefused, TrustedKey, allowed, of_record, revoked, trusted_key, usable


def pem(seed: int = 1) -> str:
    return signing.public_pem(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def day(number: int) -> str:
    return f"2026-03-{number:02}T12:00:00.000000Z"


def made(seed: int = 1, **changes) -> TrustedKey:
    values = {"roles": ["auditor"], "valid_from": day(10), "valid_until": day(20), "name": "ana", **changes}
    return trusted_key(pem(seed), **values)


@pytest.mark.parametrize(
    ("role", "at", "why"),
    [
        ("auditor", day(10), None),  # from valid_from on
        ("auditor", day(19), None),
        ("auditor", day(9), "not-yet-valid"),
        ("auditor", day(20), "expired"),  # before valid_until
        ("log", day(15), "role"),
        ("log", day(9), "role"),
    ],
)
def test_role_and_validity(role: str, at: str, why: str | None) -> None:
    key = made()
    if why is None:
        assert allowed([made(2), key], key.key_id, role, at) == key
        assert usable([key], role, at) == {key.key_id: key.public}
        return
    with pytest.raises(KeyRefused) as refused:
        allowed([key], key.key_id, role, at)
    assert refused.value.why == why
    assert usable([key], role, at) == {}


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(KeyRefused) as refused:
        allowed([made(1)], made(2).key_id, "auditor", day(15))
    assert refused.value.why == "unknown"
    assert isinstance(refused.value, GateFailed)
    assert pickle.loads(pickle.dumps(refused.value)).why == "unknown"


@pytest.mark.parametrize("reason", trust.REASONS)
@pytest.mark.parametrize("at", range(9, 22))
def test_revocation(reason: str, at: int) -> None:
    """What was signed before counts still, but not when the key was compromised: its dates prove nothing."""
    key = revoked(made(), day(15), reason)
    why = trust.refusal(key, "auditor", day(at))
    if at >= 15 or reason == "compromised":
        assert why == "revoked"
    else:
        assert why == ("not-yet-valid" if at < 10 else None)


def test_a_key_is_revoked_once_unless_it_turns_out_compromised() -> None:
    retired = revoked(made(), day(15), "retired")
    for reason in ("retired", "superseded"):
        with pytest.raises(Conflict):
            revoked(retired, day(16), reason)
    worse = revoked(retired, day(18), "compromised")
    assert (worse.revoked_at, worse.revoked_reason) == (day(15), "compromised")
    with pytest.raises(Conflict):
        revoked(worse, day(18), "compromised")


def test_without_an_end_a_key_stays_valid() -> None:
    key = made(valid_until=None)
    assert allowed([key], key.key_id, "auditor", "9999-12-31T23:59:59.999999Z") == key


def test_the_key_is_named_by_what_it_is() -> None:
    key = made(roles=["log", "auditor", "log"])
    assert key.key_id == signing.key_id(pem())
    assert key.roles == ("auditor", "log")
    assert (
        made(roles=["log"]).public
        == trusted_key(pem().replace("\n", "\r\n"), roles=["log"], valid_from=day(1), name="ben").public
    )


@pytest.mark.parametrize("key", [made(), made(valid_until=None), revoked(made(), day(15), "compromised")])
def test_records_read_back(key: TrustedKey) -> None:
    assert of_record(key.record()) == key


@pytest.mark.parametrize(
    "change",
    [
        {"key_id": signing.key_id(pem(2))},
        {"public": pem(2)},
        {"public": None},
        {"roles": []},
        {"roles": "auditor"},
        {"roles": ["root"]},
        {"roles": [1]},
        {"valid_from": "2026-03-10"},
        {"valid_from": "2026-03-10T12:00:00Z"},
        {"valid_from": "2026-13-10T12:00:00.000000Z"},
        {"valid_from": "2026-03-10T12:00:00.000000+00:00"},
        {"valid_from": None},
        {"valid_until": day(10)},
        {"valid_until": 7},
        {"revoked_at": day(15)},
        {"revoked_reason": "compromised"},
        {"revoked_at": day(15), "revoked_reason": "Compromised"},
        {"name": ""},
        {"name": "a\nb"},
        {"more": 1},
    ],
)
def test_other_records_are_refused(change) -> None:
    with pytest.raises(InvalidInput):
        of_record({**made().record(), **change})


def test_questions_that_make_no_sense_are_refused() -> None:
    key = made()
    for role, at in (("root", day(15)), ("auditor", "yesterday"), ("auditor", None)):
        with pytest.raises(InvalidInput):
            allowed([key], key.key_id, role, at)
        with pytest.raises(InvalidInput):
            usable([key], role, at)
    with pytest.raises(InvalidInput):
        allowed([key, made(roles=["log"])], key.key_id, "auditor", day(15))


days = st.integers(1, 28).map(day)


@given(days, days, st.none() | days, st.sampled_from(trust.REASONS), days)
def test_a_revocation_never_makes_more_signatures_count(start, length, stop, reason, at) -> None:
    until = max(start, length)
    key = made(valid_from=start, valid_until=until if until > start else None)
    before = trust.refusal(key, "auditor", at)
    after = before if stop is None else trust.refusal(revoked(key, stop, reason), "auditor", at)
    assert before is None or after is not None
    assert (before is None) == (key.valid_from <= at and (key.valid_until is None or at < key.valid_until))
