"""A disk that is full or read-only, and an auditor's read-only copy: clear errors, and nothing is torn.

A real small disk and a real read-only one where this user may mount them (root does); elsewhere those tests are
skipped, and file size limits and injected errors stand in for them.
"""

import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from registry_kit import CANARY, answered, ask, audited, contents, lora, release, seal, stack

from efface.registry import (
    Registry,
    RegistryError,
    active_release,
    adapter_folder,
    collect,
    get_adapter,
    history,
    list_adapters,
    list_requests,
    log,
    plan_collection,
    read_payload,
    rebuild,
    shred_request,
    step_request,
    verify,
)

SPACE = 512 * 1024


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """A file system at `folder`; skips where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("no mount program here")
    done = subprocess.run([mount, *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount a disk: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(tmp_path: Path, quiet_vault: None) -> Iterator[Path]:
    """A real disk of half a megabyte."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs") as folder:
        yield folder


def fill(folder: Path, leave: int) -> Path:
    """Take all the space but `leave` bytes, or all of it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(4096)) == 4096:
                pass
        size = file.tell()
    os.truncate(ballast, max(size - leave, 0))
    return ballast


def refusal(verb: Callable[[], object]) -> RegistryError | None:
    """The error that the verb ends in; None when it works."""
    try:
        verb()
    except RegistryError as error:
        return error
    return None


@pytest.mark.parametrize("leave", [0, 4096, 3 * 4096, 8 * 4096])
def test_on_a_full_disk_each_verb_works_or_says_so_and_nothing_is_torn(
    small: Path, tmp_path: Path, leave: int
) -> None:
    with Registry.open(small / "registry", create=True) as reg:
        _, adapter = answered(reg, tmp_path, 1)
        release(reg, stack([adapter]))
        ballast = fill(small, leave)
        verbs: list[Callable[[], object]] = [
            lambda: ask(reg),
            lambda: ask(reg, CANARY.encode() * 4000),
            lambda: seal(reg, lora(tmp_path / "lora-9", 9), ["req-000001"]),
            lambda: release(reg, stack([adapter])),
            lambda: adapter_folder(reg, adapter.digest),
            lambda: rebuild(reg),
        ]
        outcomes = [outcome(reg, verb) for verb in verbs]
        assert any(outcomes), "the disk was never full"
        ballast.unlink()
        for request in list_requests(reg):
            if not outcomes[1] or request.id == "req-000001":
                assert read_payload(reg, request.id)
        seal(reg, lora(tmp_path / "lora-5", 5), ["req-000001"])
        assert verify(reg, deep=True).problems == ()
        assert reg.vault.requests() == [request.id for request in list_requests(reg)]


def outcome(reg: Registry, verb: Callable[[], object]) -> bool:
    """Whether the disk was too full for it."""
    before = [event.hash for event in log(reg)]
    error = refusal(verb)
    if error is None:
        return False
    assert type(error) is RegistryError, error
    assert "full" in error.came, error
    assert "pace" in error.then, error
    assert CANARY not in str(error)
    assert [event.hash for event in log(reg)][: len(before)] == before
    assert verify(reg, deep=True).problems == ()
    return True


def test_a_registry_is_not_half_made_on_a_full_disk(small: Path) -> None:
    ballast = fill(small, 3 * 4096)
    with pytest.raises(RegistryError) as caught:
        Registry.open(small / "registry", create=True)
    assert type(caught.value) is RegistryError
    assert "full" in caught.value.came
    ballast.unlink()
    with Registry.open(small / "registry", create=True) as reg:
        ask(reg)
        assert verify(reg, deep=True).ok


@pytest.fixture
def audited_copy(tmp_path: Path, quiet_vault: None) -> Iterator[Path]:
    """A registry on a read-only disk, as an auditor mounts it."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        _, adapter = answered(reg, tmp_path, 1)
        release(reg, stack([adapter]))
        request_id = ask(reg)
        step_request(reg, request_id, "WITHDRAWN", reason="r", actor="ana")
    with mounted(tmp_path / "copy", "--bind", str(root)) as folder:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield folder


def test_an_auditor_s_read_only_copy_is_read_and_verified_without_writing(audited_copy: Path) -> None:
    before = contents(audited_copy)
    with Registry.open(audited_copy) as reg:
        assert verify(reg, deep=True).problems == ()
        assert len(list_requests(reg)) == 2
        assert get_adapter(reg, list_adapters(reg)[0].digest).state == "QUALIFIED"
        assert active_release(reg, "prod").version == 1
        assert len(history(reg, "prod")) == 1
        assert read_payload(reg, "req-000001") == CANARY.encode()
        assert plan_collection(reg).items == ()
    assert contents(audited_copy) == before


WRITES: dict[str, Callable[[Registry, Path], object]] = {
    "ask": lambda reg, _: ask(reg),
    "seal": lambda reg, work: seal(reg, lora(work / "lora-9", 9), ["req-000001"]),
    "audit": lambda reg, _: audited(reg, stack(list_adapters(reg)), suite="other@1"),
    "release": lambda reg, _: release(reg, stack(list_adapters(reg))),
    "shred": lambda reg, _: shred_request(reg, "req-000002", actor="ana"),
    "gc": lambda reg, _: collect(reg, plan_collection(reg), actor="gc"),
    "rebuild": lambda reg, _: rebuild(reg),
    "materialise": lambda reg, _: adapter_folder(reg, list_adapters(reg)[0].digest),
}


@pytest.mark.parametrize("verb", WRITES)
def test_what_writes_says_that_the_disk_is_read_only(audited_copy: Path, tmp_path: Path, verb: str) -> None:
    before = contents(audited_copy)
    with Registry.open(audited_copy) as reg:
        with pytest.raises(RegistryError) as caught:
            WRITES[verb](reg, tmp_path)
        assert type(caught.value) is RegistryError
        assert "read-only" in str(caught.value)
        assert verify(reg, deep=True).ok
    assert contents(audited_copy) == before


def test_a_copy_with_unfinished_writes_on_a_read_only_disk_says_so(tmp_path: Path, quiet_vault: None) -> None:
    """A journal that has to be rolled back needs a disk that can be written."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        ask(reg)
    torn = subprocess.run(
        [sys.executable, "-c", TORN, str(root / "registry.db")], capture_output=True, text=True
    )
    assert torn.returncode == -signal.SIGKILL, torn.stderr
    assert (root / "registry.db-journal").exists()
    with mounted(tmp_path / "copy", "--bind", str(root)) as folder:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        with pytest.raises(RegistryError) as caught:
            Registry.open(folder)
        assert type(caught.value) is RegistryError
    with Registry.open(root) as reg:
        assert verify(reg, deep=True).ok


TORN = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")
db.execute("BEGIN IMMEDIATE")
db.execute("CREATE TABLE big (text)")
for n in range(200):
    db.execute("INSERT INTO big VALUES (?)", ("x" * 4000,))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_size_limit_stops_a_write_whole(tmp_path: Path, quiet_vault: None) -> None:
    """What a quota does, where nothing can be mounted: EFBIG from the kernel in the middle of a write."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        ask(reg)
    script = f"""
import resource, signal
from registry_kit import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from efface.registry import RegistryError, verify, log
with Registry.open({str(root)!r}) as reg:
    size = (reg.root / "registry.db").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    failed = 0
    for n in range(60):
        try:
            ask(reg, b"x" * 3000)
        except RegistryError as error:
            assert type(error) is RegistryError, error
            failed += 1
    assert verify(reg, deep=True).ok
    print(failed)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    with Registry.open(root) as reg:
        known = [request.id for request in list_requests(reg)]
        # A commit that fails leaves the entry of its request behind, as a crash does; the next request replaces it.
        assert reg.vault.requests() in (known, [*known, f"req-{len(known) + 1:06d}"])
        ask(reg)
        assert reg.vault.requests() == [request.id for request in list_requests(reg)]
        assert verify(reg, deep=True).problems == ()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_an_injected_error_at_each_call_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_vault: None, code: int, call: str
) -> None:
    """The calls of the vault and the blobs; SQLite's own are those of the tests above."""
    with Registry.open(tmp_path / "registry", create=True) as reg:
        answered(reg, tmp_path, 1)
        lora(tmp_path / "lora-9", 9)
        verbs: list[Callable[[], object]] = [
            lambda: ask(reg),
            lambda: seal(reg, tmp_path / "lora-9", ["req-000001"]),
        ]
        for verb in verbs:
            failed = 0
            for number in range(1, 200):
                if not fails(monkeypatch, call, number, code, verb):
                    break
                failed += 1
                assert verify(reg, deep=True).problems == (), (call, number)
            assert failed
        assert reg.vault.requests() == [request.id for request in list_requests(reg)]


def fails(
    monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: int, verb: Callable[[], object]
) -> bool:
    """Make the `number`-th call fail; whether the verb came that far."""
    real, seen = getattr(os, call), 0

    def failing(*arguments: object, **options: object) -> object:
        nonlocal seen
        # The lock's file and reading are not what is short of space.
        if call == "open" and not (isinstance(arguments[1], int) and arguments[1] & os.O_EXCL):
            return real(*arguments, **options)
        seen += 1
        if seen == number:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        error = refusal(verb)
    if error is None:
        assert seen < number, "an error of the disk was swallowed"
        return False
    assert type(error) is RegistryError, error
    assert errno.errorcode[code] in error.came, error
    return True


def test_a_database_that_is_only_readable_is_refused_for_writing(tmp_path: Path, quiet_vault: None) -> None:
    """Without a mount: SQLite's own read-only mode stands for a file of another user."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        ask(reg)
    path = root / "registry.db"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        assert db.execute("SELECT count(*) FROM event").fetchone() == (1,)
    if os.geteuid() == 0:
        pytest.skip("root writes to read-only files")
    path.chmod(0o444)
    with Registry.open(root) as reg, pytest.raises(RegistryError, match="permissions"):
        ask(reg)
