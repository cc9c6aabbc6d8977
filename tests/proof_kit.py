"""What the tests of keys, checkpoints, attestations and bundles share: fixed keys, and a registry that is signed."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from registry_kit import answered, ask, release, stack

from efface.registry import Registry, Release, ledger, log, signing
from efface.registry.attest import attest_adapter, attest_audit, attest_release
from efface.registry.keys import add_key
from efface.registry.trust import TrustedKey

ORIGIN = "example.com/efface"
BUILDER = "https://example.com/builders/gpu-1"
SEEDS = {"auditor": 1, "operator": 2, "approver": 3, "log": 4}


def private(role: str | int) -> Ed25519PrivateKey:
    """The key of a role, or another one by number."""
    return Ed25519PrivateKey.from_private_bytes(bytes([SEEDS[role] if isinstance(role, str) else role]) * 32)


def pem(role: str | int) -> str:
    return signing.public_pem(private(role))


def key_id(role: str | int) -> str:
    return signing.key_id(pem(role))


def trusting(reg: Registry, role: str | int, **changes: Any) -> TrustedKey:
    """Add the key of a role."""
    values: dict[str, Any] = {"name": f"{role} 1", "roles": [role], "actor": "root", **changes}
    return add_key(reg, pem(role), **values)


def open_as_0_1_0(reg: Registry, subject: str) -> str:
    """A request as efface 0.1.0 opened it: who asked stands in its first event. Returns its id."""
    request_id = ask(reg, subject_ref="someone else")
    with reg.read() as db:
        body = dict(log(reg, kind="request.received")[-1].body)
        number = db.count("forget_request") + 1
    old = f"req-{number:06d}"
    commitment = reg.vault.put(old, b"x")
    with reg.write("ana") as tx:
        opening = {**body, "commitment": commitment, "subject_ref": reg.vault.subject(subject)}
        ledger.append(tx, "request.received", old, opening)
    assert old != request_id
    return old


def signed_story(reg: Registry, work: Path) -> tuple[str, Release]:
    """A request with an adapter, an audit and an active release, every one attested; no checkpoint yet."""
    for role in SEEDS:
        trusting(reg, role)
    request_id, adapter = answered(reg, work, 1)
    active = release(reg, stack([adapter]))
    assert active.audit
    attest_adapter(reg, adapter.digest, private=private("operator"), builder=BUILDER, actor="ana")
    attest_audit(reg, active.audit, private=private("auditor"), actor="zoe")
    attest_release(reg, active.channel, active.version, private=private("approver"), actor="ben")
    return request_id, active
