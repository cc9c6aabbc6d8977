"""What a request's shredding destroys besides its vault entry, as a plan, and carrying it out.

    <root>/work/<request>          checkpoints of trainings that did not end: optimizer states, token ids, hashes
    <root>/cache/rows/<request>    rows made ready for training

Both are leftovers that may be deleted at any time. The plan refuses what it cannot be sure of: links, files
with a second name elsewhere, devices, other filesystems. Nothing outside `root` is opened or changed, even if
a folder turns into a link between plan and execution: every step starts at `root` and follows no link.

Files are overwritten with zeros before they are deleted; `Vault.shred` says what that is worth.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import vault_files
from .errors import Conflict, InvalidInput

_REQUEST = re.compile(r"req-[0-9]{6,18}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class ShredFile:
    """A file to destroy: its path below the root, with `/`, and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class ShredPlan:
    """What will be destroyed for a request: files, then folders, the deepest first."""

    root: Path
    request_id: str
    files: tuple[ShredFile, ...]
    folders: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(file.size for file in self.files)


def plan_shred(root: Path, request_id: str) -> ShredPlan:
    """List what belongs to the request below `root`. Reads names and sizes only, and writes nothing.

    Raises InvalidInput for what is no request's id, and Conflict for a link or anything else to look at first.
    """
    if not _REQUEST.fullmatch(request_id):
        expected = "a request's id: req- and at least six digits"
        raise InvalidInput(expected, "other text", "List them with `efface request list`.")
    files: list[ShredFile] = []
    folders: list[str] = []
    for place in (f"work/{request_id}", f"cache/rows/{request_id}"):
        for path, status in _walk(root, place):
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                files.append(ShredFile(path, status.st_size))
    return ShredPlan(root, request_id, tuple(sorted(files, key=_path)), tuple(reversed(folders)))


def execute(plan: ShredPlan) -> None:
    """Destroy what the plan lists; what is gone already is fine, so a call that was cut off may be repeated.

    Raises Conflict, with everything listed destroyed up to there, when a file was replaced by a link or another
    came into a folder; and, with nothing destroyed, while the request is being trained.
    """
    with untrained(plan):
        for file in plan.files:
            with _parent(plan.root, file.path) as (folder, name):
                _destroy(folder, name, file.path)
        for path in plan.folders:
            with _parent(plan.root, path) as (folder, name):
                _remove(folder, name, path)


def _walk(root: Path, place: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every folder and file of `place`, a folder before what is in it; raises Conflict for anything else."""
    device = root.stat().st_dev
    for part in (*reversed(PurePosixPath(place).parents[:-1]), PurePosixPath(place)):
        if not vault_files.exists(root / part):
            return
        _check(str(part), (root / part).lstat(), device, folder=True)
    waiting = [place]
    while waiting:
        path = waiting.pop()
        status = (root / path).lstat()
        yield path, status
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(root / path) as entries:
                below = {f"{path}/{entry.name}": entry.stat(follow_symlinks=False) for entry in entries}
            for name, found in below.items():
                _check(name, found, device)
            waiting += below


def _check(path: str, status: os.stat_result, device: int, *, folder: bool = False) -> None:
    if status.st_dev != device:
        raise _refused(path, "a folder on another filesystem")
    if stat.S_ISDIR(status.st_mode):
        return
    if folder or not stat.S_ISREG(status.st_mode):
        raise _refused(path, "a link or a special file")
    if status.st_nlink > 1:
        raise _refused(path, "a file with a second name, whose bytes may be another's too")


@contextmanager
def _parent(root: Path, path: str) -> Generator[tuple[int | None, str]]:
    """A descriptor of the folder that holds `path`, reached without links; None when it is gone."""
    *parts, name = path.split("/")
    descriptor: int | None = os.open(root, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for part in parts:
            above, descriptor = descriptor, None
            try:
                descriptor = _enter(above, part, path)
            finally:
                os.close(above)
            if descriptor is None:
                break
        yield descriptor, name
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _enter(above: int, part: str, path: str) -> int | None:
    try:
        return os.open(part, _FOLDER, dir_fd=above)
    except FileNotFoundError:
        return None
    except (NotADirectoryError, OSError) as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _refused(path, "a link on the way") from error
        raise


def _destroy(folder: int | None, name: str, path: str) -> None:
    if folder is None:
        return
    try:
        descriptor = os.open(name, _FILE, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _refused(path, "something else since the plan") from error
        raise
    try:
        _check(path, status := os.fstat(descriptor), status.st_dev, folder=False)
        vault_files.zero_descriptor(descriptor)
        os.unlink(name, dir_fd=folder)
        os.fsync(folder)
    finally:
        os.close(descriptor)


def _remove(folder: int | None, name: str, path: str) -> None:
    if folder is None:
        return
    try:
        os.rmdir(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _refused(path, "something new since the plan") from error
        raise
    os.fsync(folder)


@contextmanager
def untrained(plan: ShredPlan) -> Generator[None]:
    """Hold the lock of the request's training, which lies beside its checkpoints (`efface.recipes`), or Conflict."""
    work = plan.root / "work"
    if not work.is_dir():
        yield
        return
    from filelock import FileLock, Timeout

    path = work / f"{plan.request_id}.lock"
    if work.is_symlink() or path.is_symlink():
        raise _refused(f"work/{path.name}", "a link")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        then = "Wait for it, or end it."
        raise Conflict(f"{plan.request_id} not to be in training", "a training of it", then) from error
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            lock.release()


def _refused(path: str, came: str) -> Conflict:
    then = "Look at it, remove it by hand, and plan again."
    return Conflict(f"only plain files and folders at {path}", came, then)


def _path(file: ShredFile) -> str:
    return file.path
