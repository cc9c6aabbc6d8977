"""Blobs: where they lie, that they are written once, and that reading notices everything."""

import errno
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blob_kit import together
from registry_kit import contents

from efface.registry import Blobs, BrokenRegistry, InvalidInput, RegistryError, digest_bytes
from efface.registry.blobs import open_blobs


def test_layout_mode_and_bytes(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    digest = blobs.put(b"bytes")
    name = hashlib.sha256(b"bytes").hexdigest()
    path = tmp_path / "blobs" / "sha256" / name[:2] / name
    assert digest == f"sha256:{name}"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"bytes", 0o444)
    assert (blobs.read(digest), blobs.size(digest), list(blobs)) == (b"bytes", 5, [digest])


def test_putting_twice_writes_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"bytes")
    before = blobs.path(digest).stat()
    assert blobs.put(b"bytes") == digest
    assert blobs.path(digest).stat() == before


def test_unfinished_and_foreign_files_are_no_blobs(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"bytes")
    for name in (".tmp-0011223344556677", "notes.txt", "z" * 64):
        (blobs.path(digest).parent / name).touch()
    assert list(blobs) == [digest]


@pytest.mark.parametrize("damage", ["missing", "flipped", "truncated", "link", "folder"])
def test_reading_a_damaged_blob_is_an_error_and_putting_heals_it(tmp_path: Path, damage: str) -> None:
    blobs = Blobs(tmp_path / "blobs")
    digest = blobs.put(b"bytes")
    path = blobs.path(digest)
    path.unlink()
    if damage == "flipped":
        path.write_bytes(b"bytEs")
    elif damage == "truncated":
        path.write_bytes(b"byt")
    elif damage == "link":
        (tmp_path / "other").write_bytes(b"other")
        path.symlink_to(tmp_path / "other")
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(BrokenRegistry):
        blobs.read(digest)
    assert not blobs.intact(digest)
    if damage != "folder":
        blobs.put(b"bytes")
        assert blobs.read(digest) == b"bytes"
        assert not path.is_symlink()


@pytest.mark.parametrize("bad", ["", "sha256:", "../../etc/passwd", "sha256:" + "A" * 64, "md5:" + "0" * 32])
def test_a_path_is_made_of_digests_only(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InvalidInput):
        Blobs(tmp_path).read(bad)
    assert contents(tmp_path) == {}


def test_bytes_are_synced_before_they_get_their_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGKILL loses no page cache, so only the order of the calls shows what a power cut would find."""
    blobs, synced, fsync = Blobs(tmp_path / "blobs"), [], os.fsync
    path = blobs.path(digest_bytes(b"bytes"))

    def record(descriptor: int) -> None:
        status = os.fstat(descriptor)
        what = "folder" if stat.S_ISDIR(status.st_mode) else status.st_size
        synced.append((what, status.st_ino, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    blobs.put(b"bytes")
    assert synced[-2:] == [(5, path.stat().st_ino, False), ("folder", path.parent.stat().st_ino, True)]
    made = {folder.stat().st_ino for folder in (tmp_path, tmp_path / "blobs", tmp_path / "blobs" / "sha256")}
    assert {inode for what, inode, named in synced if what == "folder" and not named} == made


def test_without_repair_a_damaged_copy_is_an_error(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = blobs.put(b"bytes")
    blobs.path(digest).unlink()
    blobs.path(digest).write_bytes(b"bytEs")
    with pytest.raises(BrokenRegistry, match=digest):
        blobs.put(b"bytes", repair=False)
    assert blobs.path(digest).read_bytes() == b"bytEs"


def test_putting_again_makes_an_old_blob_young_and_its_name_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gc spares the young, and another process may have renamed the file but not synced the folder yet."""
    blobs, synced, fsync = Blobs(tmp_path), [], os.fsync
    path = blobs.path(blobs.put(b"bytes"))
    os.utime(path, (1e9, 1e9))

    def record(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    blobs.put(b"bytes")
    assert time.time() - path.stat().st_mtime < 60
    assert synced == [path.parent.stat().st_ino]


def test_deleting_is_durable_and_deleting_the_absent_is_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, synced, fsync = Blobs(tmp_path), [], os.fsync
    digest = blobs.put(b"bytes")
    folder = blobs.path(digest).parent

    def record(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, blobs.path(digest).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    blobs.delete(digest)
    blobs.delete(digest)
    blobs.delete(digest_bytes(b"never put"))
    assert set(synced) == {(folder.stat().st_ino, False)}
    assert len(synced) == 2
    assert list(blobs) == []


def test_leftovers_are_named_and_discarded(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path / "blobs")
    assert blobs.leftovers() == []
    digest = blobs.put(b"bytes")
    shard = f"sha256/{digest[7:9]}"
    names = [".tmp-00ff", "sha256/.tmp-12", f"{shard}/.tmp-0011223344556677"]
    for name in [*names, "sha256/zz.tmp-1", "notes"]:
        (tmp_path / "blobs" / name).write_bytes(b"half")
    found = blobs.leftovers()
    assert sorted(leftover.name for leftover in found) == sorted(names)
    assert {leftover.size for leftover in found} == {4}
    for leftover in found:
        blobs.discard(leftover.name)
        blobs.discard(leftover.name)
    assert blobs.leftovers() == []
    assert list(blobs) == [digest]


@pytest.mark.parametrize(
    "name", ["", "notes", "../.tmp-1", "sha256/../.tmp-1", "/.tmp-1", ".tmp-", "a/.tmp-1"]
)
def test_only_leftovers_can_be_discarded(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        Blobs(tmp_path).discard(name)


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer."""
    blobs = Blobs(tmp_path)
    digest = digest_bytes(b"bytes")
    blobs.path(digest).parent.mkdir(parents=True)
    os.mkfifo(blobs.path(digest))
    assert blobs.digest_of(digest) == "unreadable: no regular file"
    with pytest.raises(BrokenRegistry):
        blobs.read(digest)
    assert (blobs.size(digest), list(blobs.stored())) == (None, [])


FAULTS = {errno.ENOSPC: "full disk", errno.EROFS: "read-only disk", errno.EIO: "input/output error"}
CALLS = ["open", "write", "fsync", "fchmod", "close", "replace", "rename", "unlink", "mkdir", "utime"]


@pytest.mark.parametrize("code", FAULTS)
@pytest.mark.parametrize("verb", ["put", "put again", "delete", "discard"])
def test_whatever_call_fails_a_blob_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, code: int
) -> None:
    """Every call of ours to the system fails in turn; then the disk is well again and the verb succeeds."""
    faults = 0
    for call in CALLS:
        real = getattr(os, call)
        for number in range(1, 20):
            blobs = Blobs(tmp_path / f"{call}-{number}" / "blobs")
            act = prepared(blobs, verb)
            seen = itertools.count(1)

            def faulty(
                *arguments: Any, real: Any = real, seen: Any = seen, number: int = number, **named: Any
            ) -> Any:
                if next(seen) == number:
                    raise OSError(code, os.strerror(code))
                return real(*arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, faulty)
                said = complaint(act)
            assert said is None or FAULTS[code] in said
            faults += said is not None
            assert all(blobs.intact(digest) for digest in blobs)
            if next(seen) <= number:
                break
            act()
            assert list(blobs) == ([] if verb == "delete" else [digest_bytes(b"bytes")])
    assert faults >= {"put": 12, "put again": 3, "delete": 3, "discard": 3}[verb]


def test_a_disk_that_takes_a_few_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    blobs = Blobs(tmp_path)
    assert blobs.read(blobs.put(bytes(range(100)))) == bytes(range(100))


def complaint(act: Callable[[], object]) -> str | None:
    try:
        act()
    except RegistryError as error:
        return str(error)
    return None


def prepared(blobs: Blobs, verb: str) -> Callable[[], object]:
    """The verb to try, on a store where it has something to do."""
    if verb == "put":
        return lambda: blobs.put(b"bytes")
    digest = blobs.put(b"bytes")
    os.utime(blobs.path(digest), (1e9, 1e9))
    (blobs.folder / ".tmp-00").write_bytes(b"half")
    verbs = {
        "put again": lambda: blobs.put(b"bytes"),
        "delete": lambda: blobs.delete(digest),
        "discard": lambda: blobs.discard(".tmp-00"),
    }
    return verbs[verb]


def test_processes_that_put_the_same_blobs_leave_each_whole(tmp_path: Path) -> None:
    script = f"""
import random
from pathlib import Path
from efface.registry import Blobs
store, blobs = Blobs(Path({str(tmp_path / "blobs")!r})), [bytes([n]) * 100_000 for n in range(40)]
random.shuffle(blobs)
print(*sorted(store.put(blob) for blob in blobs))
"""
    outputs = together(*[script] * 4)
    blobs = Blobs(tmp_path / "blobs")
    assert set(outputs) == {" ".join(blobs)}
    assert all(blobs.intact(digest) for digest in blobs)
    assert blobs.leftovers() == []


def test_a_url_or_a_path_opens_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    for url in (folder, str(folder), folder.as_uri(), f"file://localhost{folder.as_uri()[7:]}"):
        assert open_blobs(url) == Blobs(folder)
    assert open_blobs("relative/folder") == Blobs(Path("relative/folder"))


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secretword@bucket/prefix",
        "s3://bucket/prefix?secret=secretword",
        "s3://bucket/prefix#secretword",
        "simplecache::s3://bucket/secretword",
        "s3://",
        "s3:///secretword",
        "s3://bucket/../secretword",
        "s3://bucket//secretword",
        "s3://bucket/secret word",
        "file://secretword/folder",
        "file://",
        "file:///folder?secretword",
        "http://secretword/x",
        "sftp://secretword/x",
        "secretword://x",
        "S3://secretword/x",
    ],
)
def test_other_urls_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        open_blobs(url)
    assert "secretword" not in str(raised.value).replace(url.partition("://")[0], "")


def test_importing_the_registry_imports_no_file_systems() -> None:
    script = (
        "import sys, efface.registry; print([m for m in ('fsspec', 's3fs', 'botocore') if m in sys.modules])"
    )
    assert together(script) == ["[]"]
