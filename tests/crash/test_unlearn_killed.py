"""`efface unlearn` killed while it asks the base, trains, seals or audits: the registry verifies, and it runs again."""

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, NEIGHBOURS, RETAIN, SECOND, efface, jsonl, recipe_file, stopped
from registry_kit import contents

REQUEST = "req-000001"
LONG = 400  # steps: more than two seconds
# Phase, seconds into it, steps, and which phase must not have begun.
MOMENTS = {
    "asking": ("Asking the base", 0.0, 3, "Sealing"),
    "training": ("Training", 0.0, LONG, "Sealing"),
    "sealing": ("Sealing", 0.0, 3, "Done"),
    "auditing": (f"Measuring {REQUEST} alone", 0.0, 3, "Done"),
}


def opened(root: Path, model: Path, steps: int) -> list[object]:
    """An open request, and the command that trains its adapter."""
    files = [jsonl(root / name, rows) for name, rows in (("f", FORGET), ("r", RETAIN), ("n", NEIGHBOURS))]
    options = [
        part for pair in zip(("--forget", "--retain", "--neighbours"), files, strict=True) for part in pair
    ]
    ran = efface("request", "open", *options, "--basis", "test", "--registry", root / "registry")
    assert ran.code == 0, ran.err
    # As the default recipe starts: a run that goes on must find the same A.
    start: dict[str, Any] = {"initialisation": "contrast", "stacking": {"freeze_a": True}}
    recipe = recipe_file(root / "loose.yaml", steps=steps, **start)
    return ["unlearn", REQUEST, "--model", model, "--recipe", recipe, "--registry", root / "registry"]


def whole(registry: Path) -> None:
    verified = efface("verify", "--deep", "--registry", registry, "--format", "json")
    assert (verified.code, verified.json["problems"]) == (0, [])


def state(registry: Path) -> dict[str, Any]:
    return efface("request", "show", REQUEST, "--registry", registry, "--format", "json").json


def a_checkpoint_exists(registry: Path) -> bool:
    return any((registry / "work").glob("*/round-0/checkpoint-*/efface.json"))


def interrupted(tmp_path: Path, model: Path, stop: int, moment: str) -> tuple[list[object], Path]:
    """The command and its registry, of a run that the signal ended at its moment.

    On a machine under load the signal may come when that is over: it says nothing then and is tried again.
    """
    phase, after, steps, later = MOMENTS[moment]
    for attempt in map(str, range(5)):
        root, scratch = tmp_path / attempt, tmp_path / f"scratch-{attempt}"
        root.mkdir()
        scratch.mkdir()
        command = opened(root, model, steps)
        before = contents(root / "registry")
        if moment == "training":
            after = partial(a_checkpoint_exists, root / "registry")
        code, lines = stopped(stop, phase, after, *command, scratch=scratch)
        if any(line.startswith(later) for line in lines):
            continue
        assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop], lines
        assert not any("Traceback" in line for line in lines)
        if moment in ("asking", "training"):
            assert without_work(contents(root / "registry")) == before
        if stop == signal.SIGINT:
            assert list(scratch.iterdir()) == []
            if moment == "training":
                assert any("go on with --resume" in line for line in lines)
        return command, root / "registry"
    pytest.fail("the signal came too late in five runs")


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill(tmp_path: Path, tiny_llama: Path, moment: str) -> None:
    command, registry = interrupted(tmp_path, tiny_llama, signal.SIGKILL, moment)
    if moment == "auditing":
        assert state(registry)["state"] in ("TRAINED", "AUDITED")
        assert len(state(registry)["adapters"]) == 1
    whole(registry)
    again = efface(*command)
    assert again.code == 0, again.err
    assert state(registry)["state"] == "AUDITED"
    assert state(registry)["adapters"] == [again.out.strip()]
    whole(registry)


def without_work(files: dict[str, Any]) -> dict[str, Any]:
    """What the registry holds besides checkpoints."""
    return {name: file for name, file in files.items() if name.split("/")[0] != "work"}


def uninterrupted(tmp_path: Path, model: Path) -> str:
    """The digest of the adapter of a run that nothing ended."""
    (tmp_path / "whole").mkdir()
    ran = efface(*opened(tmp_path / "whole", model, LONG))
    assert ran.code == 0, ran.err
    assert not (tmp_path / "whole" / "registry" / "work" / REQUEST).exists()
    return ran.out.strip()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_to_the_same_adapter(
    tmp_path: Path, tiny_llama: Path, stop: signal.Signals
) -> None:
    command, registry = interrupted(tmp_path, tiny_llama, stop, "training")
    work = registry / "work" / REQUEST / "round-0"
    found = sorted(int(path.name.split("-")[1]) for path in work.glob("checkpoint-*"))
    assert 0 < found[-1] < LONG
    if stop == signal.SIGKILL:
        whole(registry)
    resumed = efface(*command, "--resume", "--format", "json")
    assert resumed.code == 0, resumed.err
    # The manifest names recipe, rows, losses and weights: one digest says that all of them are the same.
    assert resumed.json["adapter"] == uninterrupted(tmp_path, tiny_llama)
    assert not work.exists()
    whole(registry)


STACKING = (
    "stacking={company: 0.6, orthogonal: 0.1}",  # an A that learns
    "initialisation=null_space",
    "objective=npo",
)


@pytest.fixture
def beside_one(tmp_path: Path, tiny_llama: Path) -> tuple[list[object], list[str], Path]:
    """A registry with a trained request and an open one: the command that trains the latter beside the former."""
    (tmp_path / "first").mkdir()
    command = opened(tmp_path / "first", tiny_llama, 3)
    assert efface(*command).code == 0
    registry = tmp_path / "first" / "registry"
    rows = ("--forget", jsonl(tmp_path / "second", SECOND), "--retain", tmp_path / "first" / "r")
    assert efface("request", "open", *rows, "--basis", "test", "--registry", registry).code == 0
    sets = [part for one in (*STACKING, "steps=60") for part in ("--set", one)]
    return ["unlearn", "req-000002", *command[2:-1]], sets, registry


def killed_beside(command: list[object], sets: list[str], registry: Path, tmp_path: Path) -> Path:
    """A copy of the registry in which the command was killed after its first checkpoint."""
    for attempt in map(str, range(5)):
        copy = Path(shutil.copytree(registry, tmp_path / f"killed-{attempt}", symlinks=True))
        (scratch := tmp_path / f"scratch-{attempt}").mkdir()
        there = partial(a_checkpoint_exists, copy)
        code, lines = stopped(signal.SIGKILL, "Training", there, *command, copy, *sets, scratch=scratch)
        if any(line.startswith("Sealing") for line in lines):
            continue
        assert code == -signal.SIGKILL, lines
        assert a_checkpoint_exists(copy)
        return copy
    pytest.fail("the signal came too late in five runs")


def test_a_killed_run_beside_others_goes_on_to_the_same_adapter(
    tmp_path: Path, beside_one: tuple[list[object], list[str], Path]
) -> None:
    command, sets, registry = beside_one
    killed = killed_beside(command, sets, registry, tmp_path)
    resumed = efface(*command, killed, *sets, "--resume", "--format", "json")
    assert resumed.code == 0, resumed.err
    uncut = efface(*command, registry, *sets, "--format", "json")
    assert uncut.code == 0, uncut.err
    assert resumed.json["adapter"] == uncut.json["adapter"]
    whole(killed)


def test_an_interrupt_says_how_to_go_on_and_registers_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    _, registry = interrupted(tmp_path, tiny_llama, signal.SIGINT, "training")
    assert state(registry)["state"] == "RECEIVED"
    whole(registry)


def test_checkpoints_of_another_recipe_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    command, registry = interrupted(tmp_path, tiny_llama, signal.SIGINT, "training")
    before = contents(registry)
    ran = efface(*command, "--resume", "--set", "learning_rate=1e-3")
    assert ran.code == 1
    assert "start again without --resume" in ran.err
    assert contents(registry) == before
    assert efface(*command, "--set", "learning_rate=1e-3", "--set", "steps=3").code == 0
