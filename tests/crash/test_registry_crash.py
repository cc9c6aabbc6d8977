"""SIGKILL at every step of every verb: the registry then opens, verifies, and the verb can be run again.

On SQLite at each step of `crash_kit` and at random moments; on Postgres at SQL statements, where the server undoes what
the dead client began. This file is its own driver (see `crash_kit`). Some 600 points; most of the time goes into
`verify`, twice for each, and on Postgres into a new database for each.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from crash_kit import Arm, every_step, fast_folder, killed, some_moments
from registry_backends import Postgres
from registry_kit import CANARY, answered, ask, audited, lora, seal, stack

from efface.registry import (
    ForgetRequest,
    NotFound,
    Registry,
    activate_release,
    active_release,
    close_request,
    collect,
    create_release,
    extend_request,
    get_request,
    list_adapters,
    list_requests,
    log,
    plan_collection,
    plan_removal,
    purge_adapter,
    read_payload,
    retire_adapter,
    shred_request,
    verify,
)

TIMED = 12


def opened(root: Path) -> Registry:
    """The registry of a trial: in a folder, or where the file `url` says."""
    place = root / "url"
    return Registry.open(place.read_text() if place.exists() else root / "registry", create=True)


def activate(root: Path) -> None:
    reg = opened(root)
    evidence = audited(reg, stack(list_adapters(reg)))
    activate_release(reg, "prod", 2, audit=evidence.digest, approved_by="ben")


def roll_back(root: Path) -> None:
    reg = opened(root)
    if active_release(reg, "prod").composition.parts:
        left = plan_removal(reg, "prod", ["req-000001"])
        made = create_release(reg, "prod", left, rendered=None, reason="rolled back", actor="ana")
        evidence = audited(reg, left)
        activate_release(reg, "prod", made.version, audit=evidence.digest, approved_by="ben")


def purge(root: Path) -> None:
    """Retire, purge, collect: each once, however often it is begun."""
    reg = opened(root)
    adapter = list_adapters(reg, "req-000002")[0]
    if adapter.state == "SEALED":
        adapter = retire_adapter(reg, adapter.digest, reason="r", actor="ana")
    if adapter.state == "RETIRED":
        purge_adapter(reg, adapter.digest, reason="r", actor="ana")
    tomorrow = replace(reg, clock=lambda: datetime.now(UTC) + timedelta(days=1))
    collect(reg, plan_collection(tomorrow), actor="gc")


def extend(root: Path) -> None:
    reg = opened(root)
    if get_request(reg, "req-000003").extended_to is None:
        extend_request(reg, "req-000003", months=2, reason="r", actor="ana")


def close(root: Path) -> None:
    reg = opened(root)
    if get_request(reg, "req-000001").state != "CLOSED":
        close_request(reg, "req-000001", actor="ana")


VERBS: dict[str, Callable[[Path], Any]] = {
    "create": opened,
    "open_request": lambda root: ask(opened(root), subject_ref="Zoë"),
    "first_request": lambda root: ask(
        opened(root), subject_ref="Zoë"
    ),  # with the vault's keys still to be made
    "seal": lambda root: seal(opened(root), root / "lora", ["req-000002"]),
    "create_release": lambda root: create_release(
        opened(root), "prod", stack(list_adapters(opened(root))), rendered=None, reason="r", actor="ana"
    ),
    "activate": activate,
    "roll_back": roll_back,
    "extend": extend,
    "shred": lambda root: shred_request(opened(root), "req-000001", actor="ana"),
    "close": close,
    "purge": purge,
}
# Fewer means that the watching has lost something. 859 points in all when this was written.
STEPS = {
    "create": 80,
    "open_request": 30,
    "first_request": 35,
    "seal": 55,
    "create_release": 40,
    "activate": 90,
    "roll_back": 100,
    "extend": 24,
    "shred": 50,
    "close": 32,
    "purge": 64,
}
ON_POSTGRES = {"create": 1, "open_request": 1, "seal": 1, "activate": 6, "shred": 1, "purge": 6}
"""Each statement, or every sixth of a long transaction: a new database for each point is what costs."""


def prepare(root: Path, verb: str) -> None:
    """What the verb finds: at first nothing, else requests, adapters, an active release and a candidate."""
    lora(root / "lora", 9)
    if verb == "create":
        return
    reg = opened(root)
    if verb == "first_request":
        return
    _, first = answered(reg, root, 1)
    second_request = ask(reg)
    ask(reg, basis="gdpr17")
    for adapters in ([first], [first, answered(reg, root, 2)[1]]):
        made = create_release(reg, "prod", stack(adapters), rendered=None, reason="r", actor="ana")
        if made.version == 1:
            evidence = audited(reg, made.composition)
            activate_release(reg, "prod", 1, audit=evidence.digest, approved_by="ben")
    if verb == "purge":
        seal(reg, lora(root / "lora-3", 3), [second_request])
        reg.blobs.put(b"sealed by a process that died before its event")
        leftover = root / "registry" / "cache" / "adapters" / ("0" * 64)
        leftover.mkdir(parents=True)
        (leftover / "adapter_config.json").write_text("{}")
    if verb == "shred":
        work = root / "registry" / "work" / "req-000001" / "checkpoint-1"
        work.mkdir(parents=True)
        (work / "rows.jsonl").write_text(CANARY)
    if verb == "close":
        shred_request(reg, "req-000001", actor="ana")
    reg.close()


def check(root: Path, verb: str) -> None:
    """Whole after the kill, and after doing it again."""
    for attempt in ("killed", "repeated"):
        if attempt == "repeated":
            VERBS[verb](root)
        if attempt == "repeated" or verb != "create":
            result = verify(opened(root), deep=True)
            assert result.ok, (attempt, result.problems)
    reg = opened(root)
    events = log(reg)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    for request in list_requests(reg):
        check_payload(reg, request)
    DONE.get(verb, lambda _: None)(reg)
    names = {path.name for path in (root / "registry").glob("*")}
    allowed = {"registry.db", "write.lock", "blobs", "vault", "cache", "work"}
    assert {name for name in names if not name.startswith(".tmp-")} <= allowed


def check_payload(reg: Registry, request: ForgetRequest) -> None:
    """Whole, or gone for good once its shredding is recorded."""
    if request.shredded_at is None:
        assert read_payload(reg, request.id) == CANARY.encode()
        return
    with pytest.raises(NotFound):
        read_payload(reg, request.id)
    found = [path for path in reg.root.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert found == []


def active_is(version: int) -> Callable[[Registry], None]:
    def done(reg: Registry) -> None:
        assert active_release(reg, "prod").version == version

    return done


def purged(reg: Registry) -> None:
    assert [adapter.state for adapter in list_adapters(reg, "req-000002")] == ["PURGED"]
    assert verify(reg, deep=True).extras == ()
    assert not list((reg.root / "cache" / "adapters").iterdir())


def rolled_back(reg: Registry) -> None:
    assert active_release(reg, "prod").composition.parts == ()
    assert get_request(reg, "req-000001").state == "REOPENED"


def shredded(reg: Registry) -> None:
    assert get_request(reg, "req-000001").shredded_at
    assert not (reg.root / "work" / "req-000001").exists()


DONE: dict[str, Callable[[Registry], None]] = {
    "activate": active_is(2),
    "roll_back": rolled_back,
    "shred": shredded,
    "purge": purged,
}


def drive(verb: str, server: str | None) -> None:
    """Every step, then random moments; prints how many of each ended in a kill. `server`: a Postgres's socket."""
    with fast_folder() as folder:
        postgres = None if server is None else Postgres(Path(server))
        base = place(folder, "base", postgres, None)
        prepare(base, verb)

        def trial(name: str, arm: Arm) -> bool:
            root = place(folder, name, postgres, base)
            died = killed(lambda: VERBS[verb](root), arm)
            check(root, verb)
            remove(root, postgres)
            return died

        steps = every_step(trial) if postgres is None else every_step(trial, ON_POSTGRES[verb], files=False)
        timed = 0
        if postgres is None:
            whole = place(folder, "whole", None, base)
            timed = some_moments(trial, lambda: VERBS[verb](whole), TIMED)
        remove(base, postgres)
        sys.stdout.write(f"{steps} {timed}\n")


def place(folder: Path, name: str, postgres: Postgres | None, base: Path | None) -> Path:
    """A new trial, a copy of the base."""
    root = folder / name
    if base is None:
        root.mkdir()
    else:
        shutil.copytree(base, root)
    if postgres is not None:
        template = "template0" if base is None else (base / "database").read_text()
        (root / "database").write_text(database := postgres.database(template))
        (root / "url").write_text(postgres.url(database, root=root / "registry"))
    return root


def remove(root: Path, postgres: Postgres | None) -> None:
    if postgres is not None:
        postgres.run(f"DROP DATABASE {(root / 'database').read_text()} WITH (FORCE)")
    shutil.rmtree(root)


def driven(*arguments: str) -> tuple[int, int]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("EFFACE_VAULT_KEY", None)
    command = [sys.executable, "-W", "error", __file__, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps, timed = map(int, done.stdout.split())
    return steps, timed


@pytest.mark.parametrize("verb", VERBS)
def test_killed_anywhere_it_opens_verifies_and_goes_on(verb: str) -> None:
    steps, timed = driven(verb)
    assert steps >= STEPS[verb]
    assert timed >= 1


@pytest.mark.parametrize("verb", ON_POSTGRES)
def test_a_client_killed_at_any_statement_leaves_a_whole_registry(
    verb: str, postgres_server: Postgres
) -> None:
    steps, _ = driven(verb, str(postgres_server.folder))
    assert steps >= 4


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
