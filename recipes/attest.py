"""Signing what a recipe made, where the environment names a signing key that the registry trusts for it.

With `EFFACE_SIGNING_KEY_FILE` (or `EFFACE_SIGNING_KEY`) set, a sealed adapter gets SLSA provenance if the key is an
operator's, an audit a signed test result if it is an auditor's, an activated release a signed approval if it is an
approver's. A key for none of these is an error before anything is trained.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from ..audits import AuditReport
from ..registry import Adapter, Audit, Registry, Release, attest, signing, timestamp, trust
from ..registry.keys import trusted_keys
from .errors import RequestError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

BUILDER = "https://github.com/efface/efface/tree/main/recipes"
"""The builder that provenance names: this code, run wherever the operator runs it."""
_ROLES = ("operator", "auditor", "approver")


@dataclass(frozen=True, slots=True)
class Signer:
    """The environment's key and what the registry trusts it for; without a key it signs nothing."""

    private: Ed25519PrivateKey | None
    roles: tuple[str, ...]
    actor: str

    def adapter(self, registry: Registry, adapter: Adapter) -> None:
        """Provenance of a sealed adapter."""
        if self.private is not None and "operator" in self.roles:
            versions = {"efface": version("efface"), "python": platform.python_version()}
            attest.attest_adapter(
                registry,
                adapter.digest,
                private=self.private,
                builder=BUILDER,
                builder_version=versions,
                actor=self.actor,
            )

    def audit(self, registry: Registry, audit: Audit, report: AuditReport) -> None:
        """The result of an audit, with each gate that was measured."""
        if self.private is not None and "auditor" in self.roles:
            gates = {
                f"{found.gate} {found.group} {found.request or 'all'}": found.passed
                for found in report.findings
                if found.outcome in ("passed", "failed")
            }
            attest.attest_audit(registry, audit.digest, private=self.private, tests=gates, actor=self.actor)

    def release(self, registry: Registry, release: Release) -> None:
        """The approval of a release."""
        if self.private is not None and "approver" in self.roles:
            attest.attest_release(
                registry, release.channel, release.version, private=self.private, actor=self.actor
            )


def signer(registry: Registry, actor: str) -> Signer:
    """The environment's signer. Raises `RequestError` for a key that the registry trusts for nothing that is made
    here, and what reading the key raises.
    """
    if (private := attest.signer()) is None:
        return Signer(None, (), actor)
    key_id = signing.key_id(signing.public_pem(private))
    with registry.read() as db:
        keys = trusted_keys(db)
    now = timestamp(registry.clock())
    roles = tuple(role for role in _ROLES if key_id in trust.usable(keys, role, now))
    if not roles:
        raise RequestError(
            f"the signing key of the environment is {key_id}, which this registry trusts for none of "
            f"{', '.join(_ROLES)}: add it (`efface key add PEM --role …`), or unset {signing.FILE_VARIABLE}"
        )
    return Signer(private, roles, actor)
