"""The master key in the operating system's keyring (`pip install keyring`), service `efface`.

The user name is the vault's id (`vault_id`), so that several vaults of one user keep apart. `<id>.next` is the key that
a rotation moves to.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from . import vault_id
from .errors import NotFound, RegistryError

SERVICE = "efface"


def probe() -> None:
    """Raise what using the keyring would."""
    _get("probe")


def read(folder: Path) -> str | None:
    """The master key's text; None when the vault has none there. NotFound without a keyring."""
    return _get(user) if (user := vault_id.read(folder)) is not None else None


def read_next(folder: Path) -> str | None:
    """The text of the key that a rotation moves to, while it lasts."""
    return _get(f"{user}.next") if (user := vault_id.read(folder)) is not None else None


def prepare(folder: Path) -> None:
    """Give the vault an id and a master key where it has none. Its folder is there."""
    vault_id.make(folder)
    if read(folder) is None:
        _set(f"{vault_id.read(folder)}", _new())


def prepare_next(folder: Path) -> str:
    """The text of the key to move to: that of a rotation that did not end, or a new one."""
    vault_id.make(folder)
    if (text := read_next(folder)) is None:
        _set(f"{vault_id.read(folder)}.next", text := _new())
    return text


def settle(folder: Path) -> None:
    """Make the next key the master key."""
    if (text := read_next(folder)) is not None:
        _set(f"{vault_id.read(folder)}", text)
        with _errors() as keyring:
            keyring.delete_password(SERVICE, f"{vault_id.read(folder)}.next")


def _get(user: str) -> str | None:
    with _errors() as keyring:
        return keyring.get_password(SERVICE, user)


def _set(user: str, text: str) -> None:
    """Store and read back: the null backend, for one, keeps nothing and says nothing."""
    with _errors() as keyring:
        keyring.set_password(SERVICE, user, text)
        kept = keyring.get_password(SERVICE, user)
    if kept != text:
        then = "Choose another backend, or another EFFACE_VAULT_KEY_SOURCE."
        raise RegistryError("a keyring that keeps what it is given", "one that does not", then)


def _new() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode("ascii")


@contextmanager
def _errors() -> Generator[ModuleType]:
    """The keyring package, its errors turned into ours. Their text may name the user, never a password."""
    try:
        import keyring
        from keyring.errors import KeyringError, NoKeyringError
    except ImportError as error:
        raise NotFound("the package keyring", "none", "Run `pip install keyring`.") from error
    try:
        yield keyring
    except NoKeyringError as error:
        then = "Unlock or install one, or set another EFFACE_VAULT_KEY_SOURCE."
        raise NotFound("a keyring of the operating system", "none", then) from error
    except KeyringError as error:
        then = "Unlock it and try again."
        raise RegistryError("the keyring to answer", type(error).__name__, then) from error
