"""Many processes at once, on both databases: no gap in the ledger, one active release per channel, one registry however
many create it, nothing reachable collected, and a fork with an open registry.

Processes that must overlap wait for each other at a gate (`meet`), not for a clock.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry_backends import Backend
from registry_kit import answered, ask, audited, release, stack

from efface.registry import (
    Conflict,
    Registry,
    activate_release,
    active_release,
    adapter_folder,
    create_release,
    history,
    list_adapters,
    list_requests,
    log,
    read_payload,
    step_request,
    verify,
)

PROCESSES = 4
EACH = 6
BOTH = pytest.mark.parametrize("backend", ["folder", "postgres"], indirect=True)
ALL = pytest.mark.parametrize("backend", ["folder", "postgres", "postgres+s3"], indirect=True)
MEET = """
import os, pathlib, time
def meet(gate, number):
    gate = pathlib.Path(gate)
    (gate / f"{os.getpid()}").touch()
    while len(list(gate.iterdir())) < number:
        time.sleep(0.002)
"""


def together(*scripts: str) -> list[str]:
    """Run the scripts at the same time; each prints its result."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", f"from registry_kit import *\n{MEET}{script}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for script in scripts
    ]  # fmt: skip
    try:
        results = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [0] * len(running), results
    return [output.strip() for output, _ in results]


@ALL
def test_processes_create_one_registry_and_append_without_gaps(backend: Backend, tmp_path: Path) -> None:
    (gate := tmp_path / "gate").mkdir()
    script = f"""
meet({str(gate)!r}, {PROCESSES})
with Registry.open({backend.url!r}, create=True) as reg:
    print(*[ask(reg, str((%d, n)).encode(), subject_ref="one person") for n in range({EACH})])
"""
    ids = " ".join(together(*(script % n for n in range(PROCESSES)))).split()
    reg = backend.open(create=False)
    total = PROCESSES * EACH
    # Two events each: that it was received, and who asked.
    assert [event.seq for event in log(reg)] == list(range(1, 2 * total + 1))
    assert sorted(ids) == [request.id for request in list_requests(reg)]
    assert len(set(ids)) == total
    assert len({read_payload(reg, identifier) for identifier in ids}) == total
    assert len({request.subject_ref for request in list_requests(reg)}) == 1
    assert verify(reg, deep=True).ok


@ALL
def test_processes_sealing_one_adapter_seal_it_once(backend: Backend, tmp_path: Path) -> None:
    (gate := tmp_path / "gate").mkdir()
    script = f"""
import tempfile
with tempfile.TemporaryDirectory() as folder, Registry.open({backend.url!r}) as reg:
    meet({str(gate)!r}, {PROCESSES})
    print(seal(reg, lora(pathlib.Path(folder) / "lora", 5), ["req-000001"]).digest)
"""
    reg = backend.open()
    answered(reg, tmp_path, 1)
    digests = together(*[script] * PROCESSES)
    assert len(set(digests)) == 1
    sealed = [event.subject_id for event in log(reg) if event.kind == "adapter.sealed"]
    assert sealed.count(digests[0]) == 1
    assert verify(reg, deep=True).ok


@BOTH
def test_of_processes_activating_candidates_each_wins_or_is_refused(backend: Backend, tmp_path: Path) -> None:
    (gate := tmp_path / "gate").mkdir()
    reg = backend.open()
    composition = stack([answered(reg, tmp_path, 1)[1]])
    for _ in range(PROCESSES):
        create_release(reg, "prod", composition, rendered=None, reason="r", actor="ana")
    evidence = audited(reg, composition)
    script = f"""
from efface.registry import Conflict
with Registry.open({backend.url!r}) as reg:
    meet({str(gate)!r}, {PROCESSES})
    try:
        print(activate_release(reg, "prod", %d, audit={evidence.digest!r}, approved_by="ben").state)
    except Conflict as error:
        print("REFUSED")
"""
    outcomes = together(*(script % version for version in range(1, PROCESSES + 1)))
    states = [found.state for found in history(reg, "prod")]
    expected = {"ACTIVE": "ACTIVE", "SUPERSEDED": "ACTIVE", "CANDIDATE": "REFUSED"}
    assert [expected[state] for state in states] == outcomes
    assert active_release(reg, "prod").version == PROCESSES
    assert verify(reg).ok


@BOTH
def test_processes_releasing_at_once_make_contiguous_versions_and_one_active_one(
    backend: Backend, tmp_path: Path
) -> None:
    (gate := tmp_path / "gate").mkdir()
    reg = backend.open()
    adapters = [answered(reg, tmp_path, seed)[1] for seed in (1, 2)]
    script = f"""
from efface.registry import Conflict, list_adapters
with Registry.open({backend.url!r}) as reg:
    composition = stack(list_adapters(reg)[: 1 + %d %% 2])
    evidence = audited(reg, composition)
    meet({str(gate)!r}, {PROCESSES})
    for channel in ["prod", "canary"] * 3:
        made = create_release(reg, channel, composition, rendered=None, reason="r", actor="ana")
        try:
            activate_release(reg, channel, made.version, audit=evidence.digest, approved_by="ben")
        except Conflict:
            pass
"""
    together(*(script % n for n in range(PROCESSES)))
    assert len(adapters) == 2
    for channel in ("prod", "canary"):
        releases = history(reg, channel)
        assert [found.version for found in releases] == list(range(1, PROCESSES * 3 + 1))
        states = [found.state for found in releases]
        assert states.count("ACTIVE") == 1
        assert states[-1] == "ACTIVE"
        assert set(states) <= {"ACTIVE", "SUPERSEDED", "CANDIDATE"}
    assert verify(reg, deep=True).ok


@BOTH
def test_sealing_while_another_collects_loses_nothing_that_is_sealed(
    backend: Backend, tmp_path: Path
) -> None:
    (gate := tmp_path / "gate").mkdir()
    reg = backend.open()
    ask(reg)
    seals = f"""
import tempfile
with tempfile.TemporaryDirectory() as folder, Registry.open({backend.url!r}) as reg:
    meet({str(gate)!r}, 2)
    try:
        for n in range(12):
            seal(reg, lora(pathlib.Path(folder) / str(n), n), ["req-000001"])
    finally:
        pathlib.Path({str(gate)!r}, "done").touch()
"""
    collects = f"""
from dataclasses import replace
from datetime import UTC, timedelta
from efface.registry import plan_collection
with Registry.open({backend.url!r}) as reg:
    eager = replace(reg, clock=lambda: datetime.now(UTC) + timedelta(days=1))
    meet({str(gate)!r}, 2)
    rounds = taken = 0
    while not pathlib.Path({str(gate)!r}, "done").exists():
        plan = plan_collection(eager, min_age=timedelta(0))
        if any(item.kind == "leftover" for item in plan.items):
            continue  # the other's unfinished file: nothing but its age says that it is not a dead writer's
        rounds += 1
        taken += len(collect(reg, plan, actor="gc").deleted)
    print(rounds, taken)
"""
    _, counted = together(seals, f"from efface.registry import collect\n{collects}")
    assert int(counted.split()[0]) >= 3
    assert len(list_adapters(reg)) == 12
    assert verify(reg, deep=True).problems == ()


@BOTH
def test_shredding_while_others_read_gives_the_rows_or_says_they_are_gone(
    backend: Backend, tmp_path: Path
) -> None:
    (gate := tmp_path / "gate").mkdir()
    reg = backend.open()
    ids = [ask(reg) for _ in range(6)]
    for identifier in ids:
        step_request(reg, identifier, "WITHDRAWN", actor="ana", reason="r")
    reads = f"""
from efface.registry import BrokenRegistry, NotFound, read_payload, verify
with Registry.open({backend.url!r}) as reg:
    meet({str(gate)!r}, 3)
    left, seen = set({ids!r}), 0
    while left:
        for identifier in sorted(left):
            try:
                assert read_payload(reg, identifier) == CANARY.encode()
                seen += 1
            except (NotFound, BrokenRegistry):
                left.discard(identifier)
    print(seen)
"""
    shreds = f"""
from efface.registry import shred_request
with Registry.open({backend.url!r}) as reg:
    meet({str(gate)!r}, 3)
    for identifier in {ids!r}:
        shred_request(reg, identifier, actor="ana")
"""
    together(shreds, reads, reads)
    assert {request.shredded_at is not None for request in list_requests(reg)} == {True}
    assert verify(reg, deep=True).problems == ()


@BOTH
def test_a_fork_with_an_open_registry_works_in_parent_and_child(backend: Backend) -> None:
    script = f"""
import os, sys
from efface.registry import log
with Registry.open({backend.url!r}, create=True) as reg:
    ask(reg)
    for generation in range(3):
        child = os.fork()
        if child == 0:
            ask(reg)
            os._exit(0 if len(log(reg)) >= 2 else 1)
        ask(reg)
        assert os.waitpid(child, 0)[1] == 0
    print(len(log(reg)))
"""
    assert together(script) == ["7"]
    reg = backend.open()
    assert [event.seq for event in log(reg)] == list(range(1, 8))
    assert verify(reg, deep=True).ok


@BOTH
def test_threads_share_one_registry(backend: Backend) -> None:
    reg = backend.open()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: ask(reg, str(n).encode()), range(24)))
    assert sorted(ids) == [request.id for request in list_requests(reg)]
    assert [event.seq for event in log(reg)] == list(range(1, 25))
    assert verify(reg, deep=True).ok


def test_processes_asking_for_a_changed_folder_all_get_whole_ones(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    reg = Registry.open(root, create=True)
    _, adapter = answered(reg, tmp_path, 1)
    (adapter_folder(reg, adapter.digest) / "adapter_config.json").write_text("{}")
    script = f"""
from efface.registry import adapter_folder
folder = adapter_folder(Registry.open({str(root)!r}), {adapter.digest!r})
print(sorted(path.name for path in folder.iterdir()))
"""
    outputs = together(*[script] * PROCESSES)
    assert set(outputs) == {"['adapter_config.json', 'adapter_model.safetensors']"}
    folder = adapter_folder(reg, adapter.digest)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@BOTH
def test_a_lock_held_too_long_is_a_conflict(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reg = backend.open()
    made = release(reg, stack([answered(reg, tmp_path, 1)[1]]))
    create_release(reg, "prod", made.composition, rendered=None, reason="r", actor="ana")
    monkeypatch.setattr("efface.registry.engines.BUSY_SECONDS", 0.05)
    before = len(log(reg))
    with reg.write("a slow process"), pytest.raises(Conflict, match="Try again"):
        activate_release(reg, "prod", 2, audit=made.audit or "", approved_by="eve")
    assert len(log(reg)) == before
    assert verify(reg).ok
