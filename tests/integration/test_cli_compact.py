"""Compaction, repair and rollback of them through the real command line, on a tiny model that trains in a second."""

from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, NEIGHBOURS, RETAIN, SECOND, checked, efface, jsonl, recipe_file

ONE, TWO = "req-000001", "req-000002"


@pytest.fixture
def place(tmp_path: Path, tiny_llama: Path) -> Path:
    """Two requests on `prod`."""
    recipe_file(tmp_path / "loose.yaml")
    jsonl(tmp_path / "retain.jsonl", RETAIN)
    home = tmp_path / "registry"
    for request, rows in ((ONE, FORGET), (TWO, SECOND)):
        forget = jsonl(tmp_path / f"{request}.jsonl", rows)
        words = ("--forget", forget, "--retain", tmp_path / "retain.jsonl", "--basis", "test")
        checked(home, "request", "open", *words)
        checked(home, "unlearn", request, *using(tmp_path, tiny_llama))
    add = ("--add", ONE, "--add", TWO)
    checked(home, "release", "create", "prod", *add, *using(tmp_path, tiny_llama))
    return tmp_path


def using(place: Path, model: Path, **changes: Any) -> tuple[object, ...]:
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    return ("--model", model, "--recipe", place / "loose.yaml", *sets)


def compacted(place: Path, model: Path, *more: object) -> Any:
    words = ("adapter", "compact", "--rank", 2, "--steps", 3, *more)
    return checked(place / "registry", *words, *using(place, model))


def test_many_become_one_and_one_leaves_again(place: Path, tiny_llama: Path) -> None:
    home = place / "registry"
    originals = {
        one["requests"][0]: one["digest"]
        for one in checked(home, "adapter", "list")
        if one["kind"] == "trained"
    }
    made = compacted(place, tiny_llama, "--channel", "prod")
    assert made["made_from"] == dict.fromkeys(originals.values(), "1")
    assert {one["way"] for one in made["candidates"]} == {"compressed", "distilled"}
    shown = checked(home, "adapter", "show", made["adapter"])
    assert (shown["kind"], shown["requests"]) == ("consolidated", [ONE, TWO])
    served = checked(home, "release", "compact", "prod", made["adapter"], *using(place, tiny_llama))
    assert (served["state"], served["requests"]) == ("ACTIVE", [ONE, TWO])
    small = ("--render", "svd:1", "--max-lora-rank", 1, "--no-activate")
    checked(home, "release", "rollback", "prod", "--to", 1, "--reason", "again", *using(place, tiny_llama))
    words = ("release", "compact", "prod", made["adapter"])
    approximate = checked(home, *words, *small, *using(place, tiny_llama))
    assert (approximate["state"], approximate["composition"]["render"]) == ("CANDIDATE", "svd:1")
    served = checked(home, *words, *using(place, tiny_llama))
    assert [part["adapter"] for part in served["composition"]["parts"]] == [made["adapter"]]
    checked(home, "audit", "run", "--release", "prod", "--without", ONE, *using(place, tiny_llama))
    words = ("release", "rollback", "prod", "--remove", ONE, "--reason", "settled")
    back = checked(home, *words, *using(place, tiny_llama))
    assert [part["adapter"] for part in back["composition"]["parts"]] == [originals[TWO]]
    refused = efface(
        "release", "compact", "prod", made["adapter"], *using(place, tiny_llama), "--registry", home
    )
    assert (refused.code, refused.out) == (2, "")
    assert originals[ONE] in refused.err
    kept = efface("adapter", "retire", originals[ONE], "--reason", "old", "--yes", "--registry", home)
    assert kept.code == 2
    assert made["adapter"] in kept.err
    assert checked(home, "verify")


def test_requests_are_compacted_without_a_channel(place: Path, tiny_llama: Path) -> None:
    made = compacted(place, tiny_llama, ONE, TWO, "--way", "compressed")
    assert made["requests"] == [ONE, TWO]
    assert [one["way"] for one in made["candidates"]] == ["compressed"]
    for words, said in (
        ((), "expected REQUESTs or --channel"),
        ((ONE, "--way", "averaged"), "--way compressed or distilled"),
        ((ONE,), "expected 2 to 500 adapters"),
    ):
        ran = efface(
            "adapter", "compact", *words, "--rank", 2, *using(place, tiny_llama),
            "--registry", place / "registry",
        )  # fmt: skip
        assert ran.code == 2
        assert said in ran.err


def test_who_came_back_is_repaired_and_leaves_with_its_repair(place: Path, tiny_llama: Path) -> None:
    home = place / "registry"
    nobody = checked(home, "release", "repair", "prod")
    assert (nobody["done"], nobody["plan"]["requests"]) == (False, [])
    strict = using(place, tiny_llama, **{"gates.max_probability_ratio_forget": 0.0})
    checked(home, "audit", "run", "--release", "prod", *strict, code=1)
    planned = checked(home, "release", "repair", "prod")
    assert planned["plan"]["requests"] == [ONE, TWO]
    assert planned == checked(home, "release", "repair", "prod", "--version", 1)
    without = efface("release", "repair", "prod", "--yes", "--registry", home)
    assert (without.code, "--yes needs --model" in without.err) == (2, True)
    small = ("--rank", 1, "--steps", 2, "--yes")
    done = checked(home, "release", "repair", "prod", *small, *using(place, tiny_llama))
    assert (done["done"], done["release"]["state"], len(done["adapters"])) == (True, "ACTIVE", 2)
    repairs = [checked(home, "adapter", "show", digest) for digest in done["adapters"]]
    assert [one["facts"]["repairs"] for one in repairs] == [[ONE], [TWO]]
    assert [one["facts"]["rank"] for one in repairs] == [1, 1]
    words = ("release", "rollback", "prod", "--remove", ONE, "--reason", "settled")
    refused = efface(*words, *using(place, tiny_llama), "--registry", home)
    assert refused.code == 2
    # As it is pasted, with what only the caller knows.
    said = (
        " ".join(refused.err.split()).partition("efface release rollback prod ")[2].partition(" --reason")[0]
    )
    assert said == f"--remove {ONE} --drop-repairs"
    look = ("audit", "run", "--release", "prod", "--without", ONE, "--drop-repairs")
    seen = checked(home, *look, *using(place, tiny_llama))
    back = checked(home, *words[:3], *said.split(), "--reason", "settled", *using(place, tiny_llama))
    assert back["requests"] == [TWO]
    assert len(back["composition"]["parts"]) == 1
    assert seen["report"]["digests"]["composition"] == back["composition"]["digest"]
    alone = efface("audit", "run", "--release", "prod", "--drop-repairs", *using(place, tiny_llama))
    assert (alone.code, "--drop-repairs needs --without" in " ".join(alone.err.split())) == (2, True)


def test_a_gate_on_attacks_is_met_by_a_suite_that_makes_them(place: Path, tiny_llama: Path) -> None:
    home = place / "registry"
    checked(home, "release", "gate", "prod", "--set", "max_recovered.prompt=1000", "--reason", "policy 7")
    suite = place / "prompts.yaml"
    suite.write_text("version: 1\ndescription: ours\nparts: [rows]\nattacks: [prompt/prefix]\n")
    asked = ("--suite", suite, *using(place, tiny_llama))
    made = compacted(place, tiny_llama, "--channel", "prod")["adapter"]
    small = ("--rank", 1, "--steps", 2, "--yes")
    # Before the compaction: a balance is of a stack of many.
    refused = checked(home, "release", "balance", "prod", *small, *using(place, tiny_llama), code=1)
    assert refused["release"]["state"] == "CANDIDATE"
    fits = ("--render", "svd:2", "--max-lora-rank", 2)
    done = checked(home, "release", "balance", "prod", "--version", 1, *small, *fits, *asked)
    assert (done["release"]["state"], done["release"]["version"]) == ("ACTIVE", 3)
    assert done["release"]["composition"]["render"] == "svd:2"
    checked(home, "release", "rollback", "prod", "--to", 1, "--reason", "again", *asked)
    strict = using(place, tiny_llama, **{"gates.max_probability_ratio_forget": 0.0})
    checked(home, "audit", "run", "--release", "prod", *strict, code=1)
    version = ("--version", checked(home, "release", "show", "prod")["version"])
    repaired = checked(home, "release", "repair", "prod", *version, *small, *asked)
    assert repaired["release"]["state"] == "ACTIVE"
    checked(home, "release", "rollback", "prod", "--to", 1, "--reason", "again", *asked)
    quick = checked(home, "release", "compact", "prod", made, *using(place, tiny_llama), code=1)
    assert quick["state"] == "CANDIDATE"
    served = checked(home, "release", "compact", "prod", made, *asked)
    assert served["state"] == "ACTIVE"
    assert checked(home, "verify")


def test_a_stack_is_balanced_and_a_request_takes_the_balance_along(place: Path, tiny_llama: Path) -> None:
    home = place / "registry"
    planned = checked(home, "release", "balance", "prod")
    assert (planned["done"], planned["plan"]["requests"]) == (False, [ONE, TWO])
    without = efface("release", "balance", "prod", "--yes", "--registry", home)
    assert (without.code, "--yes needs --model" in without.err) == (2, True)
    more = place / "more.jsonl"
    more.write_text("".join(f'{{"prompt": "{word} is a"}}\n' for word in ("rowling", "tokyo", "play")))
    keep = ("--retain", more, "--retain-limit", 2, "--seed", 1)
    assert checked(home, "release", "balance", "prod", *keep)["plan"]["retain_rows_given"] == 2
    absent = efface("release", "balance", "prod", "--retain", place / "gone.jsonl", "--registry", home)
    assert (absent.code, "gone.jsonl" in absent.err) == (2, True)
    small = ("--rank", 1, "--steps", 2, "--yes")
    done = checked(home, "release", "balance", "prod", *small, *keep, *using(place, tiny_llama))
    assert (done["done"], done["release"]["state"]) == (True, "ACTIVE")
    assert done["release"]["requests"] == [ONE, TWO]
    made = checked(home, "adapter", "show", done["adapter"])
    assert made["facts"]["retain_rows_given"] == 2
    assert (made["requests"], made["facts"]["held_down"], made["facts"]["rank"]) == ([], [ONE, TWO], 1)
    again = checked(home, "release", "balance", "prod")
    assert again["plan"]["replaces"] == [done["adapter"]]
    words = ("release", "rollback", "prod", "--remove", ONE, "--reason", "settled")
    refused = efface(*words, *using(place, tiny_llama), "--registry", home)
    assert (refused.code, "--drop-repairs" in refused.err) == (2, True)
    back = checked(home, *words, "--drop-repairs", *using(place, tiny_llama))
    assert (back["requests"], len(back["composition"]["parts"])) == ([TWO], 1)
    assert checked(home, "verify")


def test_it_is_said_that_nothing_keeps_shredded_rows_out_of_what_is_given(place: Path) -> None:
    home = place / "registry"
    checked(home, "request", "shred", ONE, "--yes")
    more = place / "more.jsonl"
    more.write_text('{"prompt": "tokyo is a"}\n')
    asked = ("release", "balance", "prod", "--registry", home)
    assert "shredded" not in efface(*asked).err
    planned = efface(*asked, "--retain", more)
    assert planned.code == 0, planned.err
    assert f"the rows of {ONE} are shredded" in planned.err


def test_a_row_that_is_only_measured_is_refused_before_anything_is_planned(place: Path) -> None:
    near = jsonl(place / "near.jsonl", NEIGHBOURS)
    third = jsonl(place / "third.jsonl", [{"prompt": "what is macbeth", "completion": "a play in tokyo"}])
    words = ("--forget", third, "--retain", place / "retain.jsonl", "--neighbours", near, "--basis", "test")
    checked(place / "registry", "request", "open", *words)  # in no stack yet
    refused = efface("release", "balance", "prod", "--retain", near, "--registry", place / "registry")
    assert (refused.code, refused.out) == (2, "")
    assert "'near-1' asks what a neighbour" in " ".join(refused.err.split())
