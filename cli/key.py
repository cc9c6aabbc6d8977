"""`efface key`: who may sign checkpoints, audits, adapters and approvals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..registry import Registry, checks, keys, signing
from ..registry.trust import REASONS, ROLES, TrustedKey
from .files import moment, public_key
from .options import DEFAULT_ACTOR, DEFAULT_REGISTRY, ActorOption, Format, FormatOption, RegistryOption
from .output import emit, emit_table, talk

app = typer.Typer(help="Signing keys.", no_args_is_help=True)


@app.command("generate", epilog="Example: efface key generate --out log.key --public log.pub")
def generate(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the private key goes (0600).")],
    public_out: Annotated[
        Path | None,
        typer.Option("--public", metavar="FILE", help="Where the public key goes too. A new file."),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Make an Ed25519 key. The private half goes to the --out FILE, which must not exist; the public PEM to stdout.

    Sign with it by --key FILE or EFFACE_SIGNING_KEY_FILE=FILE.
    """
    if public_out is not None and public_out.exists():
        raise typer.BadParameter(f"expected a new file for --public, but {public_out} exists")
    private = signing.generate()
    signing.write_private(private, out)
    public = signing.public_pem(private)
    if public_out is not None:
        public_out.write_text(public, encoding="ascii")
    talk.print(f"Keep {out} to yourself: whoever has it can sign.", markup=False, soft_wrap=True)
    emit({"key_id": signing.key_id(public), "public": public, "private": str(out)}, format, public)


@app.command("add", epilog="Example: efface key add log.pub --name 'log 2026' --role log")
def add(
    pem: Annotated[Path, typer.Argument(metavar="PEM", help="File of the public key (SPKI PEM).")],
    name: Annotated[str, typer.Option("--name", help="Whose it is.")],
    roles: Annotated[
        list[str], typer.Option("--role", help=f"What it may sign: {', '.join(ROLES)}. Repeatable.")
    ],
    valid_from: Annotated[str | None, typer.Option("--valid-from", help="RFC 3339; now by default.")] = None,
    valid_until: Annotated[
        str | None, typer.Option("--valid-until", help="RFC 3339; for good by default.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Trust a public key for some roles. A registry that is not there yet is made."""
    public = public_key(pem)
    start, end = moment(valid_from), moment(valid_until)
    for role in roles:
        checks.choice(role, "role", ROLES)
    with Registry.open(registry, create=True) as reg:
        key = keys.add_key(
            reg, public, name=name, roles=roles, valid_from=start, valid_until=end, actor=actor
        )
    emit(key.record(), format, f"{key.key_id}\n{_described(key)}")


@app.command("revoke", epilog="Example: efface key revoke 3f2a9c --reason compromised")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, or the beginning of it.")],
    reason: Annotated[str, typer.Option("--reason", help=f"One of {', '.join(REASONS)}.")],
    revoked_at: Annotated[str | None, typer.Option("--revoked-at", help="RFC 3339; now by default.")] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """End a key. What it signed before still counts, unless the reason is `compromised`."""
    at = moment(revoked_at)
    with Registry.open(registry) as reg:
        key = keys.revoke_key(reg, key_id, reason=reason, revoked_at=at, actor=actor)
    emit(key.record(), format, f"{key.key_id}\n{_described(key)}")


@app.command("list", epilog="Example: efface key list")
def list_(registry: RegistryOption = DEFAULT_REGISTRY, format: FormatOption = Format.text) -> None:
    """List the keys of a registry, revoked ones too."""
    with Registry.open(registry) as reg:
        found = keys.list_keys(reg)
    records: list[dict[str, Any]] = [dict(key.record()) for key in found]
    if format is Format.text:
        records = [
            {**record, "roles": ", ".join(key.roles)} for record, key in zip(records, found, strict=True)
        ]
    columns = ["key_id", "name", "roles", "valid_from", "valid_until", "revoked_at", "revoked_reason"]
    emit_table(records, columns, format, "No keys yet.")


def _described(key: TrustedKey) -> str:
    until = f" until {key.valid_until}" if key.valid_until else ""
    ended = f" · revoked {key.revoked_at}, {key.revoked_reason}" if key.revoked_at else ""
    return f"{key.name} · {', '.join(key.roles)} · from {key.valid_from}{until}{ended}"
