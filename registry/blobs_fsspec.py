"""Blobs on object storage: any fsspec file system whose writes appear whole and can be made conditional.

An object is created with `If-None-Match: *` (S3: also when a multipart upload is completed), so of two writers
one creates it and the other finds it there. The loser checks that what is there is what it brought.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import blobs_s3
from .blob_store import Leftover, Stored
from .blobs import FRESH, NAME, REPAIR, checked, damaged, relative
from .canon import Digest, digest_bytes
from .errors import InvalidInput, NotFound, RegistryError
from .storage_errors import code_of, translation

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([A-Za-z0-9._/=+-]*)")
_CONDITIONAL = ("s3", "s3a", "gs", "gcs", "memory")
_PIECE = 8 * 2**20
_ATTEMPTS = 5
_LOST = {"PreconditionFailed", "ConditionalRequestConflict", "OperationAborted", "409", "412"}
"""S3's answers to a conditional write when another one was there first, or is under way."""


@dataclass(frozen=True, slots=True)
class FsspecBlobs:
    """The blob store below an fsspec URL. Use `open_blobs`.

    It holds no connection: fsspec keeps one per process and thread, so this may cross a fork.
    """

    url: str
    options: Mapping[str, Any] = field(repr=False)
    """Of the file system; may hold secrets, so it is never shown."""

    @classmethod
    def at(cls, url: str, options: Mapping[str, Any]) -> FsspecBlobs:
        """Check the URL; touches nothing. Raises InvalidInput, which never repeats it: it may hold a password."""
        match = _URL.fullmatch(url)
        if match is None:
            came = "credentials, a query, a chain of URLs or odd characters in it"
            raise InvalidInput("an object storage URL such as s3://bucket/prefix", came, _SETTINGS)
        protocol, path = match[1], match[2].rstrip("/")
        path = path.lstrip("/") if protocol == "memory" else path
        if any(part in ("", ".", "..") for part in path.split("/") if path):
            raise InvalidInput("a URL without empty, . or .. segments", "one with them", "Remove them.")
        if not path and protocol != "memory":
            raise InvalidInput("a bucket in the URL", "none", f"Write {protocol}://bucket/prefix.")
        _check_conditional(protocol)
        return cls(f"{protocol}://{path}", dict(options))

    def put(self, data: bytes, *, repair: bool = False) -> Digest:
        """Create the object unless it is there; see `BlobStore.put`. Raises BrokenRegistry, RegistryError."""
        digest = digest_bytes(data)
        for _ in range(_ATTEMPTS):
            found = self.stat(digest)
            if found is None:
                if self._write(digest, data, "create"):
                    return digest
            elif (actual := self.digest_of(digest)) == digest:
                if self._freshen(found):
                    return digest
            elif not actual.startswith("unreadable: absent"):
                if not repair:
                    raise damaged(digest, actual, REPAIR)
                self._write(digest, data, "overwrite")
                return digest
        raise RegistryError(f"to store {self.where(digest)}", "other writers at every attempt", "Try again.")

    def read(self, digest: str) -> bytes:
        """The bytes, checked. About twice their size in memory at the peak."""
        path = self._path(digest)
        try:
            with self._reaching():
                data: bytes = self._fs.cat_file(path)
        except FileNotFoundError:
            self._require_bucket()
            raise damaged(digest, f"nothing at {self.where(digest)}") from None
        return checked(digest, data)

    def stat(self, digest: str) -> Stored | None:
        """Size and age of the object; None when there is none. Raises NotFound when there is no bucket."""
        path = self._path(digest)
        try:
            with self._reaching():
                info = self._fs.info(path)
        except FileNotFoundError:
            self._require_bucket()
            return None
        return Stored(Digest(digest), info["size"], _modified(info)) if info["type"] == "file" else None

    def size(self, digest: str) -> int | None:
        """Size in bytes; None when there is no object."""
        found = self.stat(digest)
        return found and found.size

    def intact(self, digest: str) -> bool:
        """Whether the object is there with the right bytes (fetches all of it)."""
        return self.digest_of(digest) == digest

    def digest_of(self, digest: str) -> str:
        """The digest of the object's bytes now, fetched in pieces of 8 MiB; `unreadable: …` when it cannot be."""
        path = self._path(digest)
        try:
            found = self.stat(digest)
            return "unreadable: absent" if found is None else self._hash(path, found.size)
        except FileNotFoundError:
            return "unreadable: absent"
        except RegistryError as error:
            return f"unreadable: {error.came}"

    def delete(self, digest: str) -> None:
        """Remove the object, and on a versioned S3 bucket every version of it. Absent is no error."""
        path = self._path(digest)
        try:
            with self._reaching():
                if self._s3:
                    blobs_s3.delete_all_versions(self._fs, path)
                else:
                    self._fs.rm_file(path)
        except FileNotFoundError:
            self._require_bucket()

    def leftovers(self) -> list[Leftover]:
        """Multipart uploads that were begun and neither completed nor aborted. Other stores keep none."""
        with self._reaching(missing=True):
            return blobs_s3.uploads(self._fs, self._root) if self._s3 else []

    def discard(self, leftover: str) -> None:
        """Abort an upload by its name in `leftovers`. Raises InvalidInput for another name."""
        key, _, upload = leftover.partition("?uploadId=")
        if not (self._s3 and upload and key.startswith("sha256/")):
            raise InvalidInput("the name of a leftover", "another name", "Take it from `leftovers()`.")
        with self._reaching(missing=True):
            blobs_s3.abort(self._fs, f"{self._root}/{key}", upload)

    def stored(self) -> Iterator[Stored]:
        """All blobs, sorted, from one listing."""
        with self._reaching(missing=True):
            found: Mapping[str, Mapping[str, Any]] = self._fs.find(f"{self._root}/sha256", detail=True)
        for path in sorted(found):
            name = path.rpartition("/")[2]
            if NAME.fullmatch(name) and path.endswith(relative(f"sha256:{name}")):
                yield Stored(Digest(f"sha256:{name}"), found[path]["size"], _modified(found[path]))

    def __iter__(self) -> Iterator[Digest]:
        """The digests of all blobs, sorted."""
        for found in self.stored():
            yield found.digest

    def where(self, digest: str) -> str:
        """The object's URL."""
        return f"{self.url.rstrip('/')}/{relative(digest)}"

    def local_path(self, digest: str) -> Path | None:
        """None: the bytes are elsewhere."""
        relative(digest)
        return None

    @property
    def _s3(self) -> bool:
        return self.url.startswith(("s3://", "s3a://"))

    @property
    def _fs(self) -> Any:
        """fsspec's own cached instance for this process and thread; listings are never cached."""
        import fsspec

        protocol = self.url.partition("://")[0]
        return fsspec.filesystem(protocol, **{"use_listings_cache": False, **self.options})

    @property
    def _root(self) -> str:
        path = self.url.partition("://")[2]
        return f"/{path}".rstrip("/") if self.url.startswith("memory://") else path

    def _path(self, digest: str) -> str:
        return f"{self._root}/{relative(digest)}"

    def _write(self, digest: str, data: bytes, mode: str) -> bool:
        """False when a conditional write found that another one was there first."""
        sizes = {"chunksize": blobs_s3.PART} if self._s3 else {}
        try:
            with self._reaching(missing=True):
                self._fs.pipe_file(self._path(digest), data, mode=mode, **sizes)
        except FileExistsError:
            return False
        return True

    def _freshen(self, found: Stored) -> bool:
        """Give an old object a new age by a copy onto itself; False when it is gone by now."""
        if found.written_at is None or datetime.now(UTC) - found.written_at <= FRESH:
            return True
        path = self._path(found.digest)
        extra = {"MetadataDirective": "REPLACE"} if self._s3 else {}
        try:
            with self._reaching():
                self._fs.cp_file(path, path, **extra)
        except FileNotFoundError:
            return False
        return True

    def _hash(self, path: str, size: int) -> str:
        digest = hashlib.sha256()
        for start in range(0, size, _PIECE):
            with self._reaching():
                digest.update(self._fs.cat_file(path, start=start, end=min(start + _PIECE, size)))
        return "sha256:" + digest.hexdigest()

    def _require_bucket(self) -> None:
        """Tell an absent object from an absent bucket: both are FileNotFoundError."""
        if not self.url.startswith("memory://"):
            with self._reaching(missing=True):
                self._fs.info(self._root.partition("/")[0])

    @contextmanager
    def _reaching(self, *, missing: bool = False) -> Generator[None]:
        """Translate what the file system raises, but for FileExistsError and, unless `missing`, FileNotFound.

        `from None`: the libraries' own texts may quote endpoints with passwords, or signed headers.
        """
        try:
            yield
        except FileNotFoundError:
            if not missing:
                raise
            then = "Create the bucket, or name another --registry."
            raise NotFound(f"the bucket of {self.url}", "no such bucket", then) from None
        except (FileExistsError, RegistryError):
            raise
        except Exception as error:
            if code_of(error) in _LOST:
                raise FileExistsError from None
            found = translation(error, self.url)
            if found is None:
                raise
            raise found from None


_SETTINGS = "Put credentials and endpoints in the environment (AWS_PROFILE, AWS_ENDPOINT_URL, …)."


def _check_conditional(protocol: str) -> None:
    """Refuse file systems where fsspec's `pipe_file(mode="create")` is only a look and then a write."""
    import fsspec

    if protocol not in _CONDITIONAL:
        came = f"another protocol than {', '.join(_CONDITIONAL)}"
        raise InvalidInput("storage with conditional writes", came, "Use a folder or s3://bucket/prefix.")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError:
        then = "pip install 'efface[s3]' for S3, gcsfs for Google Cloud Storage."
        raise InvalidInput(f"the fsspec package for {protocol}://", "none installed", then) from None


def _modified(info: Mapping[str, Any]) -> datetime | None:
    """When the object was last written, under the names that file systems give it."""
    for name in ("LastModified", "mtime", "modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return None
