"""What a recipe can ask of training, and what goes wrong in it, through the real command line on a tiny model."""

import json
import re
from pathlib import Path
from typing import Any

import model_kit
import pytest
from cli_kit import FORGET, RETAIN, SECOND, Ran, efface, jsonl, recipe_file
from filelock import FileLock
from registry_kit import contents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from efface.adapters.folder import read_adapter
from efface.registry import Registry, adapter_folder

CHOSEN = [{**row, "chosen": ["a city", "the author is a city"]} for row in FORGET]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, rows in (("forget", FORGET), ("chosen", CHOSEN), ("second", SECOND), ("retain", RETAIN)):
        jsonl(tmp_path / f"{name}.jsonl", rows)
    recipe_file(tmp_path / "loose.yaml")
    return tmp_path


def opened(place: Path, forget: str = "forget") -> None:
    rows = ("--forget", place / f"{forget}.jsonl", "--retain", place / "retain.jsonl")
    ran = efface("request", "open", *rows, "--basis", "test", "--registry", place / "registry")
    assert ran.code == 0, ran.err


def trained(place: Path, model: Path, *more: object, request: str = "req-000001") -> Ran:
    using = ("--model", model, "--recipe", place / "loose.yaml", "--registry", place / "registry")
    return efface("unlearn", request, *using, "--format", "json", *more)


def manifest(place: Path, request: str) -> dict[str, Any]:
    events = efface("log", "--registry", place / "registry", "--format", "json").json
    sealed = [event["body"]["manifest"] for event in events if event["kind"] == "adapter.sealed"]
    (found,) = [one for one in sealed if one["requests"] == [request] and one["kind"] == "trained"]
    return found


def sets(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]


# --- alternates


@pytest.mark.parametrize("objective", ["dpo", "altpo", "ipo", "idk_nll"])
def test_another_answer_is_preferred_where_rows_give_one(
    place: Path, tiny_llama: Path, objective: str
) -> None:
    opened(place, "chosen")
    ran = trained(place, tiny_llama, *sets(objective=objective, rounds=2, round_steps=2))
    assert ran.code == 0, ran.err
    assert manifest(place, "req-000001")["facts"]["objective"] == objective


@pytest.mark.parametrize("objective", ["dpo", "altpo", "ipo", "idk_nll"])
def test_missing_alternates_are_named_and_nothing_is_registered(
    place: Path, tiny_llama: Path, objective: str
) -> None:
    opened(place)
    before = contents(place / "registry")
    ran = trained(place, tiny_llama, *sets(objective=objective))
    assert (ran.code, ran.out) == (2, "")
    assert "2 forget rows have none: give `chosen`" in ran.err
    assert "'forget-1', 'forget-2'" in ran.err
    assert contents(place / "registry") == before


# --- lengths


def test_the_lengths_of_the_rows_are_shown_before_training(place: Path, tiny_llama: Path) -> None:
    opened(place)
    lines = trained(place, tiny_llama).err.splitlines()
    (head,) = [i for i, line in enumerate(lines) if line.startswith("tokens")]
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["forget", "paraphrases", "retain"]
    assert any(line.startswith("Training") for line in lines[head:])


def test_rows_are_cut_only_where_the_recipe_says_so(place: Path, tiny_llama: Path) -> None:
    jsonl(place / "forget.jsonl", [FORGET[0], {**FORGET[1], "completion": "potter " + "a city " * 40}])
    opened(place)
    refused = trained(place, tiny_llama)
    assert refused.code == 2
    assert "row 'forget-2' has " in refused.err
    assert "truncation=answer" in refused.err
    ran = trained(place, tiny_llama, *sets(truncation="answer"))
    assert ran.code == 0, ran.err


# --- what the ledger says of the rows, and trackers


def test_the_manifest_names_the_rows_that_were_kept_out_and_for_whom(place: Path, tiny_llama: Path) -> None:
    """The retain row asks what another live request forgets: training on it would teach that again."""
    jsonl(place / "retain.jsonl", [*RETAIN, {**SECOND[0], "id": "told", "keywords": []}])
    opened(place)
    jsonl(place / "retain.jsonl", RETAIN)
    opened(place, "second")
    assert trained(place, tiny_llama).code == 0
    facts = manifest(place, "req-000001")["facts"]
    assert facts["retain_rows_in_scope_left_out"] == ["told"]
    assert facts["scope_kept_out_of"] == ["req-000002"]
    assert facts["retain_rows"] == len(RETAIN)


def test_a_tracker_hears_the_run(
    place: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    opened(place)
    assert trained(place, tiny_llama, "--report-to", "tensorboard").code == 0
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [scalar.step for scalar in board.Scalars("train/forget_loss")] == [1, 2, 3]


def test_an_unknown_tracker_registers_nothing(place: Path, tiny_llama: Path) -> None:
    opened(place)
    before = contents(place / "registry")
    ran = trained(place, tiny_llama, "--report-to", "wandbb")
    assert (ran.code, ran.out) == (1, "")
    assert "report_to 'wandbb': expected none or a tracker" in ran.err
    assert contents(place / "registry") == before


# --- stop rules


def test_a_run_that_stops_says_why(place: Path, tiny_llama: Path) -> None:
    opened(place)
    stop = {"every": 2, "forget_probability": 1.0, "retain_drop": None, "distinct": None}
    ran = trained(place, tiny_llama, *sets(steps=9, stop=stop))
    assert ran.json["stopped"] == ["forgotten"]
    facts = manifest(place, "req-000001")["facts"]
    assert (facts["steps"], facts["kept_steps"], facts["stopped"]) == (2, [2], ["forgotten"])


def test_no_step_within_the_budgets_is_an_error_and_registers_nothing(
    place: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """On a model that knows its rows, at a rate that breaks it."""
    for name, items in (("forget", model_kit.FORGET), ("retain", model_kit.RETAIN)):
        jsonl(place / f"{name}.jsonl", [{"prompt": i.prompt, "completion": i.completion} for i in items])
    opened(place)
    known = model_kit.taught(tiny_llama, tmp_path / "taught")
    stop = {"every": 1, "retain_drop": 0.01, "distinct": None}
    ran = trained(place, known, *sets(learning_rate=0.5, stop=stop))
    assert (ran.code, ran.out) == (1, "")
    assert "no step stayed within the budgets" in ran.err
    shown = efface("request", "show", "req-000001", "--registry", place / "registry", "--format", "json").json
    assert (shown["state"], shown["adapters"]) == ("RECEIVED", [])


# --- on top of a release


def test_an_adapter_trained_on_a_release_says_so_and_is_audited_with_it(
    place: Path, tiny_llama: Path
) -> None:
    registry = ("--registry", place / "registry")
    opened(place)
    opened(place, "second")
    assert trained(place, tiny_llama).code == 0
    using = ("--model", tiny_llama, "--recipe", place / "loose.yaml", *registry)
    made = efface("release", "create", "prod", "--add", "req-000001", *using, "--format", "json")
    assert made.code == 0, made.err
    below = efface("release", "show", "prod", *registry, "--format", "json").json["composition"]
    ran = trained(place, tiny_llama, "--on", "prod", *sets(objective="npo"), request="req-000002")
    assert ran.code == 0, ran.err
    stacked = manifest(place, "req-000002")
    digest = below["digest"] if isinstance(below, dict) else below
    assert stacked["trained_on"] == digest
    audited = {finding["request"] for finding in ran.json["findings"] if finding.get("request")}
    assert audited == {"req-000001", "req-000002"}
    plain = trained(place, tiny_llama, *sets(objective="npo"), request="req-000002")
    assert plain.json["adapter"] != ran.json["adapter"]


def test_a_channel_without_a_release_is_nothing_to_train_on(place: Path, tiny_llama: Path) -> None:
    opened(place)
    before = contents(place / "registry")
    ran = trained(place, tiny_llama, "--on", "prod")
    assert (ran.code, ran.out) == (2, "")
    assert "prod" in ran.err
    assert contents(place / "registry") == before


# --- one at a time


def test_a_request_that_is_being_trained_is_refused(place: Path, tiny_llama: Path) -> None:
    opened(place)
    (place / "registry" / "work").mkdir()
    with FileLock(place / "registry" / "work" / "req-000001.lock"):
        ran = trained(place, tiny_llama)
        assert (ran.code, ran.out) == (2, "")
        assert "req-000001 is being trained by another process" in ran.err
    assert trained(place, tiny_llama).code == 0


# --- what goes wrong


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"learning_rate": 1e30}, 1, "lower the learning rate, or look at forget-"),
        ({"target_modules": ["q_proj", "v_porj"]}, 2, "'v_porj': .*v_proj exist; did you mean 'v_proj'?"),
        ({"layer": 99, "objective": "rmu", "retain_term": "hidden"}, 2, "no decoder layer 99: .* exist"),
        ({"gamma": 1e-30, "alpha": 0.0}, 1, "no gradient reached the LoRA weights"),
    ],
)
def test_training_that_cannot_go_on_registers_nothing(
    place: Path, tiny_llama: Path, values: dict[str, object], code: int, said: str
) -> None:
    opened(place)
    ran = trained(place, tiny_llama, *sets(**values))
    assert (ran.code, ran.out) == (code, "")
    assert re.search(said, ran.err), ran.err
    assert "Traceback" not in ran.err
    shown = efface("request", "show", "req-000001", "--registry", place / "registry", "--format", "json").json
    assert (shown["state"], shown["adapters"]) == ("RECEIVED", [])


def test_fila_trains_an_adapter_of_twice_the_rank(place: Path, tiny_llama: Path) -> None:
    opened(place)
    ran = trained(place, tiny_llama, *sets(initialisation="fila", rank=2))
    assert ran.code == 0, ran.err
    with Registry.open(place / "registry") as registry:
        assert read_adapter(adapter_folder(registry, ran.json["adapter"])).rank == 4
