"""The registry as one value: where the ledger, the blobs and the vault are, and how to open them.

<root>/registry.db       ledger and projections (SQLite)
<root>/blobs/sha256/     adapters, manifests, audit reports
<root>/vault/            what requests ask to forget, encrypted
<root>/cache/            adapter folders put together from blobs; may be deleted at any time
<root>/work/             checkpoints of training runs that did not end (efface.recipes); may be deleted at any time
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from . import checks, db, durable
from .blobs import Blobs
from .canon import timestamp
from .errors import InvalidInput, NotFound
from .vault import Vault


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Writer:
    """A write transaction: everything appended in it has one time and one actor."""

    db: sqlite3.Connection
    at: str
    actor: str


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry folder. Use `Registry.open`; the verbs (`open_request`, `seal_adapter`, …) take it first.

    Every call opens its own database connection and closes it, so one Registry may be used by many threads
    and survives a fork.
    """

    root: Path
    blobs: Blobs
    vault: Vault
    clock: Callable[[], datetime]

    @classmethod
    def open(cls, url: str | Path, *, create: bool = False, clock: Callable[[], datetime] = _now) -> Registry:
        """Open the registry at a folder or `sqlite:///folder`; with `create`, make it if it is missing.

        Raises NotFound when nothing is there, InvalidInput when something else is (nothing is written then),
        BrokenRegistry when the database is damaged. An older schema is brought up to date.
        """
        root = _folder(url)
        path = root / db.FILE_NAME
        if not _exists(root, path):
            if not create:
                then = "Create it with create=True (`efface request open` does), or name another --registry."
                raise NotFound(f"a registry at {root}", "no such registry", then)
            durable.make_folder(root)
            db.create(path)
        db.recognise(path)
        db.upgrade(path)
        return cls(root, Blobs(root / "blobs"), Vault(root / "vault"), clock)

    def close(self) -> None:
        """Release what is held between calls. With SQLite that is nothing; other backends will pool."""

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def read(self) -> Generator[sqlite3.Connection]:
        """A consistent view of the database, for reading."""
        with db.transaction(self.root / db.FILE_NAME, "BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self, actor: str) -> Generator[Writer]:
        """A write transaction under the database lock. An exception inside undoes all of it."""
        checks.actor(actor)
        with db.transaction(self.root / db.FILE_NAME, "BEGIN IMMEDIATE") as connection:
            yield Writer(connection, timestamp(self.clock()), actor)


def _folder(url: str | Path) -> Path:
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if isinstance(url, Path) or not separator:
        return Path(text)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return Path(rest[1:])
    came = "postgresql, which is not supported yet" if scheme.startswith("postgres") else f"{scheme}://"
    raise InvalidInput("a folder or sqlite:///folder", came, "Use a folder on this machine.")


def _exists(root: Path, path: Path) -> bool:
    """Whether a database is there; InvalidInput when the place is taken by something else."""
    if root.exists() and not root.is_dir():
        raise InvalidInput(f"a registry folder at {root}", "a file", "Name the folder instead.")
    if path.exists():
        return True
    if root.is_dir() and any(not entry.name.startswith(durable.TEMPORARY) for entry in root.iterdir()):
        came = f"a folder with other files and no {db.FILE_NAME}"
        raise InvalidInput(f"a registry or an empty folder at {root}", came, "Name another folder.")
    return False
