"""SIGKILL at every call to the system: a blob is whole or absent, a cached folder too, and gc can be repeated.

As a script it has one thread and forks a child for each point, like `test_registry_crash.py`.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from efface.registry import Adapter, Blobs, digest_bytes
from efface.registry import cache as folders
from efface.registry.gc import execute, plan

CALLS = (
    "open",
    "write",
    "fchmod",
    "fsync",
    "close",
    "replace",
    "rename",
    "unlink",
    "rmdir",
    "mkdir",
    "utime",
)
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(range(256)) * 50}
DIGESTS = {name: digest_bytes(data) for name, data in FILES.items()}
ADAPTER = Adapter(
    digest=digest_bytes(b"manifest"),
    kind="trained",
    base="base",
    quantization="nf4",
    requests=("req-000001",),
    trained_on=None,
    files=DIGESTS,
    facts={},
    error_bound=None,
    state="SEALED",
    sealed_at="",
)
KEPT = digest_bytes(b"kept")


def store(root: Path) -> Blobs:
    return Blobs(root / "blobs")


def cached(root: Path) -> Path:
    return root / "cache" / ADAPTER.digest[7:]


def put(root: Path) -> None:
    for data in FILES.values():
        store(root).put(data)


def repair(root: Path) -> None:
    """Over a damaged copy."""
    put(root)


def materialise(root: Path) -> None:
    if not folders.holds(cached(root), DIGESTS):
        folders.materialise(store(root), ADAPTER, cached(root))


def collect(root: Path) -> None:
    later = datetime.now(UTC) + timedelta(hours=2)
    caches = [root / "cache"]
    planned = plan(store(root), {KEPT}, set(DIGESTS.values()), caches=caches, now=later)
    execute(store(root), planned, {KEPT}, caches=caches)


VERBS: dict[str, Callable[[Path], None]] = {
    "put": put, "repair": repair, "materialise": materialise, "collect": collect
}  # fmt: skip


def prepare(root: Path, verb: str) -> None:
    store(root).put(b"kept")
    if verb == "put":
        return
    put(root)
    if verb == "repair":
        for digest in DIGESTS.values():
            store(root).path(digest).chmod(0o644)
            store(root).path(digest).write_bytes(b"damaged")
    if verb == "materialise":
        cached(root).mkdir(parents=True)
        (cached(root) / "stray").touch()
    if verb == "collect":
        folders.materialise(store(root), ADAPTER, cached(root))
        (root / "blobs" / ".tmp-00").write_bytes(b"half")


def check(root: Path, verb: str) -> None:
    """After the kill, and after doing it again."""
    for attempt in ("killed", "repeated"):
        if attempt == "repeated":
            VERBS[verb](root)
        for digest in store(root):
            assert store(root).intact(digest) or (verb == "repair" and attempt == "killed"), digest
        assert store(root).read(KEPT) == b"kept"
        whole = folders.holds(cached(root), DIGESTS)
        stray = (cached(root) / "stray").exists()
        assert whole or stray or not cached(root).exists(), list(cached(root).iterdir())
    there = {KEPT} if verb == "collect" else {KEPT, *DIGESTS.values()}
    assert set(store(root)) == there
    assert whole == (verb == "materialise")
    if verb == "collect":
        assert store(root).leftovers() == []
        assert list((root / "cache").iterdir()) == []


def die_at(number: int) -> None:
    """Kill this process just before its `number`-th call."""
    seen = itertools.count(1)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return step

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def killed(root: Path, verb: str, number: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            die_at(number)
            VERBS[verb](root)
        except BaseException as error:  # noqa: BLE001 - a forked child must never return
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0


def drive(verb: str) -> None:
    """Every step; prints how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder) / "base", verb)
        for number in itertools.count(1):
            root = Path(folder) / str(number)
            shutil.copytree(Path(folder) / "base", root)
            died = killed(root, verb, number)
            check(root, verb)
            if not died:
                sys.stdout.write(str(number - 1))
                return


@pytest.mark.parametrize("verb", VERBS)
def test_killed_anywhere_blobs_are_whole_or_absent_and_it_can_be_repeated(verb: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-W", "error", __file__, verb]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 10


if __name__ == "__main__":
    drive(sys.argv[1])
