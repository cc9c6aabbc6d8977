"""The keys that a rotation may move to, and the last step that puts a key made here into its place."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from . import durable, vault_files, vault_keyring, vault_kms, vault_sources
from .errors import InvalidInput, NotFound
from .vault_sources import MASTER_FILE, NEXT_FILE, NEXT_VARIABLE, KeyProvider, LocalKey


def successor(folder: Path, target: str, *, store: bool) -> KeyProvider:
    """The key to rotate to: `file` or `keyring` (made here), `file:PATH`, `environment` or `kms:NAME`.

    `environment` reads EFFACE_VAULT_NEW_KEY. With `store`, a key made here is durable before this returns and
    the same one is found again after a crash; without it (for a plan) nothing is written. Raises InvalidInput
    for another word, NotFound for a key that is not there.
    """
    if target.startswith("kms:"):
        return vault_kms.load(target.removeprefix("kms:"))
    if target == "keyring":
        return _next_in_keyring(folder, store)
    if target == "file":
        return _next_file(folder, store)
    if target == "environment":
        return LocalKey("environment", vault_sources.checked(_required(os.environ.get(NEXT_VARIABLE))))
    if target.startswith("file:"):
        return LocalKey("file", vault_sources.checked(_named_file(Path(target.removeprefix("file:")))))
    expected = "file, file:PATH, keyring, environment or kms:NAME"
    raise InvalidInput(expected, "another target", "Name where the new key is to be.")


def settle(folder: Path, new: KeyProvider) -> None:
    """Put a key that was made beside the old one into its place, and destroy the old one's bytes.

    A rename alone would leave them on the disk. Cut off between the two steps, `master.next` is the master key
    (`vault_sources.find`), and the same call ends it.
    """
    if not isinstance(new, LocalKey):
        return
    if new.source == "keyring":
        vault_keyring.settle(folder)
    elif new.source == "file" and _made_here(folder / NEXT_FILE, new.key):
        vault_files.zero_regular(folder / MASTER_FILE)
        (folder / NEXT_FILE).replace(folder / MASTER_FILE)
        durable.sync_folder(folder)


def _made_here(path: Path, key: bytes) -> bool:
    return vault_files.exists(path) and vault_sources.checked(vault_files.read_secret(path)) == key


def _next_file(folder: Path, store: bool) -> KeyProvider:
    path = folder / NEXT_FILE
    if vault_files.exists(path):
        return LocalKey("file", vault_sources.checked(vault_files.read_secret(path)))
    key = secrets.token_bytes(vault_sources.KEY_BYTES)
    if store:
        vault_sources.write_key(path, key)
    return LocalKey("file", key)


def _next_in_keyring(folder: Path, store: bool) -> KeyProvider:
    text = vault_keyring.prepare_next(folder) if store else vault_keyring.read_next(folder)
    key = secrets.token_bytes(vault_sources.KEY_BYTES) if text is None else vault_sources.checked(text)
    return LocalKey("keyring", key)


def _named_file(path: Path) -> str:
    try:
        return vault_files.read_secret(path, follow=True)
    except FileNotFoundError:
        return _required(None)


def _required(text: str | None) -> str:
    if text is None:
        then = f"Make it with `openssl rand -base64 32` and set {NEXT_VARIABLE}, or name its file."
        raise NotFound("the key to rotate to", "none", then)
    return text
