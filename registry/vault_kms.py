"""Envelope encryption: a key management service wraps the data keys, and its master key never comes here.

A package offers one by an entry point of the group `efface.kms`:

    [project.entry-points."efface.kms"]
    aws = "our_package.kms:AwsKey"        # EFFACE_VAULT_KEY_SOURCE=kms:aws

It names a class that is called without arguments, or an object, with the three methods of
`vault_sources.KeyProvider`; `describe()` is the service's name of the key. An entry point runs code of an
installed package: it is loaded only when the environment or the caller names it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import InvalidInput, NotFound, RegistryError
from .vault_sources import KEY_BYTES, KeyProvider

GROUP = "efface.kms"
_DESCRIPTION = re.compile(r"[\x21-\x7e]{1,150}")
_WRAPPED_LIMIT = 4096


class _Refused(RegistryError):
    """A ValueError of the plugin: of `unwrap`, that this is not its work."""


@dataclass(frozen=True, slots=True)
class KmsKey:
    """A plugin's key, its answers checked and its failures turned into ours."""

    name: str
    plugin: KeyProvider

    def wrap(self, key: bytes) -> bytes:
        """A key under the service's. Raises RegistryError when it fails or could not undo what it did."""
        wrapped = self._call(self.plugin.wrap, key)
        if not isinstance(wrapped, bytes) or not 0 < len(wrapped) <= _WRAPPED_LIMIT or key in wrapped:
            raise self._wrong(f"1 to {_WRAPPED_LIMIT} bytes that do not show the key")
        if not self._undoes(wrapped, key):
            raise self._wrong("to unwrap what it wrapped")
        return wrapped

    def unwrap(self, wrapped: bytes) -> bytes:
        """What `wrap` wrapped. ValueError when it says so, RegistryError when it fails."""
        try:
            key = self._call(self.plugin.unwrap, wrapped)
        except _Refused as error:
            raise ValueError("not wrapped by this key") from error
        if not isinstance(key, bytes) or len(key) != KEY_BYTES:
            raise self._wrong(f"{KEY_BYTES} bytes")
        return key

    def describe(self) -> str:
        """`kms:NAME:` and what the service calls its key."""
        said = self._call(self.plugin.describe)
        if not isinstance(said, str) or not _DESCRIPTION.fullmatch(said):
            raise self._wrong("a description of 1 to 150 visible ASCII characters")
        return f"kms:{self.name}:{said}"

    def _undoes(self, wrapped: bytes, key: bytes) -> bool:
        try:
            return hmac.compare_digest(self.unwrap(wrapped), key)
        except ValueError:
            return False

    def _call(self, method: Callable[..., Any], *arguments: bytes) -> Any:
        try:
            return method(*arguments)
        except Exception as error:  # whatever a service's client raises
            kind = _Refused if isinstance(error, ValueError) else RegistryError
            then = "Check its credentials and the network, and try again."
            raise kind(f"the KMS {self.name} to answer", type(error).__name__, then) from error

    def _wrong(self, expected: str) -> RegistryError:
        return RegistryError(f"of the KMS {self.name} {expected}", "something else", "Mend the plugin.")


def load(name: str) -> KmsKey:
    """The key of the entry point `name`. NotFound without it, InvalidInput when it is not a provider."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        expected = "kms: and a name of 1 to 40 letters, digits, _ or -"
        raise InvalidInput(expected, "another name", f"Name an entry point of {GROUP}.")
    for found in entry_points(group=GROUP, name=name):
        plugin = _loaded(found)
        if not isinstance(plugin, KeyProvider):
            raise InvalidInput(f"{GROUP} {name} with wrap, unwrap and describe", "less", "Mend the plugin.")
        return KmsKey(name, plugin)
    raise NotFound(f"an entry point {name} of {GROUP}", "none", "Install the package that offers it.")


def _loaded(found: EntryPoint) -> object:
    try:
        loaded = found.load()
        return loaded() if isinstance(loaded, type) else loaded
    except Exception as error:  # an import may raise anything
        then = "Mend the plugin or its settings."
        raise RegistryError(f"{GROUP} {found.name} to load", type(error).__name__, then) from error
