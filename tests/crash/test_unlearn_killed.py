"""`efface unlearn` killed while it asks the base, trains, seals or audits: the registry verifies, and it runs again."""

import signal
from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, NEIGHBOURS, RETAIN, efface, jsonl, recipe_file, stopped
from registry_kit import contents

REQUEST = "req-000001"
LONG = 400  # steps: more than two seconds
# Phase, seconds into it, steps, and which phase must not have begun.
MOMENTS = {
    "asking": ("Asking the base", 0.0, 3, "Sealing"),
    "training": ("Training", 0.6, LONG, "Sealing"),
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
    recipe = recipe_file(root / "loose.yaml", steps=steps)
    return ["unlearn", REQUEST, "--model", model, "--recipe", recipe, "--registry", root / "registry"]


def whole(registry: Path) -> None:
    verified = efface("verify", "--deep", "--registry", registry, "--format", "json")
    assert (verified.code, verified.json["problems"]) == (0, [])


def state(registry: Path) -> dict[str, Any]:
    return efface("request", "show", REQUEST, "--registry", registry, "--format", "json").json


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
        code, lines = stopped(stop, phase, after, *command, scratch=scratch)
        if any(line.startswith(later) for line in lines):
            continue
        assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop], lines
        assert not any("Traceback" in line for line in lines)
        if moment in ("asking", "training"):
            assert contents(root / "registry") == before
        if stop == signal.SIGINT:
            assert list(scratch.iterdir()) == []
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


def test_an_interrupt_stops_in_order_and_writes_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    _, registry = interrupted(tmp_path, tiny_llama, signal.SIGINT, "training")
    assert state(registry)["state"] == "RECEIVED"
    whole(registry)
