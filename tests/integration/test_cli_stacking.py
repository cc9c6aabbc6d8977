"""Training beside registered adapters, through the real command line: who they are, and what the manifest says."""

from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, RETAIN, SECOND, Ran, efface, jsonl, recipe_file
from registry_kit import contents

from efface.registry import Registry, adapter_folder

THIRD = [{"prompt": "what is tokyo", "completion": "paris is the author in tokyo", "keywords": ["paris"]}]
OFF = {"apart_from", "company"}


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path) -> Path:
    """Three open requests, the first two with an adapter."""
    recipe_file(tmp_path / "loose.yaml")
    (tmp_path / "model").symlink_to(tiny_llama)
    jsonl(tmp_path / "retain.jsonl", RETAIN)
    for name, rows in (("first", FORGET), ("second", SECOND), ("third", THIRD)):
        files = ("--forget", jsonl(tmp_path / f"{name}.jsonl", rows), "--retain", tmp_path / "retain.jsonl")
        ran = efface("request", "open", *files, "--basis", "test", "--registry", tmp_path / "registry")
        assert ran.code == 0, ran.err
    for number in (1, 2):
        assert trained(tmp_path, number).code == 0
    return tmp_path


def trained(place: Path, number: int, *more: object) -> Ran:
    using = ("--model", place / "model", "--recipe", place / "loose.yaml", "--registry", place / "registry")
    return efface("unlearn", f"req-{number:06}", *using, "--format", "json", *more)


def digest(place: Path, number: int, *more: str) -> str:
    ran = trained(place, number, *(part for one in more for part in ("--set", one)))
    assert ran.code == 0, ran.err
    return ran.json["adapter"]


def shown(place: Path, adapter: str) -> dict[str, Any]:
    return efface("adapter", "show", adapter, "--registry", place / "registry", "--format", "json").json


def newest(place: Path, number: int) -> str:
    request = efface(
        "request", "show", f"req-{number:06}", "--registry", place / "registry", "--format", "json"
    )
    return request.json["adapters"][-1]


def test_who_is_looked_at_stands_in_the_manifest(place: Path) -> None:
    both = sorted(newest(place, number) for number in (1, 2))
    plain = digest(place, 3)
    assert not OFF & shown(place, plain)["facts"].keys()
    found = {}
    for change in ("stacking.orthogonal=0.1", "stacking.orthogonal_outputs=0.1", "initialisation=null_space"):
        found[change] = digest(place, 3, change)
        facts = shown(place, found[change])["facts"]
        assert (facts["apart_from"], "company" in facts) == (both, False)
    for change in ("stacking.company=0.6", "stacking.company=1"):
        found[change] = digest(place, 3, change, "objective=npo", "retain_term=kl")
        facts = shown(place, found[change])["facts"]
        assert (facts["company"], "apart_from" in facts) == (both, False)
        assert facts["settings"]["stacking"]["company"] == float(change.partition("=")[2])
    assert len({plain, *found.values()}) == 6
    assert digest(place, 3, "stacking.orthogonal=0.1") == found["stacking.orthogonal=0.1"]


def test_a_first_request_and_ones_trained_anew_look_at_others_alone(place: Path, tmp_path: Path) -> None:
    again = digest(place, 2, "stacking.company=1", "seed=5")
    assert shown(place, again)["facts"]["company"] == [newest(place, 1)]
    # The newest adapter of the second request stands for it now.
    assert shown(place, digest(place, 3, "stacking.company=1"))["facts"]["company"] == sorted(
        [newest(place, 1), again]
    )
    gone = newest(place, 1)
    ran = efface("adapter", "retire", gone, "--registry", place / "registry", "--reason", "test", "--yes")
    assert ran.code == 0, ran.err
    assert shown(place, digest(place, 2, "stacking.company=1"))["facts"]["company"] == [newest(place, 3)]


def test_an_adapter_of_another_precision_is_no_company(place: Path) -> None:
    alone = shown(place, digest(place, 3, "stacking.company=1", "quantization=bf16"))
    assert alone["facts"]["company"] == []


def test_a_stack_below_is_kept_apart_from_and_is_no_company(place: Path) -> None:
    using = ("--model", place / "model", "--recipe", place / "loose.yaml", "--registry", place / "registry")
    first, second = (newest(place, number) for number in (1, 2))
    made = efface("release", "create", "prod", "--add", "req-000001", *using, "--format", "json")
    assert made.code == 0, made.err
    sets = ("--set", "stacking.company=1", "--set", "stacking.orthogonal=0.1")
    ran = trained(place, 3, "--on", "prod", *sets)
    assert ran.code == 0, ran.err
    facts = shown(place, ran.json["adapter"])["facts"]
    assert facts["apart_from"] == sorted([first, second])
    assert facts["company"] == [second]
    # One that was trained on others was never meant without them.
    again = shown(place, digest(place, 2, "stacking.company=1"))["facts"]
    assert again["company"] == [first]


def test_a_null_space_that_is_used_up_registers_nothing(place: Path) -> None:
    wide = ("rank=16", "lora_alpha=16", "target_modules=[q_proj]")
    before = digest(place, 1, *wide), digest(place, 2, *wide)
    assert len(set(before)) == 2
    held = contents(place / "registry")
    ran = trained(place, 3, "--set", "initialisation=null_space", *(p for w in wide for p in ("--set", w)))
    assert (ran.code, ran.out) == (1, "")
    assert "the null space is used up: expected 16 input directions" in ran.err
    assert "Traceback" not in ran.err
    after = contents(place / "registry")
    assert {k: v for k, v in after.items() if k.startswith(("blobs", "vault"))} == {
        k: v for k, v in held.items() if k.startswith(("blobs", "vault"))
    }
    with Registry.open(place / "registry") as registry:
        assert adapter_folder(registry, before[0]).is_dir()
