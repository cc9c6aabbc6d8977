"""Content-addressed files: `<folder>/sha256/ab/<hex>`, read-only, written once.

A blob is whole or absent after a crash, because it appears by a rename of a synced file. Reading checks the
digest every time, so bytes that come back are the bytes that went in. `open_blobs` also opens object storage.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from . import checks, durable
from .blob_store import BlobStore, Leftover, Stored
from .canon import Digest, digest_bytes
from .errors import BrokenRegistry, InvalidInput, RegistryError

FRESH = timedelta(minutes=1)
"""A blob put again is given a new age when it is older than this: gc spares the young (see `gc`)."""
REPAIR = "Put it again with repair=True, or restore it from a backup."
NAME = re.compile("[0-9a-f]{64}")
_BLOB = re.compile("sha256/([0-9a-f]{2})/\\1[0-9a-f]{62}")
_LEFTOVER = re.compile(r"(?:sha256/(?:[0-9a-f]{2}/)?)?\.tmp-[0-9A-Za-z]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def open_blobs(url: str | Path, *, options: Mapping[str, object] | None = None) -> BlobStore:
    """The store at a folder, `file:///folder` or an fsspec URL such as `s3://bucket/prefix`. Touches nothing.

    `options` go to the fsspec file system (for S3 `endpoint_url`, `profile`, …); without them it finds its
    settings as its own tools do (AWS_PROFILE, AWS_ENDPOINT_URL, …). Raises InvalidInput.
    """
    text = str(url)
    if isinstance(url, Path) or "://" not in text:
        return Blobs(Path(text))
    if text.startswith(("file://", "local://")):
        return Blobs(_local(text))
    from .blobs_fsspec import FsspecBlobs

    return FsspecBlobs.at(text, options or {})


@dataclass(frozen=True, slots=True)
class Blobs:
    """The blob store in `folder` (created at the first write)."""

    folder: Path

    def path(self, digest: str) -> Path:
        """Where the blob with this digest is or would be."""
        return self.folder / relative(digest)

    def put(self, data: bytes, *, repair: bool = True) -> Digest:
        """Store bytes and return their digest. Doing it again changes nothing but its age, or a damaged copy.

        Raises BrokenRegistry for a damaged copy without `repair`, RegistryError when the disk does not let us.
        """
        digest = digest_bytes(data)
        path = self.path(digest)
        with durable.disk_errors(self.folder):
            if self.intact(digest):
                self._freshen(path, data)
                return digest
            if not repair and os.path.lexists(path):
                raise damaged(digest, self.digest_of(digest), REPAIR)
            durable.make_folder(path.parent)
            durable.write_file(path, data, 0o444)
        return digest

    def read(self, digest: str) -> bytes:
        """The bytes of a blob. Raises BrokenRegistry when they are missing or are not those of the digest."""
        if self.stat(digest) is None:
            raise damaged(digest, "no regular file")
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise damaged(digest, type(error).__name__) from error
        return checked(digest, data)

    def stat(self, digest: str) -> Stored | None:
        """The blob's size and age; None when no regular file is there."""
        path = self.path(digest)
        with durable.disk_errors(self.folder):
            status = _lstat(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            return None
        return Stored(Digest(digest), status.st_size, _modified(status))

    def size(self, digest: str) -> int | None:
        """The blob's size in bytes; None when no regular file is there."""
        found = self.stat(digest)
        return found and found.size

    def intact(self, digest: str) -> bool:
        """Whether the blob is a regular file with the right bytes (reads all of it)."""
        return self.digest_of(digest) == digest

    def digest_of(self, digest: str) -> str:
        """The digest of the file's bytes now; `unreadable: …` when it is no regular file that can be read."""
        self.path(digest)
        try:
            found = self.stat(digest)
        except RegistryError as error:
            return f"unreadable: {error.came}"
        return file_digest(self.path(digest)) if found else "unreadable: no regular file"

    def delete(self, digest: str) -> None:
        """Remove a blob durably; an absent one is no error. Raises RegistryError."""
        with durable.disk_errors(self.folder):
            durable.remove_file(self.path(digest))

    def leftovers(self) -> list[Leftover]:
        """Temporary files of writers that died, or that are writing now."""
        found: list[Leftover] = []
        for pattern in (".tmp-*", "sha256/.tmp-*", "sha256/[0-9a-f][0-9a-f]/.tmp-*"):
            for path in self.folder.glob(pattern):
                name = path.relative_to(self.folder).as_posix()
                status = _lstat(path)
                if status and _LEFTOVER.fullmatch(name) and not stat.S_ISDIR(status.st_mode):
                    found.append(Leftover(name, status.st_size, _modified(status)))
        return sorted(found, key=lambda leftover: leftover.name)

    def owns(self, name: str) -> bool:
        """Whether a file of this name below the folder is a blob or a leftover: no other is of the store."""
        return bool(_BLOB.fullmatch(name) or _LEFTOVER.fullmatch(name))

    def discard(self, leftover: str) -> None:
        """Remove a temporary file by its name in `leftovers`. Raises InvalidInput for any other name."""
        if not _LEFTOVER.fullmatch(leftover):
            raise InvalidInput("the name of a leftover", "another name", "Take it from `leftovers()`.")
        with durable.disk_errors(self.folder):
            durable.remove_file(self.folder / leftover)

    def stored(self) -> Iterator[Stored]:
        """The blobs that are regular files, sorted by digest."""
        for digest in self:
            if found := self.stat(digest):
                yield found

    def __iter__(self) -> Iterator[Digest]:
        """The digests of all blobs on disk, sorted; unfinished files are not blobs."""
        for folder in sorted(self.folder.glob("sha256/[0-9a-f][0-9a-f]")):
            for name in sorted(_names(folder)):
                if NAME.fullmatch(name) and name.startswith(folder.name):
                    yield Digest(f"sha256:{name}")

    def where(self, digest: str) -> str:
        """The path as text."""
        return str(self.path(digest))

    def local_path(self, digest: str) -> Path | None:
        """The same as `path`."""
        return self.path(digest)

    def _freshen(self, path: Path, data: bytes) -> None:
        """Make the name durable (the process that wrote it may not have yet) and the age young."""
        status = _lstat(path)
        if status and datetime.now(UTC) - _modified(status) > FRESH:
            try:
                os.utime(path)
            except (FileNotFoundError, PermissionError):  # removed since we looked, or another user's
                durable.write_file(path, data, 0o444)
        durable.sync_folder(path.parent)


def relative(digest: str) -> str:
    """`sha256/ab/<hex>`: the name of a blob below its store. Raises InvalidInput for what is no digest."""
    name = checks.digest(digest, "blob digest").removeprefix("sha256:")
    return f"sha256/{name[:2]}/{name}"


def checked(digest: str, data: bytes) -> bytes:
    """`data`, which must have this digest. Raises BrokenRegistry."""
    if (found := digest_bytes(data)) != digest:
        raise damaged(digest, f"bytes of {found}")
    return data


def damaged(digest: str, came: str, then: str = "Restore it from a backup.") -> BrokenRegistry:
    """The error of a blob that is missing or is not itself."""
    return BrokenRegistry(f"blob {digest}", came, then)


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes; `unreadable: …` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable: {type(error).__name__}"


def _local(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path or parts.query or parts.fragment:
        raise InvalidInput("file:///folder", "another file URL", "Write three slashes and an absolute path.")
    return Path(unquote(parts.path))


def _names(folder: Path) -> list[str]:
    """What is in a folder; nothing where it is none or cannot be read: its blobs are then missing."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _modified(status: os.stat_result) -> datetime:
    return _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
