"""What the vault's tests share: real key providers, entries of version 1, deaths, and what must not be found."""

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keyring
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError

from efface.registry.vault import Vault
from efface.registry.vault_sources import LocalKey

SECRET = "The heron keeps its ledger under the ninth stair.\nZoë Ünlü moved to 17 Canary Row.\n"
PAYLOAD = SECRET.encode()
ONE, TWO, THREE = "req-000001", "req-000002", "req-000003"
CALLS = ("fsync", "replace", "unlink", "rmdir", "write")


class MemoryKeyring(KeyringBackend):
    """A keyring that lives as long as the test."""

    priority = 1  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if (service, username) not in self.kept:
            raise PasswordDeleteError("none")
        del self.kept[service, username]


@contextmanager
def keyring_of(backend: KeyringBackend) -> Generator[KeyringBackend]:
    before = keyring.get_keyring()
    keyring.set_keyring(backend)
    try:
        yield backend
    finally:
        keyring.set_keyring(before)


KMS = """
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

class Kms:
    name, master = "projects/p/keys/one", b"1" * 32
    def wrap(self, key):
        return b"kms" + aes_key_wrap(self.master, key)
    def unwrap(self, wrapped):
        try:
            return aes_key_unwrap(self.master, wrapped[3:])
        except InvalidUnwrap as error:
            raise ValueError("not mine") from error
    def describe(self):
        return self.name

class Other(Kms):
    name, master = "projects/p/keys/two", b"2" * 32
class Down(Kms):
    def unwrap(self, wrapped):
        raise ConnectionError(repr(wrapped))
class Leaky(Kms):
    def wrap(self, key):
        return key + b"!"
class Lossy(Kms):
    def wrap(self, key):
        return b"k" * 43
class Texty(Kms):
    def wrap(self, key):
        return "text"
class Talky(Kms):
    def describe(self):
        return "two words"
class Unborn(Kms):
    def __init__(self):
        raise OSError("no credentials")
class Half:
    def wrap(self, key):
        return key
ready = Other()
"""


def install_kms(folder: Path) -> None:
    """A distribution with entry points, as an installer would leave it; put `folder` on sys.path."""
    info = folder / "efface_test_kms-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "efface_test_kms.py").write_text(KMS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: efface-test-kms\nVersion: 1.0\n")
    names = ("Kms", "Other", "Down", "Leaky", "Lossy", "Texty", "Talky", "Unborn", "Half", "ready", "absent")
    lines = "".join(f"{name.lower()} = efface_test_kms:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[efface.kms]\n{lines}")


def local(seed: int) -> LocalKey:
    return LocalKey("environment", bytes([seed]) * 32)


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


def header(vault: Vault, request_id: str) -> dict[str, Any]:
    return json.loads(vault.path(request_id).read_bytes().partition(b"\n")[0])


def make_version_1(folder: Path, master: bytes, payloads: dict[str, bytes], subject: bytes) -> dict[str, str]:
    """A vault as the first release of the format wrote it; returns the commitments."""
    folder.mkdir(mode=0o700)
    (folder / "master.key").write_bytes(base64.b64encode(master))
    (folder / "subject.key").write_text(text_of(aes_key_wrap(master, subject)))
    (folder / "master.key").chmod(0o600)
    commitments = {}
    for name, payload in payloads.items():
        key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
        data = AESGCM(key).encrypt(nonce, payload, f"efface vault v1 {name}".encode())
        entry = {"v": 1, "request": name, "key": text_of(aes_key_wrap(master, key)), "nonce": text_of(nonce)}
        text = json.dumps({**entry, "data": text_of(data)}, sort_keys=True, separators=(",", ":"))
        (folder / f"{name}.json").write_text(text)
        derived = hmac.new(key, b"efface request commitment v1", hashlib.sha256).digest()
        commitments[name] = "hmac-sha256:" + hmac.new(derived, payload, hashlib.sha256).hexdigest()
    return commitments


class Killed(BaseException):
    """The process is dead: from here on it does nothing any more."""


@contextmanager
def dying_at(number: int) -> Generator[None]:
    """The `number`-th durable step, and every later one, does not happen."""
    seen, real = 0, {name: getattr(os, name) for name in CALLS}

    def stepping(name: str) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen >= number:
                raise Killed
            return real[name](*args, **kwargs)

        return step

    for name in CALLS:
        setattr(os, name, stepping(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def every_death(make: Callable[[], None], do: Callable[[], Any]) -> Iterator[int]:
    """For each k: `make` the place, die in `do` at its k-th step, yield k. Ends with the k that it survives."""
    for number in range(1, 1000):
        make()
        try:
            with dying_at(number):
                do()
        except Killed:
            yield number
            continue
        assert number > 3
        return
    raise AssertionError("it never ends")


def traces(payload: bytes) -> set[bytes]:
    """What must be nowhere: the payload and its lines in several codings, and their bare hashes."""
    parts = {payload, *payload.splitlines(), *payload.splitlines(keepends=True)}
    found: set[bytes] = set()
    for part in parts:
        text = part.decode()
        digest = hashlib.sha256(part).digest()
        forms = {part, text.encode("utf-16-le"), text.encode("utf-16-be"), digest}
        found |= (
            forms | {form.hex().encode() for form in forms} | {form.hex().upper().encode() for form in forms}
        )
        # The middle of the base64 text of any alignment.
        found |= {base64.b64encode(b"\0" * pad + form)[8:-4] for form in forms for pad in range(3)}
        found.add(text.encode("unicode_escape"))
    return found


def leaks(root: Path, marks: set[bytes]) -> list[str]:
    """The files below `root`, hidden ones too, that hold one of the marks in bytes or name."""
    return [
        path.name
        for path in root.rglob("*")
        if any(mark in path.name.encode() or (path.is_file() and mark in path.read_bytes()) for mark in marks)
    ]
