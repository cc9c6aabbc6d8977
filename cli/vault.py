"""`efface vault`: the keys that the forgotten rows are encrypted under. No row is ever printed."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import InvalidInput, Registry
from . import vault_ends
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    RegistryOption,
    YesOption,
)
from .output import emit, talk
from .record_acts import DropRecord, RotateRecord, VaultRecord

app = typer.Typer(help="The vault of the rows to forget.", no_args_is_help=True)
_NEXT = {
    "environment": "Set EFFACE_VAULT_KEY to the new key, unset EFFACE_VAULT_NEW_KEY.",
    "file:": "Set EFFACE_VAULT_KEY_FILE to that file.",
    "keyring": "Set EFFACE_VAULT_KEY_SOURCE=keyring.",
    "kms:": "Set EFFACE_VAULT_KEY_SOURCE to that name.",
}


@app.command("show", epilog="Example: efface vault show")
def show(registry: RegistryOption = DEFAULT_REGISTRY, format: FormatOption = Format.text) -> None:
    """Show which master key is at hand, and how many entries each key wraps."""
    from ..registry.vault_show import summary

    with Registry.open(registry) as reg:
        _require_vault(reg)
        found = summary(reg.vault)
    record: VaultRecord = {
        "id": found.id,
        "key": found.key,
        "entries": found.entries,
        "shredded": found.shredded,
        "wrapped_by": [{"key": key, "entries": count} for key, count in found.wrapped_by],
    }
    lines = [
        f"vault       {found.id or 'without an id yet'}",
        f"master key  {found.key or 'none at hand'}",
        f"entries     {found.entries}, and {found.shredded} shredded",
        *(f"wrapped by  {key}: {count}" for key, count in found.wrapped_by),
    ]
    emit(record, format, "\n".join(lines))


@app.command("rotate", epilog="Example: efface vault rotate --to keyring --yes")
def rotate(
    to: Annotated[
        str, typer.Option("--to", metavar="TARGET", help="file, file:PATH, keyring, environment or kms:NAME.")
    ],
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Put every entry under another master key; rows and commitments stay. Cut off, the same call goes on.

    Old copies of the vault still open with the old key: a rotation is over when that key is destroyed.
    """
    from ..registry import vault_rotate
    from ..registry.vault_targets import successor

    with Registry.open(registry) as reg:
        _require_vault(reg)
        if yes:
            with reg.write(actor):
                new = successor(reg.vault.folder, to, store=True)
                plan = vault_rotate.rotate(reg.vault, reg.vault.keys.provider(), new)
        else:
            new = successor(reg.vault.folder, to, store=False)
            plan = vault_rotate.plan_rotation(reg.vault, reg.vault.keys.provider(), new)
    # A key that is not stored yet is another one each time: its name would mean nothing.
    target = plan.new if yes or to not in ("file", "keyring") else f"a new key in the {to}"
    record: RotateRecord = {
        "done": yes,
        "plan": {
            "old": plan.old,
            "new": target,
            "todo": list(plan.todo),
            "done": list(plan.done),
            "subject": plan.subject,
            "empty": list(plan.empty),
        },
    }
    word = "rewrapped" if yes else "to rewrap"
    lines = [
        f"from {plan.old}",
        f"to   {target}",
        f"{len(plan.todo)} {word}, {len(plan.done)} under it already",
        *(f"{name} skipped: its shredding was cut off; shred it again" for name in plan.empty),
    ]
    emit(record, format, "\n".join(lines))
    if not yes:
        talk.print("Nothing was changed. Do it with --yes.")
    elif (then := next((text for start, text in _NEXT.items() if to.startswith(start)), None)) is not None:
        talk.print(then, soft_wrap=True)


@app.command("drop-key-file", epilog="Example: efface vault drop-key-file --yes")
def drop_key_file(
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Destroy the master.key that a rotation to another place left behind; refused while anything needs it."""
    from ..registry import vault_rotate
    from ..registry.vault_sources import MASTER_FILE

    with Registry.open(registry) as reg:
        _require_vault(reg)
        path = reg.vault.folder / MASTER_FILE
        if not path.exists():
            raise InvalidInput("a master.key in the vault's folder", "none", "There is nothing to drop.")
        if yes:
            with reg.write(actor):
                vault_rotate.drop_master_file(reg.vault)
    record: DropRecord = {"done": yes, "path": str(path)}
    emit(record, format, f"{path}{' destroyed' if yes else ''}")
    if not yes:
        talk.print("Nothing was destroyed. Do it with --yes; there is no way back.")


app.command("drop-orphans", epilog=vault_ends.DROP_EXAMPLE)(vault_ends.drop_orphans_)
app.command("bind", epilog=vault_ends.BIND_EXAMPLE)(vault_ends.bind)


def _require_vault(reg: Registry) -> None:
    if not reg.vault.keys.complete():
        then = "It is made with the first request; an auditor's copy of a registry has none."
        raise InvalidInput("a vault beside the registry", "none", then)
