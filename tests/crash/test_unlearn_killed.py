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


@pytest.mark.parametrize("moment", MOMENTS)
def test_sigkill(tmp_path: Path, tiny_llama: Path, moment: str) -> None:
    phase, after, steps, later = MOMENTS[moment]
    command, registry = opened(tmp_path, tiny_llama, steps), tmp_path / "registry"
    before = contents(registry)
    code, lines = stopped(signal.SIGKILL, phase, after, *command, scratch=tmp_path)
    assert code == -signal.SIGKILL, lines
    assert not any(line.startswith(later) for line in lines)
    if moment in ("asking", "training"):
        assert contents(registry) == before
    if moment == "auditing":
        assert (state(registry)["state"], len(state(registry)["adapters"])) == ("TRAINED", 1)
    whole(registry)
    again = efface(*command)
    assert again.code == 0, again.err
    assert state(registry)["state"] == "AUDITED"
    assert state(registry)["adapters"] == [again.out.strip()]
    whole(registry)


def test_an_interrupt_stops_in_order_and_writes_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    command, registry = opened(tmp_path, tiny_llama, LONG), tmp_path / "registry"
    before = contents(registry)
    (tmp_path / "scratch").mkdir()
    code, lines = stopped(signal.SIGINT, "Training", 0.6, *command, scratch=tmp_path / "scratch")
    assert code == 130, lines
    assert not any("Traceback" in line for line in lines)
    assert contents(registry) == before
    assert list((tmp_path / "scratch").iterdir()) == []
