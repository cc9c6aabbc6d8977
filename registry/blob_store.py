"""What a blob store is, whatever it lies on: bytes under their SHA-256, whole or absent, written once.

`blobs.Blobs` is a folder, `blobs_fsspec.FsspecBlobs` is object storage; `blobs.open_blobs` chooses by URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from .canon import Digest


@dataclass(frozen=True, slots=True)
class Stored:
    """A blob as the store lists it: nothing here was read or checked."""

    digest: Digest
    size: int
    """Bytes."""
    written_at: datetime | None
    """UTC, by the store's clock; the last time it was put. None where the store does not say."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a writer that died left behind, or one that is writing now: never a blob."""

    name: str
    """For `discard`, of the same store."""
    size: int
    written_at: datetime | None


class BlobStore(Protocol):
    """Content-addressed storage. Methods that take a digest raise InvalidInput for anything else.

    A store that cannot be used (no credentials, no bucket, no permission, full, read-only, unreachable) is a
    RegistryError that says what to do.
    """

    def put(self, data: bytes, *, repair: bool = ...) -> Digest:
        """Store bytes; putting what is there changes nothing but its age.

        A damaged copy is replaced with `repair` (a folder's default) and is BrokenRegistry without (the
        default of object storage, where other writers and object locks have a say).
        """
        ...

    def read(self, digest: str) -> bytes:
        """The bytes, checked. Raises BrokenRegistry when they are missing or are not those of the digest."""
        ...

    def stat(self, digest: str) -> Stored | None:
        """What is listed under a digest; None when there is nothing."""
        ...

    def size(self, digest: str) -> int | None:
        """Size in bytes; None when there is nothing."""
        ...

    def intact(self, digest: str) -> bool:
        """Whether the blob is there with the right bytes (reads all of it)."""
        ...

    def digest_of(self, digest: str) -> str:
        """The digest that the stored bytes have now, read in pieces; `unreadable: …` when they cannot be."""
        ...

    def delete(self, digest: str) -> None:
        """Remove a blob, every version of it, durably. Deleting what is absent does nothing."""
        ...

    def leftovers(self) -> list[Leftover]:
        """Unfinished writes, sorted by name. One may still be under way: look at its age."""
        ...

    def discard(self, leftover: str) -> None:
        """Remove an unfinished write by name; one that is gone is no error."""
        ...

    def stored(self) -> Iterator[Stored]:
        """All blobs, sorted by digest."""
        ...

    def __iter__(self) -> Iterator[Digest]:
        """The digests of all blobs, sorted; unfinished writes and foreign files are not blobs."""
        ...

    def where(self, digest: str) -> str:
        """Where the blob is or would be, for people. Never holds a password."""
        ...

    def local_path(self, digest: str) -> Path | None:
        """The file on this machine where the blob is or would be; None on object storage."""
        ...
