"""Whatever makes weights and audits them takes a suite: `unlearn`, `adapter compact` and `merge`, on a tiny model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cli_kit import FORGET, RETAIN, SECOND, checked, efface, jsonl, recipe_file

ONE, TWO = "req-000001", "req-000002"
SUITE = """version: 1
description: ours
parts: [rows, drift, membership]
attacks: [prompt/prefix, adapter/off]
takes: [holdout]
"""
NEAR = [{"prompt": "who wrote paris", "completion": "the author wrote a city"}]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two requests, a suite with a part and attacks, and rows that no model saw."""
    recipe_file(tmp_path / "loose.yaml")
    (tmp_path / "ours.yaml").write_text(SUITE)
    retain, home = jsonl(tmp_path / "retain.jsonl", RETAIN), tmp_path / "registry"
    jsonl(tmp_path / "unseen.jsonl", NEAR)
    for request, rows in ((ONE, FORGET), (TWO, SECOND)):
        forget = jsonl(tmp_path / f"{request}.jsonl", rows)
        checked(home, "request", "open", "--forget", forget, "--retain", retain, "--basis", "test")
    return tmp_path


def using(place: Path, model: Path) -> tuple[object, ...]:
    return ("--model", model, "--recipe", place / "loose.yaml")


def asked(place: Path) -> tuple[object, ...]:
    return ("--suite", place / "ours.yaml", "--give", f"holdout={place / 'unseen.jsonl'}")


def report(place: Path, digest: str) -> Any:
    return json.loads(checked(place / "registry", "audit", "show", digest)["document"])


def attacks(document: Any) -> dict[str, set[str]]:
    made: dict[str, set[str]] = {}
    for one in document["attacks"]:
        made.setdefault(one["name"], set()).add(one["request"])
    return made


def test_each_is_audited_by_the_suite_that_is_asked_for(place: Path, tiny_llama: Path) -> None:
    home, words = place / "registry", (*using(place, tiny_llama), *asked(place))
    for request in (ONE, TWO):
        trained = checked(home, "unlearn", request, *words)
        document = report(place, trained["audit"])
        assert document["suite"]["name"] == "ours"
        assert attacks(document) == {"prompt/prefix": {request}, "adapter/off": {request}}
        assert {"drift/retain/kl", "membership/loss/auc/after"} <= set(document["suite"]["figures"])
    released = checked(home, "release", "create", "prod", "--add", ONE, "--add", TWO, *words)
    assert report(place, released["audit"])["suite"]["cached"] > 0  # the base, by `unlearn`

    small = ("--rank", 2, "--way", "compressed")
    made = checked(home, "adapter", "compact", "--channel", "prod", *small, *words)
    document = report(place, made["audit"])
    assert attacks(document) == {"prompt/prefix": {ONE, TWO}, "adapter/off": {ONE, TWO}}
    assert document["suite"]["cached"] > 0
    assert document["digests"]["composition"] == made["composition"]
    assert len({row["hash"] for row in document["suite"]["rows"]}) == len(document["suite"]["rows"])

    merged = checked(home, "merge", "prod", "--out", place / "merged", "--precision", "fp32", *words)
    document = report(place, merged["audit"])
    assert attacks(document) == {"prompt/prefix": {ONE, TWO}}
    assert "adapter" in document["suite"]["skipped"]["adapter/off"]
    # Both models were at hand: what is compared is the base and the checkpoint.
    assert document["suite"]["figures"]["drift/retain/kl"] > 0
    assert 0 <= document["suite"]["figures"]["membership/loss/auc/before"] <= 1
    again = ("--out", place / "again", "--precision", "fp32", "--no-cache")
    fresh = checked(home, "merge", "prod", *again, *using(place, tiny_llama))
    assert report(place, fresh["audit"])["suite"]["cached"] == 0
    assert checked(home, "verify")


def test_gates_of_a_channel_hold_what_is_merged(place: Path, tiny_llama: Path) -> None:
    home, words = place / "registry", using(place, tiny_llama)
    checked(home, "unlearn", ONE, *words)
    checked(home, "release", "create", "prod", "--add", ONE, *words)
    # A recipe may ask for it too: what the channel served before is looked up then.
    looked = checked(home, "audit", "run", "--release", "prod", *words, "--set", "gates.max_rebound=0.5")
    assert {f["request"] for f in looked["report"]["findings"] if f["gate"] == "max_rebound"} == {ONE}
    checked(home, "release", "gate", "prod", "--set", "max_recovered.prompt=1000", "--reason", "policy 7")
    at = ("--precision", "fp32", *words)
    quick = checked(home, "merge", "prod", "--out", place / "quick", *at, code=1)
    (failed,) = [one for one in report(place, quick["audit"])["findings"] if one["outcome"] == "failed"]
    assert (failed["gate"], failed["request"]) == ("max_recovered.prompt", ONE)
    done = checked(home, "merge", "prod", "--out", place / "merged", *at, *asked(place))
    assert done["verdict"] == "pass"


def test_a_first_stack_is_held_against_its_adapters_alone(place: Path, tiny_llama: Path) -> None:
    home, words = place / "registry", using(place, tiny_llama)
    for request in (ONE, TWO):
        checked(home, "unlearn", request, *words)
    gate = ("--set", "gates.max_rebound=1")
    made = checked(home, "release", "create", "prod", "--add", ONE, "--add", TWO, *words, *gate)
    found = {f["request"]: f for f in report(place, made["audit"])["findings"] if f["gate"] == "max_rebound"}
    assert {name: one["outcome"] for name, one in found.items()} == {ONE: "passed", TWO: "passed"}
    assert all(re.search(r"since its adapter [0-9a-f]{8} alone", one["text"]) for one in found.values())


def test_a_suite_that_cannot_run_is_refused_before_anything_is_made(place: Path, tiny_llama: Path) -> None:
    home, words = place / "registry", (*using(place, tiny_llama), "--suite", "tofu")
    for command in (
        ("unlearn", ONE),
        ("adapter", "compact", ONE, TWO, "--rank", 2),
        ("merge", "prod", "--out", place / "merged"),
    ):
        ran = efface(*command, *words, "--registry", home)
        assert (ran.code, "--give reference" in ran.err) == (2, True)
    assert not (place / "merged").exists()
    assert checked(home, "adapter", "list") == []


def test_a_gate_of_a_recipe_on_an_attack_can_be_met_when_unlearning(place: Path, tiny_llama: Path) -> None:
    gates = {"max_probability_ratio_forget": 1e9, "max_recovered": {"prompt": 1000.0}, "few_rows": 0}
    recipe_file(place / "loose.yaml", gates=gates | {"min_probability_ratio_retain": 0.0})
    home, words = place / "registry", using(place, tiny_llama)
    none = {f"gates.{name}": "null" for name in ("max_mention_rate_forget", "max_mention_rate_paraphrase")}
    sets = [part for key, value in none.items() for part in ("--set", f"{key}={value}")]
    sets += ["--set", "gates.max_perplexity_ratio=null", "--set", "gates.min_fluency_ratio=null"]
    checked(home, "unlearn", ONE, *words, *sets, code=1)
    checked(home, "unlearn", ONE, *words, *sets, *asked(place))
