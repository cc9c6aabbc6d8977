"""Blobs: where they lie, that they are written once, and that reading notices everything."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
from registry_kit import contents

from efface.registry import Blobs, BrokenRegistry, InvalidInput, digest_bytes


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
