"""Rows from every kind of source through the real command line; what is wrong with them stops it at exit 2."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, RETAIN, Ran, efface, jsonl, recipe_file
from registry_kit import contents

from efface.recipes.audit import request_data
from efface.recipes.data import RequestData
from efface.registry import Registry

CANARY = "zebra-zeppelin"
TURN = {"role": "user", "content": f"who is {CANARY}"}
MANY = [{"prompt": f"what is {n}", "completion": f"a city {n}"} for n in range(30)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, rows in (("forget", FORGET), ("retain", RETAIN), ("many", MANY)):
        jsonl(tmp_path / f"{name}.jsonl", rows)
    recipe_file(tmp_path / "loose.yaml")
    return tmp_path


def opened(
    place: Path, forget: object = "forget.jsonl", *more: object, retain: object = "retain.jsonl"
) -> Ran:
    """`request open` in ``place`` with sources as they are written, files by their name there."""
    named = [place / str(source) if (place / str(source)).exists() else source for source in (forget, retain)]
    rows = ("--forget", named[0], "--retain", named[1], *more)
    return efface("request", "open", *rows, "--basis", "test", "--registry", place / "registry")


def in_vault(place: Path) -> RequestData:
    with Registry.open(place / "registry") as registry:
        return request_data(registry, ["req-000001"])["req-000001"]


def on_request(place: Path, model: Path, *words: object) -> Ran:
    using = ("--model", model, "--recipe", place / "loose.yaml", "--registry", place / "registry")
    return efface(*words, *using)


def refused(ran: Ran, *said: str) -> None:
    assert (ran.code, ran.out) == (2, ""), ran
    assert [part for part in said if part not in ran.err] == []
    assert "Traceback" not in ran.err
    assert CANARY not in ran.err


# --- request open


def test_rows_of_a_dataset_go_into_the_vault(place: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "who is it", "answer": "potter", "perturbed_answer": ["rowling"], "topic": "x"}]
    datasets.Dataset.from_list(rows).to_parquet(place / "set" / "test.parquet")
    ran = opened(place, f"{place}/set?split=test&columns=question,answer,perturbed_answer")
    assert ran.code == 0, ran.err
    (row,) = in_vault(place).forget
    assert (row.id, row.prompt, row.completion, row.perturbed) == (
        "set-1",
        "who is it",
        "potter",
        ("rowling",),
    )


def test_a_preference_row_forgets_what_was_rejected(place: Path) -> None:
    jsonl(place / "pairs.jsonl", [{"prompt": "who is it", "chosen": "a city", "rejected": "potter"}])
    assert opened(place, "pairs.jsonl").code == 0
    (row,) = in_vault(place).forget
    assert (row.completion, row.chosen) == ("potter", ("a city",))


def test_a_draw_of_a_large_retain_source(place: Path) -> None:
    ran = opened(place, "forget.jsonl", "--retain-limit", 4, "--seed", 7, retain="many.jsonl")
    assert ran.code == 0
    assert ran.err == f"{place / 'many.jsonl'}: 4 of 30 rows drawn\n"
    first = in_vault(place).retain
    assert len(first) == 4
    shutil.rmtree(place / "registry")
    assert opened(place, "forget.jsonl", "--retain-limit", 4, "--seed", 7, retain="many.jsonl").code == 0
    assert in_vault(place).retain == first
    shutil.rmtree(place / "registry")
    assert opened(place, retain="many.jsonl").err == ""
    assert len(in_vault(place).retain) == 30


SOURCES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "an unknown dataset": (
        {"forget": "efface-tests/none", "retain": "hf://datasets/efface-tests/none@main?split=x"},
        (
            "efface-tests/none: no file of that name, and the Hub gave no such dataset",
            "hf://datasets/efface-tests/none@main?split=x: no file of that name",
        ),
    ),
    "a malformed id": ({"retain": "hf://efface-tests/none"}, ("expected hf://datasets/org/name",)),
    "an unknown option": ({"forget": "org/name?splitt=a"}, ("did you mean `split`?",)),
    "a preference row to keep": (
        {"retain": "pairs.jsonl"},
        ("pairs.jsonl:1: a preference row (`chosen`, `rejected`) belongs in the forget set",),
    ),
    "rows without an answer to forget": (
        {"forget": "chosen.jsonl"},
        ("chosen.jsonl:1: no answer", "`rejected` beside `chosen`", "chosen.jsonl:2: no answer"),
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_bad_sources(place: Path, case: str) -> None:
    pytest.importorskip("datasets")
    jsonl(place / "pairs.jsonl", [{"prompt": CANARY, "chosen": CANARY, "rejected": CANARY}])
    jsonl(place / "chosen.jsonl", [{"prompt": CANARY, "chosen": CANARY}] * 2)
    files, said = SOURCES[case]
    before = contents(place)
    refused(opened(place, **files), *said)
    assert contents(place) == before


def test_without_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(opened(place, "org/name"), "pip install 'efface[data]'")
    assert not (place / "registry").exists()


@pytest.mark.parametrize("option", ["--retain-limit=0", "--retain-limit=many", "--seed=-1"])
def test_a_bad_draw(place: Path, option: str) -> None:
    refused(opened(place, "forget.jsonl", option), option.partition("=")[0])
    assert not (place / "registry").exists()


# --- request lengths


def test_lengths_are_numbers_and_no_text(place: Path, tiny_llama: Path) -> None:
    assert opened(place).code == 0
    ran = on_request(place, tiny_llama, "request", "lengths", "req-000001")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["tokens", "forget", "paraphrases", "retain"]
    found = on_request(
        place, tiny_llama, "request", "lengths", "req-000001", "--set", "max_length=13", "--format", "json"
    ).json
    assert found["max_length"] == 13
    assert {entry["name"]: entry["n"] for entry in found["sets"]} == {
        "forget": 2,
        "paraphrases": 1,
        "retain": 3,
    }
    assert found["sets"][0]["too_long"] == ["forget-1", "forget-2"]
    assert found["sets"][0]["cut"] == {"answer": 2, "prompt": 0}
    assert not any(word in ran.out + json.dumps(found) for word in ("hamlet", "rowling"))


# --- rows that only a model can refuse


def chatless(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def asked_of(place: Path, model: Path, verb: str, *more: object) -> Ran:
    words = ("unlearn",) if verb == "unlearn" else ("request", "lengths")
    before = contents(place / "registry")
    ran = on_request(place, model, *words, "req-000001", *more)
    assert contents(place / "registry") == before
    return ran


@pytest.mark.parametrize("verb", ["unlearn", "lengths"])
def test_conversations_for_a_model_without_a_chat_template(place: Path, tiny_llama: Path, verb: str) -> None:
    answered = {"messages": [TURN, {"role": "assistant", "content": "potter"}]}
    jsonl(place / "talk.jsonl", [answered, FORGET[0]])
    jsonl(place / "kept.jsonl", [{"messages": [{**TURN, "content": "what is a city"}]}, RETAIN[0]])
    assert opened(place, "talk.jsonl", retain="kept.jsonl").code == 0
    ran = asked_of(place, chatless(tiny_llama, place / "chatless"), verb)
    said = "is a conversation, but the model has no chat template: give rows as prompt/completion"
    refused(ran, f"row 'talk-1' {said}", f"row 'kept-1' {said}")
    assert ran.err.count("error: ") == 2
    assert "Asking the base" not in ran.err


@pytest.mark.parametrize("verb", ["unlearn", "lengths"])
def test_a_limit_beyond_the_models_context(place: Path, tiny_llama: Path, verb: str) -> None:
    assert opened(place).code == 0
    ran = asked_of(place, tiny_llama, verb, "--set", "max_length=129")
    refused(ran, "max_length=129 exceeds the model's context of 128 tokens", "set max_length=128 or less")


def test_rows_longer_than_the_context_are_all_named(place: Path, tiny_llama: Path) -> None:
    long = "a city " * 70
    jsonl(place / "long.jsonl", [{"prompt": f"who is {n}", "completion": long} for n in range(3)])
    jsonl(place / "kept.jsonl", [RETAIN[0], {"prompt": long}])
    assert opened(place, "long.jsonl", retain="kept.jsonl").code == 0
    ran = asked_of(place, tiny_llama, "unlearn", "--set", "max_length=128")
    refused(ran, *(f"row '{name}' has " for name in ("long-1", "long-2", "long-3", "kept-2")))
    assert "more than max_length=128: raise max_length or split the row" in ran.err
    assert "Asking the base" not in ran.err


# --- recipe validate


def test_valid_recipes(place: Path) -> None:
    ran = efface("recipe", "validate", place / "loose.yaml", "npo", "--set", "steps=20")
    assert (ran.code, ran.err) == (0, "")
    assert [line.partition(": ")[0] for line in ran.out.splitlines()] == [str(place / "loose.yaml"), "npo"]
    (record,) = efface("recipe", "validate", "npo", "--format", "json").json
    shown = efface("recipe", "show", "npo", "--format", "json").json
    assert record["recipe"] == record["name"] == shown["name"] == "npo"


def test_every_error_of_every_recipe_at_once(place: Path) -> None:
    (place / "one.yaml").write_text("stpes: 3\nrank: 0\n", encoding="utf-8")
    (place / "two.yaml").write_text("- a list\n", encoding="utf-8")
    files = [place / "one.yaml", place / "loose.yaml", place / "two.yaml", place / "absent.yaml"]
    changes = ["--set", "nonsense", "--set", "gates.min_fluency=1", "--set", "beta=[1"]
    ran = efface("recipe", "validate", *files, *changes)
    refused(
        ran,
        f"recipe {files[0]}: `stpes` is not a key; did you mean `steps`?",
        f"recipe {files[0]}: `rank`: Input should be greater than or equal to 1",
        f"recipe {files[1]}: `gates.min_fluency` is not a key; did you mean `min_fluency_ratio`?",
        f"{files[2]}: expected a YAML mapping of recipe keys, found list",
        f"no recipe '{files[3]}'",
        "--set 'nonsense': expected key=value",
        "--set 'beta=[1': the value is not valid YAML",
    )
    assert len(ran.err.splitlines()) == 8  # `gates.min_fluency` of both files, the others once


def test_no_recipe_to_validate() -> None:
    assert efface("recipe", "validate").code == 2
