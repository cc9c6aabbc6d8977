"""`efface attest`: signed statements about adapters, audits and approvals."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..registry import Registry, attest
from ..registry.attest import Attestation
from .files import KeyOption, private_key
from .options import DEFAULT_ACTOR, DEFAULT_REGISTRY, ActorOption, Format, FormatOption, RegistryOption
from .output import emit, emit_table
from .record_proofs import AttestationRecord

app = typer.Typer(help="Signed statements (in-toto, in DSSE envelopes).", no_args_is_help=True)
Reference = Annotated[str, typer.Argument(metavar="DIGEST", help="Or its first six hex digits.")]
KINDS = ("adapter", "audit", "release")


@app.command("adapter", epilog="Example: efface attest adapter 1f0c8a --builder https://example.com/gpu-1")
def adapter(
    reference: Reference,
    builder: Annotated[str, typer.Option("--builder", help="URI of the machine or service that trained it.")],
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Sign how an adapter came about (SLSA provenance), with the key of an operator."""
    private = private_key(key)
    with Registry.open(registry) as reg:
        _say(attest.attest_adapter(reg, reference, private=private, builder=builder, actor=actor), format)


@app.command("audit", epilog="Example: efface attest audit 77aa01 --key auditor.key")
def audit(
    reference: Reference,
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Sign what an audit found (in-toto test result), with the key of an auditor."""
    private = private_key(key)
    with Registry.open(registry) as reg:
        _say(attest.attest_audit(reg, reference, private=private, actor=actor), format)


@app.command("release", epilog="Example: efface attest release prod 3 --key approver.key")
def release(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Such as prod.")],
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1)],
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Sign that a release is approved on the audit it has, with the key of an approver."""
    private = private_key(key)
    with Registry.open(registry) as reg:
        _say(attest.attest_release(reg, channel, version, private=private, actor=actor), format)


@app.command("list", epilog="Example: efface attest list release prod@3")
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}.")],
    about: Annotated[str, typer.Argument(metavar="ABOUT", help="A digest, or CHANNEL@VERSION.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """List what was signed about an adapter, an audit or a release. `efface verify` checks it."""
    with Registry.open(registry) as reg:
        records: list[dict[str, Any]] = [
            dict(_record(one)) for one in attest.attestations_of(reg, kind, about)
        ]
    emit_table(records, ["digest", "predicate", "keys", "at"], format, "Nothing was signed about it.")


def _say(made: Attestation, format: Format) -> None:
    emit(_record(made), format, f"{made.digest}\n{made.predicate}\nabout {made.about_kind} {made.about_id}")


def _record(made: Attestation) -> AttestationRecord:
    plain: Any = {**asdict(made), "keys": list(made.keys)}
    return plain
