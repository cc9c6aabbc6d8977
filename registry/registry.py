"""The registry as one value: where the ledger, the blobs and the vault are, and how to open them.

<root>/registry.db       ledger and projections, when the database is SQLite (else a Postgres server)
<root>/blobs/sha256/     adapters, manifests, audit reports (or any fsspec URL, such as s3://bucket/prefix)
<root>/vault/            what requests ask to forget, encrypted
<root>/cache/            adapter folders put together from blobs; may be deleted at any time
<root>/work/             checkpoints of training runs that did not end (efface.recipes); may be deleted at any time
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from . import checks, database, durable, vault_binding
from .blob_store import BlobStore
from .blobs import open_blobs
from .canon import timestamp
from .database import Database
from .errors import BrokenRegistry
from .locations import locate
from .tables import Tables
from .vault import Vault


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Writer:
    """A write transaction: everything appended in it has one time and one actor."""

    db: Tables
    at: str
    actor: str


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry. Use `Registry.open`; the verbs (`open_request`, `seal_adapter`, …) take it first.

    On SQLite every call opens its own connection and closes it; on Postgres a pool keeps a few. Either way one
    Registry may be used by many threads and survives a fork.
    """

    root: Path
    database: Database
    blobs: BlobStore
    vault: Vault
    clock: Callable[[], datetime]
    any_vault: bool = False
    """Whether to go on where the vault here is not the registry's (`vault_binding`)."""

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        create: bool = False,
        any_vault: bool = False,
        clock: Callable[[], datetime] = _now,
    ) -> Registry:
        """Open the registry at a folder or URL (see `locations`); with `create`, make it if it is missing.

        Raises NotFound when nothing is there, InvalidInput when something else is or the schema is newer (nothing is
        written then), BrokenRegistry when the database is damaged, and Conflict where another vault than the registry's
        is beside it, unless `any_vault`. An older schema is brought up to date.
        """
        place = locate(url)
        if place.server is None:
            opened = database.open_file(place.root, create=create)
        else:
            opened = database.open_server(place.server, create=create)
        vault = Vault(place.root / "vault")
        made = cls(place.root, opened, open_blobs(place.blobs), vault, clock, any_vault)
        try:
            made._check_vault()
        except BaseException:
            made.close()
            raise
        return made

    def close(self) -> None:
        """Release what is held between calls."""
        self.database.engine.dispose()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def read(self) -> Generator[Tables]:
        """A consistent view of the tables, for reading."""
        with self.database.reading() as tables:
            yield tables

    @contextmanager
    def write(self, actor: str) -> Generator[Writer]:
        """A write transaction: the only one at a time. An exception inside undoes all of it.

        Raises Conflict beside another vault, RegistryError when the disk of the database, the vault or the blobs does
        not let us.
        """
        checks.actor(actor)
        with durable.disk_errors(self.root), self.database.writing() as tables:
            if not self.any_vault:
                vault_binding.check(tables, self.vault)
            yield Writer(tables, timestamp(self.clock()), actor)

    def _check_vault(self) -> None:
        """What is damaged is for `verify` to name, and for writing to stop at."""
        try:
            if self.any_vault or not self.vault.folder.is_dir():
                return
        except PermissionError:  # another user's, on a host that serves: none of ours to compare
            return
        with suppress(BrokenRegistry), self.read() as db:
            vault_binding.check(db, self.vault)
