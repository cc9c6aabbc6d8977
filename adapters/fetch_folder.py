"""A fetched model folder: its manifest, the check against it, and how it comes into place whole.

Nothing here knows where the files come from: `fetch_sources` does, and `fetch` knows the order of things.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

MANIFEST = "efface-model.json"
"""File name of the manifest in a fetched folder."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and lower-case hex SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a fetched folder holds (by file name) and where it came from."""

    name: str
    licence: str
    source: str
    files: dict[str, FileRecord]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of `folder`, or None where there is none to read: the folder is then made anew."""
    try:
        return TypeAdapter(Manifest).validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def check_folder(folder: Path) -> list[str]:
    """Name what in `folder` differs from its manifest: missing, extra, altered files. Empty if whole."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{MANIFEST}: missing or unreadable"]
    found = {path.name: path for path in folder.iterdir() if path.name != MANIFEST}
    missing = [f"{name}: missing" for name in sorted(manifest.files.keys() - found)]
    extra = [f"{name}: not in the manifest" for name in sorted(found.keys() - manifest.files)]
    both = sorted(manifest.files.keys() & found)
    return (
        missing
        + extra
        + [f"{name}: altered" for name in both if not _same(found[name], manifest.files[name])]
    )


def replaceable(target: Path) -> bool:
    """Whether `target` holds nothing of other people: absent, empty, or all of it named in its manifest."""
    if not target.exists():
        return True
    manifest = read_manifest(target)
    known = {MANIFEST, *manifest.files} if manifest is not None else set[str]()
    return target.is_dir() and {path.name for path in target.iterdir()} <= known


def seal(folder: Path, name: str, licence: str, source: str) -> None:
    """Write the manifest of `folder`, once every file it names is on disk."""
    files = sorted(folder.iterdir())
    for path in files:
        sync(path)
    records = {path.name: FileRecord(path.stat().st_size, sha256_of(path)) for path in files}
    written = TypeAdapter(Manifest).dump_json(Manifest(name, licence, source, records), indent=2)
    (folder / MANIFEST).write_bytes(written + b"\n")
    sync(folder / MANIFEST)
    sync(folder)


def publish(built: Path, target: Path) -> None:
    """Rename the sealed folder `built` to `target`; what was there stays beside `built` as `replaced`."""
    if target.exists():
        target.rename(built.with_name("replaced"))
    built.rename(target)
    sync(target.parent)


def work_prefix(target: Path) -> str:
    """How the hidden working folders for `target` begin, beside it and so on its file system."""
    return f".{target.name}.partial-"


def sweep(target: Path) -> None:
    """Remove working folders that killed runs left beside `target`. Call it with the target's lock held."""
    for leftover in target.parent.iterdir():
        if leftover.name.startswith(work_prefix(target)):
            shutil.rmtree(leftover)


def sha256_of(path: Path) -> str:
    """Lower-case hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same(path: Path, record: FileRecord) -> bool:
    """Whether `path` is a plain file of the recorded size and digest; the size is looked at first."""
    plain = path.is_file() and not path.is_symlink()
    return plain and path.stat().st_size == record.size and sha256_of(path) == record.sha256
