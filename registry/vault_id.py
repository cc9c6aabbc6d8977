"""The name of a vault: 32 random hex digits in `vault.id`, made with it and never changed.

It says which vault a registry's rows are in (`vault_binding`), and whose key the OS keyring holds. It is no secret.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from . import durable, vault_files
from .errors import BrokenRegistry

ID_FILE = "vault.id"
_ID = re.compile(r"[0-9a-f]{32}")


def well_formed(text: object) -> bool:
    """Whether this could be one."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def read(folder: Path) -> str | None:
    """The id of the vault in `folder`; None when it has none. BrokenRegistry for something else in its file."""
    try:
        text = vault_files.read_regular(folder / ID_FILE, 64).decode("ascii")
    except FileNotFoundError:
        return None
    except ValueError:
        text = ""
    if not well_formed(text):
        raise BrokenRegistry(f"the vault's id in {ID_FILE}", "something else", "Restore it from a backup.")
    return text


def make(folder: Path) -> str:
    """The id of the vault in `folder`, a new one where it has none. The folder is there."""
    if (found := read(folder)) is not None:
        return found
    durable.write_file(folder / ID_FILE, (made := secrets.token_hex(16)).encode(), 0o600)
    return made
