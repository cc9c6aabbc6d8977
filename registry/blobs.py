"""Content-addressed files: `<folder>/sha256/ab/<hex>`, read-only, written once.

A blob is whole or absent after a crash, because it appears by a rename of a synced file. Reading checks the
digest every time, so bytes that come back are the bytes that went in.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import checks, durable
from .canon import Digest, digest_bytes
from .errors import BrokenRegistry

_NAME = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Blobs:
    """The blob store in `folder` (created at the first write)."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Where the blob with this digest is or would be."""
        name = checks.digest(digest, "blob digest").removeprefix("sha256:")
        return self.folder / "sha256" / name[:2] / name

    def put(self, data: bytes) -> Digest:
        """Store bytes and return their digest. Doing it again changes nothing but a damaged copy."""
        digest = digest_bytes(data)
        if not self.intact(digest):
            path = self.path(digest)
            durable.make_folder(path.parent)
            durable.write_file(path, data, 0o444)
        return digest

    def read(self, digest: str) -> bytes:
        """The bytes of a blob. Raises BrokenRegistry when they are missing or are not those of the digest."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BrokenRegistry(
                f"blob {digest}", type(error).__name__, "Restore it from a backup."
            ) from error
        if (found := digest_bytes(data)) != digest:
            raise BrokenRegistry(f"blob {digest}", f"bytes of {found}", "Restore it from a backup.")
        return data

    def intact(self, digest: str) -> bool:
        """Whether the blob is a regular file with the right bytes (reads all of it)."""
        path = self.path(digest)
        return self.size(digest) is not None and file_digest(path) == digest

    def digest_of(self, digest: str) -> str:
        """The digest of what is stored under this one."""
        return file_digest(self.path(digest))

    def size(self, digest: str) -> int | None:
        """The blob's size in bytes; None when no regular file is there."""
        try:
            status = self.path(digest).lstat()
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def __iter__(self) -> Iterator[Digest]:
        """The digests of all blobs on disk, sorted; unfinished files are not blobs."""
        for path in sorted(self.folder.glob("sha256/[0-9a-f][0-9a-f]/*")):
            if _NAME.fullmatch(path.name):
                yield Digest(f"sha256:{path.name}")


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes; `unreadable: …` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {type(error).__name__}"
