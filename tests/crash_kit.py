"""Killing a process at each of its steps: what the crash tests of the registry share.

A step is a file opened for writing, a rename, link, unlink, mkdir, chmod or fsync of ours, a connection to SQLite or an
SQL statement. Kills inside a statement (in the writes of SQLite) come from a timer at random moments. A driver is a
process with one thread, so it may fork a child for each point without starting Python again.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from efface.registry import engines

FILE_STEPS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "sqlite3.connect"}
Arm = Callable[[], None]


def die_at(number: int, *, files: bool = True) -> None:
    """Kill this process just before its `number`-th step; without `files` only SQL statements are steps."""
    seen = 0

    def step(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    if files:
        _watch_files(step)
    sqlite, postgres = engines.sqlite, engines.postgres

    def counted_sqlite(path: Path, **options: Any) -> sa.Engine:
        engine = sqlite(path, **options)
        event.listen(engine, "connect", lambda connection, _: connection.set_trace_callback(step))
        return engine

    def counted_postgres(url: str) -> sa.Engine:
        engine = postgres(url)
        for name in ("before_cursor_execute", "commit", "rollback"):
            event.listen(engine, name, step)
        return engine

    engines.sqlite, engines.postgres = counted_sqlite, counted_postgres


def _watch_files(step: Callable[..., None]) -> None:
    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if name == "open" else 0
        if name in FILE_STEPS or (isinstance(flags, int) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)):
            step()

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        step()
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(hook)


def die_after(seconds: float) -> None:
    """Kill this process at a moment of the clock: SIGALRM's default action ends it like SIGKILL."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def killed(act: Callable[[], object], arm: Arm) -> bool:
    """Run `act` in a child that `arm` made mortal; whether it died of it."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            act()
        except BaseException as error:  # noqa: BLE001 - a forked child must never return
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL, signal.SIGALRM), status
    return status != 0


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder in memory where there is such a disk: what a kill leaves does not depend on fsync."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**28
    with tempfile.TemporaryDirectory(dir=memory if usable else None, prefix="efface-crash-") as folder:
        yield Path(folder)


def every_step(trial: Callable[[str, Arm], bool], stride: int = 1, *, files: bool = True) -> int:
    """Try each step, or each `stride`-th, until the act ends by itself; how many tries ended in a kill."""
    deaths, step = 0, 1
    while trial(f"step-{step}", partial(die_at, step, files=files)):
        deaths, step = deaths + 1, step + stride
    return deaths


def some_moments(trial: Callable[[str, Arm], bool], whole: Callable[[], object], number: int) -> int:
    """Try random moments of the time that the `whole` act takes; how many ended in a kill."""
    started = time.perf_counter()
    killed(whole, lambda: None)
    duration = time.perf_counter() - started
    moments = [random.uniform(0.0005, duration) for _ in range(number)]
    return sum(trial(f"moment-{n}", partial(die_after, when)) for n, when in enumerate(moments))
