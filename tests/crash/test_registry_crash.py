"""SIGKILL at every step of every verb: the registry then opens, verifies, and the verb can be run again.

A step is a file opened for writing, a rename, link, unlink, mkdir, chmod or fsync of ours, or an SQL
statement. Kills inside a statement (in SQLite's own writes) come from a timer at random moments. This file is
its own driver: as a script it has one thread, so it may fork a child for each point without starting Python
again.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from registry_kit import CANARY, answered, ask, audited, lora, seal, stack
from sqlalchemy import event

from efface.registry import (
    Registry,
    activate_release,
    active_release,
    create_release,
    engines,
    list_adapters,
    list_requests,
    log,
    read_payload,
    verify,
)

STEPS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "sqlite3.connect"}
TIMED = 20


def opened(root: Path) -> Registry:
    return Registry.open(root / "registry", create=True)


def activate(root: Path) -> None:
    reg = opened(root)
    evidence = audited(reg, stack(list_adapters(reg)))
    activate_release(reg, "prod", 2, audit=evidence.digest, approved_by="ben")


VERBS: dict[str, Callable[[Path], Any]] = {
    "create": opened,
    "open_request": lambda root: ask(opened(root), subject_ref="Zoë"),
    "seal": lambda root: seal(opened(root), root / "lora", ["req-000002"]),
    "create_release": lambda root: create_release(
        opened(root), "prod", stack(list_adapters(opened(root))), rendered=None, reason="r", actor="ana"
    ),
    "activate": activate,
}
FIRST_REQUEST = "first_request"  # with the vault's keys still to be made
VERBS[FIRST_REQUEST] = VERBS["open_request"]


def prepare(root: Path, verb: str) -> None:
    """What the verb finds: at first nothing, else requests, adapters, an active release and a candidate."""
    root.mkdir()
    lora(root / "lora", 9)
    if verb == "create":
        return
    reg = opened(root)
    if verb == FIRST_REQUEST:
        return
    _, first = answered(reg, root, 1)
    ask(reg)
    for adapters in ([first], [first, answered(reg, root, 2)[1]]):
        made = create_release(reg, "prod", stack(adapters), rendered=None, reason="r", actor="ana")
        if made.version == 1:
            evidence = audited(reg, made.composition)
            activate_release(reg, "prod", 1, audit=evidence.digest, approved_by="ben")


def check(root: Path, verb: str) -> None:
    """Whole after the kill, and after doing it again."""
    for attempt in ("killed", "repeated"):
        if attempt == "repeated":
            VERBS[verb](root)
        if attempt == "repeated" or verb != "create":
            result = verify(opened(root), deep=True)
            assert result.ok, (attempt, result.problems)
    reg = opened(root)
    assert [event.seq for event in log(reg)] == list(range(1, len(log(reg)) + 1))
    assert {read_payload(reg, request.id) for request in list_requests(reg)} <= {CANARY.encode()}
    if verb == "activate":
        assert active_release(reg, "prod").version == 2
    leftovers = {path.name for path in (root / "registry").iterdir() if not path.name.startswith(".tmp-")}
    assert leftovers <= {"registry.db", "write.lock", "blobs", "vault", "cache"}


def die_at(number: int) -> None:
    """Kill this process just before its `number`-th step."""
    seen = 0

    def step(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if name == "open" else 0
        if name in STEPS or (isinstance(flags, int) and flags & os.O_CREAT):
            step()

    fsync, sqlite = os.fsync, engines.sqlite

    def counted_fsync(descriptor: int) -> None:
        step()
        fsync(descriptor)

    def counted_sqlite(path: Path, **options: Any) -> sa.Engine:
        engine = sqlite(path, **options)
        event.listen(engine, "connect", lambda connection, _: connection.set_trace_callback(step))
        return engine

    os.fsync, engines.sqlite = counted_fsync, counted_sqlite
    sys.addaudithook(hook)


def die_after(seconds: float) -> None:
    """Kill this process at a moment of the clock: SIGALRM's default action ends it like SIGKILL."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def killed(root: Path, verb: str, arm: Callable[[], None]) -> bool:
    """Run the verb in a child that `arm` made mortal; whether it died of it."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            VERBS[verb](root)
        except BaseException as error:  # noqa: BLE001 - a forked child must never return
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL, signal.SIGALRM), status
    return status != 0


def drive(verb: str) -> None:
    """Every step, then random moments; prints how many of each ended in a kill."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        prepare(base, verb)

        def trial(name: str, arm: Callable[[], None]) -> bool:
            root = Path(shutil.copytree(base, Path(folder) / name))
            died = killed(root, verb, arm)
            check(root, verb)
            shutil.rmtree(root)
            return died

        steps = 1
        while trial(f"step-{steps}", partial(die_at, steps)):
            steps += 1
        started = time.perf_counter()
        killed(Path(shutil.copytree(base, Path(folder) / "whole")), verb, lambda: None)
        duration = time.perf_counter() - started
        moments = [random.uniform(0.0005, duration) for _ in range(TIMED)]
        timed = sum(trial(f"moment-{n}", partial(die_after, when)) for n, when in enumerate(moments))
        sys.stdout.write(f"{steps - 1} {timed}\n")


@pytest.mark.parametrize("verb", VERBS)
def test_killed_anywhere_it_opens_verifies_and_goes_on(verb: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("EFFACE_VAULT_KEY", None)
    command = [sys.executable, "-W", "error", __file__, verb]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps, timed = map(int, done.stdout.split())
    assert steps >= 8
    assert timed >= 1


if __name__ == "__main__":
    drive(sys.argv[1])
