"""Many processes at once: no gap in the ledger, one active release, one registry however many create it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from registry_kit import answered, audited, release, stack

from efface.registry import (
    Conflict,
    Registry,
    activate_release,
    active_release,
    adapter_folder,
    create_release,
    history,
    list_requests,
    log,
    read_payload,
    verify,
)

PROCESSES = 4
EACH = 6


def together(*scripts: str) -> list[str]:
    """Run the scripts at the same time; each prints its result."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("EFFACE_VAULT_KEY", None)
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", f"from registry_kit import *\n{script}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for script in scripts
    ]  # fmt: skip
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), results
    return [output.strip() for output, _ in results]


def test_processes_create_one_registry_and_append_without_gaps(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    script = f"""
with Registry.open({str(root)!r}, create=True) as reg:
    print(*[ask(reg, str((%d, n)).encode(), subject_ref="one person") for n in range({EACH})])
"""
    ids = " ".join(together(*(script % n for n in range(PROCESSES)))).split()
    reg = Registry.open(root)
    total = PROCESSES * EACH
    assert [event.seq for event in log(reg)] == list(range(1, total + 1))
    assert sorted(ids) == [request.id for request in list_requests(reg)]
    assert len(set(ids)) == total
    assert len({read_payload(reg, identifier) for identifier in ids}) == total
    assert len({request.subject_ref for request in list_requests(reg)}) == 1
    assert verify(reg, deep=True).ok


def test_processes_sealing_one_adapter_seal_it_once(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    script = f"""
import tempfile, pathlib
with tempfile.TemporaryDirectory() as folder, Registry.open({str(root)!r}) as reg:
    print(seal(reg, lora(pathlib.Path(folder) / "lora", 5), ["req-000001"]).digest)
"""
    with Registry.open(root, create=True) as reg:
        answered(reg, tmp_path, 1)
        digests = together(*[script] * PROCESSES)
        assert len(set(digests)) == 1
        sealed = [event.subject_id for event in log(reg) if event.kind == "adapter.sealed"]
        assert sealed.count(digests[0]) == 1
        assert verify(reg, deep=True).ok


def test_of_processes_activating_candidates_each_wins_or_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with Registry.open(root, create=True) as reg:
        composition = stack([answered(reg, tmp_path, 1)[1]])
        for _ in range(PROCESSES):
            create_release(reg, "prod", composition, rendered=None, reason="r", actor="ana")
        evidence = audited(reg, composition)
    script = f"""
from efface.registry import Conflict
with Registry.open({str(root)!r}) as reg:
    try:
        print(activate_release(reg, "prod", %d, audit={evidence.digest!r}, approved_by="ben").state)
    except Conflict as error:
        print("REFUSED")
"""
    outcomes = together(*(script % version for version in range(1, PROCESSES + 1)))
    reg = Registry.open(root)
    states = [found.state for found in history(reg, "prod")]
    expected = {"ACTIVE": "ACTIVE", "SUPERSEDED": "ACTIVE", "CANDIDATE": "REFUSED"}
    assert [expected[state] for state in states] == outcomes
    assert active_release(reg, "prod").version == PROCESSES
    assert verify(reg).ok


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


def test_a_lock_held_too_long_is_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reg = Registry.open(tmp_path / "registry", create=True)
    made = release(reg, stack([answered(reg, tmp_path, 1)[1]]))
    monkeypatch.setattr("efface.registry.engines.BUSY_SECONDS", 0.05)
    with reg.write("a slow process"), pytest.raises(Conflict, match="Try again"):
        activate_release(reg, "prod", 1, audit=made.audit or "", approved_by="eve")
    assert verify(reg).ok
