"""The command line on a tiny model, from the first request to a rollback: what it prints, writes and returns."""

import hashlib
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from cli_kit import FORGET, LOOSE, NEIGHBOURS, RETAIN, SECOND, Ran, conforms, efface, jsonl, recipe_file
from registry_kit import contents

from efface.adapters import Item, collate, encode
from efface.adapters.encode import pad_id
from efface.adapters.logprobs import answer_hidden
from efface.cli import app
from efface.cli.schemas import VERBS
from efface.recipes import Bench, load_recipe, open_bench, render_composition, wearing
from efface.registry import (
    Composition,
    Registry,
    adapter_folder,
    get_adapter,
    get_release,
    list_requests,
    record_evidence,
    shred_request,
    supported_claim,
)

ONE, TWO = "req-000001", "req-000002"


@dataclass(frozen=True)
class Place:
    """Where a story happens, and its commands by name."""

    root: Path
    model: Path
    registry: Path
    ran: dict[str, Ran]

    def ask(self, *arguments: object, format: str = "json") -> Ran:
        return efface(*arguments, "--format", format, "--registry", self.registry)

    def work(self, *arguments: object, recipe: str = "loose") -> Ran:
        """A command that loads the model."""
        chosen = self.root / f"{recipe}.yaml"
        return self.ask(*arguments, "--model", self.model, "--recipe", chosen)

    def json(self, name: str) -> Any:
        return self.ran[name].json

    def copied(self, to: Path) -> "Place":
        """The same story in a registry that may be broken."""
        return Place(self.root, self.model, Path(shutil.copytree(self.registry, to)), {})


def place(root: Path, model: Path) -> Place:
    """Rows and recipes in a folder; no registry yet."""
    for name, rows in (("one", FORGET), ("two", SECOND), ("retain", RETAIN), ("near", NEIGHBOURS)):
        jsonl(root / f"{name}.jsonl", rows)
    recipe_file(root / "loose.yaml")
    recipe_file(root / "strict.yaml", gates={**LOOSE, "max_probability_ratio_forget": 0.0})
    return Place(root, model, root / "registry", {})


def opening(at: Place, rows: str) -> tuple[object, ...]:
    files = ("--retain", at.root / "retain.jsonl", "--neighbours", at.root / "near.jsonl")
    return ("request", "open", "--forget", at.root / f"{rows}.jsonl", *files, "--basis", "copyright")


def decide(at: Place, request: str) -> None:
    """What people do before a request on a legal basis is trained for."""
    for verb in ("verify", "accept"):
        assert at.ask("request", verb, request).code == 0


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Place:
    """Two requests, stacked; the second rolled back, then added again and the first rolled back."""
    at = place(tmp_path_factory.mktemp("story"), tiny_llama)
    ran = at.ran
    ran["request open"] = at.ask(*opening(at, "one"), "--subject-ref", "Zoë Zebra")
    ran["request list"] = at.ask("request", "list")
    ran["request show"] = at.ask("request", "show", ONE)
    decide(at, ONE)
    ran["unlearn"] = at.work("unlearn", ONE)
    ran["release create"] = at.work("release", "create", "prod", "--add", ONE)
    ran["open two"] = at.ask(*opening(at, "two"))
    decide(at, TWO)
    ran["unlearn two"] = at.work("unlearn", TWO)
    ran["stack"] = at.work("release", "create", "prod", "--add", TWO)
    ran["release show"] = at.ask("release", "show", "prod")
    ran["rollback"] = at.work(
        "release", "rollback", "prod", "--remove", TWO, "--reason", "not asked for any more"
    )
    ran["after rollback"] = at.ask("request", "show", TWO)
    ran["stack again"] = at.work("release", "create", "prod", "--add", TWO)
    ran["rollback one"] = at.work(
        "release", "rollback", "prod", "--remove", ONE, "--reason", "licence agreed"
    )
    ran["rollback to"] = at.work("release", "rollback", "prod", "--to", "2", "--reason", "it was a mistake")
    ran["release history"] = at.ask("release", "history", "prod")
    ran["audit run"] = at.work("audit", "run", "--release", "prod")
    ran["audit list"] = at.ask("audit", "show")
    ran["audit show"] = at.ask("audit", "show", at.json("audit run")["audit"])
    ran["never had one"] = at.work("release", "create", "never", "--add", TWO)
    ran["log"] = at.ask("log")
    ran["verify"] = at.ask("verify", "--deep")
    return at


@pytest.fixture(scope="module")
def never(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Place:
    """A registry that never had the second request."""
    at = place(tmp_path_factory.mktemp("never"), tiny_llama)
    ran = at.ran
    ran["open"] = at.ask(*opening(at, "one"))
    decide(at, ONE)
    ran["unlearn"] = at.work("unlearn", ONE)
    ran["release"] = at.work("release", "create", "prod", "--add", ONE)
    return at


def digest(record: Any) -> str:
    return record["composition"]["digest"]


def test_every_step_ends_well(story: Place) -> None:
    assert {name: (ran.code, ran.err) for name, ran in story.ran.items() if ran.code != 0} == {}


def test_stdout_is_json_and_talk_is_on_stderr(story: Place) -> None:
    for name, ran in story.ran.items():
        assert isinstance(ran.json, dict | list), name
        assert not any(line.startswith(("{", "[", "sha256:")) for line in ran.err.splitlines()), name
    assert "Training …" in story.ran["unlearn"].err
    assert "Audit passed" in story.ran["release create"].err
    gates = [line for line in story.ran["unlearn"].err.splitlines() if "✓" in line]
    assert [
        gate.endswith(finding["text"])
        for gate, finding in zip(gates, story.json("unlearn")["findings"], strict=True)
    ]
    for name in ("request open", "request list", "log", "verify", "audit show", "release show"):
        assert story.ran[name].err == ""


def test_what_is_printed_is_what_the_schema_says(story: Place, never: Place) -> None:
    names = {
        "stack": "release create",
        "rollback": "release rollback",
        "unlearn": "unlearn",
        "audit run": "audit run",
    }
    names |= {name: name for name in story.ran if name in VERBS}
    for name, verb in names.items():
        conforms(verb, story.json(name))
    conforms("request lengths", never.work("request", "lengths", ONE).json)


def test_nothing_is_trained_for_a_legal_request_before_people_decided(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    before = contents(at.registry)
    for verb, others in (("verify", " && efface request accept req-000002"), ("accept", "")):
        refused = at.ask("unlearn", TWO, "--model", tmp_path / "no-model")  # refused before it is looked for
        assert (refused.code, refused.out) == (2, "")
        assert f"Decide on it first: efface request {verb} {TWO}{others}" in refused.err
        assert contents(at.registry) == before
        assert at.ask("request", verb, TWO).code == 0
        before = contents(at.registry)
    assert "no-model" in at.ask("unlearn", TWO, "--model", tmp_path / "no-model").err


def test_a_candidate_is_let_through_in_two_steps(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    decide(at, TWO)
    at.work("unlearn", TWO)
    made = at.work("release", "create", "prod", "--add", TWO, "--no-activate")
    assert (made.code, made.json["state"], made.json["verdict"]) == (0, "CANDIDATE", "pass")
    assert f"efface release approve prod 2 --audit {made.json['measured_by']}" in made.err
    assert at.ask("release", "show", "prod").json["version"] == 1
    assert at.ask("release", "approve", "prod", 2, "--audit", made.json["measured_by"]).code == 0
    assert at.ask("release", "activate", "prod", 2).json["state"] == "ACTIVE"


def test_an_adapter_under_another_is_removed_after_an_audit_of_what_is_left(
    never: Place, tmp_path: Path
) -> None:
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    decide(at, TWO)
    at.work("unlearn", TWO, "--on", "prod")
    at.work("release", "create", "prod", "--add", TWO)
    removal = ("release", "rollback", "prod", "--remove", ONE, "--reason", "licence agreed")
    refused = at.work(*removal)
    assert refused.code == 2
    assert f"efface audit run --release prod --without {ONE}." in refused.err
    audited = at.work("audit", "run", "--release", "prod", "--without", ONE)
    assert (audited.code, audited.json["report"]["title"]) == (0, f"Audit of prod@2 without {ONE}")
    assert at.work("audit", "run", "--release", "prod", "--without", ONE, "--without", TWO).code == 2
    done = at.work(*removal)
    assert (done.code, done.json["requests"]) == (0, [TWO])


def test_requests_in_what_is_printed(story: Place) -> None:
    opened = story.json("request open")
    assert (opened["id"], opened["state"], opened["n_items"]) == (ONE, "RECEIVED", len(FORGET))
    assert [request["id"] for request in story.json("request list")] == [ONE]
    shown = story.json("request show")
    assert (shown["adapters"], shown["releases"], shown["supported_claim"]) == ([], [], None)
    assert shown.items() >= {key: opened[key] for key in opened if key != "earlier_requests"}.items()
    assert story.json("after rollback")["state"] == "REOPENED"
    trained, stacked = story.json("unlearn two")["adapter"], story.json("stack")["rendered"]
    assert story.json("after rollback")["adapters"] == [trained, stacked]


def test_unlearn_says_which_adapter_it_made_and_how_the_audit_went(story: Place) -> None:
    made = story.json("unlearn")
    assert (made["request"], made["verdict"]) == (ONE, "pass")
    assert {finding["outcome"] for finding in made["findings"]} == {"passed"}
    assert story.json("release create")["composition"]["parts"] == [
        {"adapter": made["adapter"], "weight": "1"}
    ]


def test_releases_in_what_is_printed(story: Place) -> None:
    history = story.json("release history")
    assert [release["version"] for release in history] == [1, 2, 3, 4, 5, 6]
    assert [release["state"] for release in history] == ["SUPERSEDED"] * 5 + ["ACTIVE"]
    assert [release["requests"] for release in history] == [
        [ONE],
        [ONE, TWO],
        [ONE],
        [ONE, TWO],
        [TWO],
        [ONE, TWO],
    ]
    shown = story.json("release show")
    assert shown["audit"] == story.json("stack")["audit"]
    assert {**shown, "state": "SUPERSEDED"} == history[1]


def test_a_rollback_gives_the_digest_of_never_having_added_the_request(story: Place, never: Place) -> None:
    """The other registry trained on its own: same rows, same adapter, same composition."""
    assert never.json("unlearn")["adapter"] == story.json("unlearn")["adapter"]
    assert digest(story.json("rollback")) == digest(never.json("release"))
    assert story.json("rollback")["rendered"] == never.json("release")["rendered"]
    assert digest(story.json("rollback one")) == digest(story.json("never had one"))
    assert digest(story.json("rollback to")) == digest(story.json("stack"))
    assert len({digest(story.json(name)) for name in ("rollback", "rollback one", "rollback to")}) == 3


def logits(at: Place, composition: Composition | None, folder: Path | None = None) -> torch.Tensor:
    """At the answers of every row, on a base just loaded from its files."""
    bench = open_bench(at.model, load_recipe(str(at.root / "loose.yaml")))
    rows = [
        Item(str(i), r["prompt"], str(r["completion"])) for i, r in enumerate([*FORGET, *SECOND, *RETAIN])
    ]
    if composition is not None:
        with Registry.open(at.registry) as registry:
            folder = render_composition(registry, composition, at.root / f"rendered-{composition.digest[7:]}")
    try:
        with wearing(bench, folder) as model:
            return _answer_logits(bench, model, rows)
    finally:
        if composition is not None and folder is not None:
            shutil.rmtree(folder)


@torch.no_grad()
def _answer_logits(bench: Bench, model: Any, rows: list[Item]) -> torch.Tensor:
    encoded = [encode(bench.base.tokenizer, item, chat=True) for item in rows]
    hidden, _, head = answer_hidden(model, collate(encoded, pad_id(bench.base.tokenizer)))
    return head(hidden)


def released(at: Place, version: int, channel: str = "prod") -> Composition:
    with Registry.open(at.registry) as registry:
        return get_release(registry, channel, version).composition


def test_logits_after_a_rollback_are_bit_equal_to_never_having_added_the_request(
    story: Place, never: Place
) -> None:
    rolled_back = logits(story, released(story, 3))
    assert torch.equal(rolled_back, logits(never, released(never, 1)))
    assert torch.equal(logits(story, released(story, 5)), logits(story, released(story, 1, "never")))
    with Registry.open(story.registry) as registry:
        alone = adapter_folder(registry, story.json("unlearn")["adapter"])
    assert torch.equal(rolled_back, logits(story, None, alone))
    assert not torch.equal(rolled_back, logits(story, released(story, 2)))
    assert not torch.equal(rolled_back, logits(story, None))


def test_taking_the_only_request_off_leaves_the_bare_base(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    done = at.work("release", "rollback", "prod", "--remove", ONE, "--reason", "all of it")
    assert done.code == 0, done.err
    assert (done.json["composition"]["parts"], done.json["rendered"]) == ([], None)
    shown = at.ask("release", "show", "prod", format="text")
    assert "this is the bare base" in shown.out
    assert at.ask("verify", "--deep").code == 0
    audited = at.work("audit", "run", "--release", "prod")
    assert audited.code == 2
    assert "the bare base: there is nothing to audit" in audited.err


def test_audits_are_in_the_ledger_with_their_report(story: Place) -> None:
    shown, listed = story.json("audit show"), story.json("audit list")
    assert listed[-1]["digest"] == shown["digest"] == story.json("audit run")["audit"]
    assert digest(story.json("rollback to")) == shown["composition"]
    report = json.loads(shown["document"])
    assert report["verdict"] == "pass"
    assert [audit["verdict"] for audit in listed] == ["pass"] * len(listed)


def test_the_ledger_has_every_step_in_order(story: Place) -> None:
    events = story.json("log")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["prev_hash"] for event in events][1:] == [event["hash"] for event in events][:-1]
    kinds = [event["kind"] for event in events]
    assert (kinds.count("request.received"), kinds.count("release.active")) == (2, 7)
    verified = story.json("verify")
    assert (verified["events"], verified["problems"], verified["deep"]) == (len(events), [], True)
    newest = story.ask("log", "--limit", "2")
    assert newest.json == events[-2:]


def test_no_forgotten_text_is_in_the_registry_or_in_what_is_printed(story: Place) -> None:
    texts = [str(row[key]) for row in (*FORGET, *SECOND) for key in ("prompt", "completion")]
    texts += ["who is the author of macbeth", "Zoë Zebra"]
    traces = [trace for text in texts for trace in (text.encode(), text.encode("utf-16-le"))]
    traces += [hashlib.sha256(text.encode()).hexdigest().encode() for text in texts]
    places = {name: data for name, (_, data) in contents(story.registry).items()}
    places |= {name: (ran.out + ran.err).encode() for name, ran in story.ran.items()}
    assert len(places) > 40
    assert [(name, trace) for name, data in places.items() for trace in traces if trace in data] == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["request", "list"], [ONE, TWO, "copyright", "RELEASED"]),
        (["request", "show", ONE], [ONE, "n_items", "adapter          sha256:"]),
        (["release", "show", "prod"], ["prod@6  ACTIVE", ONE, TWO, "it was a mistake"]),
        (["release", "history", "prod"], ["SUPERSEDED", "ACTIVE", "not asked for any more"]),
        (["audit", "show"], ["quick/1", "pass", "fp32"]),
        (["log"], ["request.received", "adapter.sealed", "release.superseded", "request.reopened"]),
        (["verify"], ["blobs: as written"]),
    ],
)
def test_text_for_people(story: Place, arguments: list[str], shown: list[str]) -> None:
    ran = story.ask(*arguments, format="text")
    assert (ran.code, ran.err) == (0, "")
    assert [part for part in shown if part not in ran.out] == []
    assert "None" not in ran.out


def test_a_row_of_a_table_is_one_line_where_it_is_piped(story: Place) -> None:
    ran = story.ask("log", format="text")
    assert len(ran.out.splitlines()) == 1 + len(story.json("log"))
    ran = story.ask("release", "history", "prod", format="text")
    assert len(ran.out.splitlines()) == 1 + 6


def test_model_and_recipe_need_no_registry(story: Place) -> None:
    shown = efface("model", "show", story.model, "--format", "json")
    assert shown.json["digest"] == story.json("release create")["composition"]["base"]
    assert shown.json["digest"] in efface("model", "show", story.model).out
    listed = efface("recipe", "list", "--format", "json").json
    assert {recipe["name"] for recipe in listed} >= {"simnpo", "npo"}
    chosen = efface("recipe", "show", "npo", "--set", "steps=7", "--format", "json").json
    assert (chosen["objective"], chosen["steps"]) == ("npo", 7)
    assert "steps: 7" in efface("recipe", "show", "npo", "--set", "steps=7").out


def test_reports_show_text_only_when_told_to(story: Place, tmp_path: Path) -> None:
    secret, files = str(FORGET[0]["completion"]), (tmp_path / "a.html", tmp_path / "a.json")
    command = ["audit", "run", "--release", "prod", "--html", files[0], "--json", files[1]]
    assert story.work(*command).code == 0
    masked = [file.read_text(encoding="utf-8") for file in files]
    shown = story.work(*command, "--reveal")
    assert shown.code == 0
    revealed = [file.read_text(encoding="utf-8") for file in files]
    assert [secret in text for text in (*masked, *revealed)] == [False, False, True, True]
    assert masked[0].startswith("<!doctype html>")
    assert json.loads(masked[1])["verdict"] == "pass"
    assert secret not in shown.out + shown.err


def test_an_adapter_in_a_folder_is_audited_without_a_registry(story: Place, tmp_path: Path) -> None:
    with Registry.open(story.registry) as registry:
        folder = Path(
            shutil.copytree(adapter_folder(registry, story.json("unlearn")["adapter"]), tmp_path / "a")
        )
    before = contents(story.registry)
    rows = ("--forget", story.root / "one.jsonl", "--retain", story.root / "retain.jsonl")
    held = jsonl(tmp_path / "held.jsonl", [{"prompt": "in what city is the play", "completion": "tokyo"}])
    ran = story.work("audit", "run", "--adapter", folder, *rows, "--heldout", held)
    assert (ran.code, ran.json["audit"], ran.json["report"]["verdict"]) == (0, None, "pass")
    asked = ran.json["report"]["evaluations"][0]["rows"]
    assert [row["id"] for row in asked if row["group"] == "heldout"] == ["held-1"]
    assert contents(story.registry) == before


def test_a_failed_gate_is_exit_1_and_the_channel_serves_what_it_served(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    decide(at, TWO)
    failed = at.work("unlearn", TWO, recipe="strict")
    assert (failed.code, failed.json["verdict"]) == (1, "fail")
    assert "Audit FAILED" in failed.err
    shown = at.ask("request", "show", TWO).json
    assert (shown["state"], shown["adapters"]) == ("TRAINED", [failed.json["adapter"]])
    failed = at.work("release", "create", "prod", "--add", TWO, recipe="strict")
    assert (failed.code, failed.json["state"], failed.json["version"]) == (1, "CANDIDATE", 2)
    assert at.ask("release", "show", "prod").json["version"] == 1
    assert at.work("audit", "run", "--release", "prod", recipe="strict").code == 1
    assert at.ask("verify", "--deep").code == 0
    assert at.work("release", "create", "prod", "--add", TWO).json["version"] == 3


def test_a_stack_with_a_shredded_request_changes_and_says_that_it_is_not_measured(
    story: Place, tmp_path: Path
) -> None:
    at = story.copied(tmp_path / "registry")
    with Registry.open(at.registry) as reg:
        assert shred_request(reg, ONE, actor="ana").state == "SHREDDED"
    left = at.work("release", "rollback", "prod", "--remove", TWO, "--reason", "not asked for any more")
    assert (left.code, left.json["state"], left.json["requests"]) == (0, "ACTIVE", [ONE])
    assert "not measured: its rows are shredded" in left.err
    for command in (("audit", "run", "--release", "prod"), ("unlearn", ONE)):
        refused = at.work(*command)
        assert (refused.code, "shredded" in refused.err) == (2, True), command
    assert at.ask("verify", "--deep").code == 0


def test_a_stack_whose_requests_are_all_shredded_can_be_rolled_back(never: Place, tmp_path: Path) -> None:
    """To what passed before, and to the bare base; to nothing that nobody could look at."""
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    decide(at, TWO)
    at.work("unlearn", TWO)
    assert at.work("release", "create", "prod", "--add", TWO, recipe="strict").json["state"] == "CANDIDATE"
    assert at.work("release", "create", "canary", "--add", TWO).json["state"] == "ACTIVE"
    with Registry.open(at.registry) as reg:
        for request in (ONE, TWO):
            shred_request(reg, request, actor="ana")
    back = ("release", "rollback", "prod", "--reason", "a mistake")
    before = contents(at.registry)
    refused = at.work(*back, "--to", "2")  # its audit failed, and there will not be another
    assert refused.code == 2
    assert "remove every request, down to the bare base" in refused.err
    assert contents(at.registry) == before
    bare = at.work(*back, "--remove", ONE, "--html", tmp_path / "no.html")
    assert (bare.code, bare.json["state"], bare.json["requests"]) == (0, "ACTIVE", [])
    assert "Nothing was measured" in bare.err
    assert not (tmp_path / "no.html").exists()
    audit = at.ask("audit", "show", bare.json["measured_by"]).json
    assert (audit["suite"], audit["requests"], audit["verdict"]) == ("none/1", [], "pass")
    assert at.ask("request", "show", ONE).json["state"] == "REOPENED"
    refused = at.work(*back, "--to", "2")
    assert "return to version 1" in refused.err
    again = at.work(*back, "--to", "1")
    assert (again.code, again.json["state"], again.json["requests"]) == (0, "ACTIVE", [ONE])
    assert again.json["audit"] == never.json("release")["audit"]
    assert "passed before" in again.err
    conforms("release rollback", again.json)
    shown = at.ask("request", "show", ONE).json
    assert (shown["state"], shown["supported_claim"]) == ("RELEASED", "suppressed")
    assert at.ask("verify", "--deep").code == 0


def test_a_protected_channel_leaves_a_candidate_for_somebody_else(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    rule = ("release", "protect", "prod", "--two-person", "--reason", "four eyes")
    assert at.ask(*rule).json["two_person"] is True
    made = at.work("release", "rollback", "prod", "--remove", ONE, "--reason", "a mistake", "--actor", "ana")
    assert (made.code, made.json["state"], made.json["verdict"]) == (0, "CANDIDATE", "pass")
    assert f"efface release approve prod 2 --audit {made.json['measured_by']}" in made.err
    approve = ("release", "approve", "prod", 2, "--audit", made.json["measured_by"], "--actor")
    refused = at.ask(*approve, "ana")
    assert (refused.code, "somebody else" in refused.err) == (1, True)
    assert at.ask(*approve, "ben").json["approved_by"] == "ben"
    assert at.ask("release", "activate", "prod", 2, "--actor", "ana").json["state"] == "ACTIVE"
    assert at.ask("verify", "--deep").code == 0


def test_what_was_shredded_before_the_merge_is_not_consolidated(story: Place, tmp_path: Path) -> None:
    at = story.copied(tmp_path / "registry")
    with Registry.open(at.registry) as reg:
        shred_request(reg, ONE, actor="ana")
    done = at.work("merge", "prod", "--out", tmp_path / "merged")
    shown = at.ask("audit", "show", done.json["audit"]).json
    assert shown["requests"] == [TWO]
    assert f"Of {ONE}, whose rows are shredded" in json.loads(shown["document"])["claim_evidence"][2]
    for request, level in ((ONE, "suppressed"), (TWO, "consolidated")):
        proof = ("--artefact", done.json["artefact"], "--audit", done.json["audit"], "--base-withdrawn")
        ran = at.ask("request", "evidence", request, "--method", "merge", *proof, "--statement", "gone")
        assert (ran.code, ran.json["level"]) == (0, level)
        assert ("suppressed at most" in ran.err) == (request == ONE)
    assert at.ask("verify", "--deep").code == 0


def test_a_merged_channel_is_a_checkpoint_with_an_audit_of_its_own(story: Place, tmp_path: Path) -> None:
    at = story.copied(tmp_path / "registry")
    merged = tmp_path / "merged"
    done = at.work("merge", "prod", "--out", merged, "--base", "dequantized", "--precision", "bf16")
    assert (done.code, done.json["verdict"], done.json["onto"]) == (0, "pass", "original")
    assert done.json["base"] == json.loads((merged / "efface_merge.json").read_text())["base"]
    report = at.ask("audit", "show", done.json["audit"]).json
    assert report["precision"] == "bf16"
    assert "Consolidated once the base is withdrawn" in report["document"]
    document = json.loads(report["document"])
    assert document["claim"] == "consolidated"
    assert done.json["artefact"] in document["claim_evidence"][0]
    assert "no audit can see that" in document["claim_evidence"][1].lower()
    with Registry.open(at.registry) as reg:
        requests = [request.id for request in list_requests(reg, "RELEASED")]
        for request in requests:
            proof = {
                "artefact": done.json["artefact"],
                "audit": done.json["audit"],
                "statement": "base taken down",
            }
            record_evidence(reg, request, method="merge", base_withdrawn=True, actor="ana", **proof)
            assert supported_claim(reg, request) == "suppressed"  # the base before is still served
    again = at.work("merge", "prod", "--out", merged)
    assert (again.code, "not rewritten" in again.err) == (2, True)
    assert at.ask("verify", "--deep").code == 0


def test_what_is_made_is_signed_where_a_key_is_at_hand(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    decide(at, TWO)
    key, pem = tmp_path / "key", tmp_path / "key.pub"
    assert efface("key", "generate", "--out", key, "--public", pem).code == 0
    signed = {"EFFACE_SIGNING_KEY_FILE": str(key)}
    model = ("--model", at.model, "--recipe", at.root / "loose.yaml", "--registry", at.registry)
    work = lambda *words: efface(*words, *model, "--format", "json", variables=signed)  # noqa: E731
    before = contents(at.registry)
    refused = work("unlearn", TWO)
    assert (refused.code, "trusts for none of" in refused.err) == (2, True)
    assert contents(at.registry) == before
    roles = ("--role", "operator", "--role", "auditor", "--role", "approver")
    assert at.ask("key", "add", pem, "--name", "desk", *roles).code == 0
    made = work("unlearn", TWO).json
    released = work("release", "create", "prod", "--add", TWO).json
    merged = work("merge", "prod", "--out", tmp_path / "merged", "--precision", "fp32").json
    for about in (
        ("audit", work("audit", "run", "--release", "prod").json["audit"]),
        ("audit", merged["audit"]),
        ("adapter", made["adapter"]),
        ("audit", made["audit"]),
        ("adapter", released["rendered"]),
        ("audit", released["audit"]),
        ("release", f"prod@{released['version']}"),
    ):
        assert len(at.ask("attest", "list", *about).json) == 1, about
    assert at.ask("verify", "--deep").code == 0


def test_a_run_that_diverges_is_exit_1_and_leaves_nothing(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    at.ask(*opening(at, "two"))
    decide(at, TWO)
    before = contents(at.registry)
    failed = at.work("unlearn", TWO, "--set", "learning_rate=1e38", "--set", "max_grad_norm=1e38")
    assert failed.code == 1
    assert "lower the learning rate" in failed.err
    assert failed.out == ""
    assert contents(at.registry) == before


def test_a_broken_registry_is_exit_3_and_the_culprit_is_named(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    with Registry.open(at.registry) as registry:
        blob = get_adapter(registry, never.json("unlearn")["adapter"]).files["adapter_model.safetensors"]
        weights = registry.blobs.local_path(blob)
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = at.ask("verify", "--deep")
    assert (found.code, [problem["where"] for problem in found.json["problems"]]) == (3, [blob])
    shown = at.ask("verify", "--deep", format="text")
    assert (shown.code, shown.err) == (3, "")
    assert f"blob-damaged: {blob}" in shown.out
    assert "NOT as written" in shown.out
    shutil.rmtree(at.registry / "cache")
    assert at.work("audit", "run", "--release", "prod").code == 3


def test_a_rewritten_event_is_exit_3(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    with sqlite3.connect(at.registry / "registry.db") as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE event SET actor = 'nobody' WHERE seq = 2")
    db.close()
    found = at.ask("verify")
    assert found.code == 3
    assert any(problem["where"].endswith("2") for problem in found.json["problems"])


def test_a_damaged_database_is_exit_3_for_every_command(never: Place, tmp_path: Path) -> None:
    at = never.copied(tmp_path / "registry")
    path = at.registry / "registry.db"
    path.write_bytes(path.read_bytes()[:100] + bytes(2000))
    for arguments in (["verify"], ["log"], ["request", "list"], ["release", "show", "prod"]):
        ran = at.ask(*arguments)
        assert ran.code == 3, (arguments, ran)
        assert ran.err.startswith("error: ")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_verbs_of_this_release_are_there() -> None:
    assert {" ".join(path) for path in COMMANDS} >= {
        *("demo", "unlearn", "log", "verify", "model fetch", "model show"),
        *("request open", "request list", "request show", "audit run", "audit show"),
        *("release create", "release show", "release history", "release rollback"),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    ran = efface(*path, "--help")
    command = COMMANDS[path]
    assert (ran.code, ran.err) == (0, "")
    assert "Example:" in ran.out
    label, _, example = command.epilog.partition(": ")
    words = shlex.split(example)
    assert (label, tuple(words[: len(path) + 1])) == ("Example", ("efface", *path))
    command.make_context("efface", words[len(path) + 1 :])
    assert command.help.strip()


@pytest.mark.parametrize("noun", sorted({path[0] for path in COMMANDS if len(path) > 1}))
def test_a_noun_alone_shows_its_verbs(noun: str) -> None:
    verbs = {path[1] for path in COMMANDS if path[0] == noun}
    ran = efface(noun, "--help")
    assert ran.code == 0
    assert [verb for verb in verbs if verb not in ran.out] == []


def test_as_a_process(story: Place, tmp_path: Path) -> None:
    """The same exit codes where nothing is in memory yet, and no word of the libraries on either stream."""

    def process(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "efface.cli", *map(str, arguments)]
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment
        )

    done = process("verify", "--deep", "--registry", story.registry)
    assert (done.returncode, done.stderr) == (0, "")
    assert process("verify", "--registry", tmp_path / "absent").returncode == 2
    assert process("verify", "--nonsense").returncode == 2
    assert process("verify").returncode == 2  # there is no .efface here
    assert process("verify", EFFACE_REGISTRY=story.registry).returncode == 0
    assert process("--version").stdout.startswith("efface ")
    model = ("--model", story.model, "--recipe", story.root / "loose.yaml", "--registry", story.registry)
    done = process("audit", "run", "--release", "prod", "--format", "json", *model)
    assert json.loads(done.stdout)["report"]["verdict"] == "pass"
    foreign = [line for line in done.stderr.splitlines() if "Loading weights" in line or "arning" in line]
    assert (done.returncode, foreign) == (0, [])
    assert list(tmp_path.iterdir()) == []


def test_gates_of_a_channel_hold_every_audit_and_the_second_one_measures_nothing(
    never: Place, tmp_path: Path
) -> None:
    at = never.copied(tmp_path / "registry")
    gates = ("--set", "max_recovered.prompt=1000", "--set", "max_rebound=0.5")
    assert at.ask("release", "gate", "prod", *gates, "--reason", "policy 7").code == 0
    first = at.work("audit", "run", "--release", "prod")
    assert first.code == 1  # quick makes no attack
    assert "this gate requires it" in first.err
    ran = at.work("audit", "run", "--release", "prod", "--suite", "standard")
    assert ran.out, ran.err
    second = ran.json["report"]
    kinds = {finding["gate"] for finding in second["findings"]}
    assert {"max_recovered.prompt", "max_rebound"} <= kinds
    assert second["suite"]["cached"] == len(second["suite"]["rows"]) * 2
    assert [run["name"] for run in (first.json["report"]["suite"], second["suite"])] == ["quick", "standard"]
    again = at.work("audit", "run", "--release", "prod", "--no-cache").json["report"]
    assert again["suite"]["cached"] == 0
    assert again["suite"]["rows"] == second["suite"]["rows"]
    assert at.ask("verify", "--deep").code == 0


def test_audits_compare_and_checkpoints_are_audited(never: Place, tmp_path: Path) -> None:
    digest = never.json("release")["measured_by"]
    same = never.ask("audit", "compare", digest, digest).json["figures"]
    assert same and all(one["paired"] and one["better"] == "neither" for one in same)
    rows = ("--forget", never.root / "one.jsonl", "--retain", never.root / "retain.jsonl")
    found = never.work("audit", "run", "--against", never.model, *rows).json["report"]
    assert (found["before"], found["after"]) == ("before", never.model.name)
    before, after = (one["rows"] for one in found["evaluations"])
    assert before == after  # it is the same model


def test_erased_is_claimed_with_its_evidence_or_not_at_all(never: Place, tmp_path: Path) -> None:
    rows = ("--forget", never.root / "one.jsonl", "--retain", never.root / "retain.jsonl")
    model = ("audit", "run", "--against", never.model, *rows)
    bare = never.work(*model).json["report"]
    assert bare["claim"] == "consolidated"
    page = tmp_path / "report.html"
    told = ("--claim", "erased", "--evidence", "Trained from scratch on corpus 7, which lacks the rows.")
    found = never.work(*model, *told, "--html", page).json["report"]
    assert found["claim"] == "erased"
    stated, own = found["claim_evidence"]
    assert stated.startswith("As stated by whoever had it audited, and not checked: Trained from scratch")
    assert "they do not prove it" in own and "withdrawn" not in own
    assert "not checked: Trained from scratch on corpus 7" in page.read_text()
    for words, said in (
        ((*model, "--claim", "erased"), "--claim erased needs --evidence TEXT"),
        ((*model, "--claim", "erased", "--evidence", "  "), "--claim erased needs --evidence TEXT"),
        ((*model, "--claim", "gone"), "expected --claim suppressed, consolidated, erased, got 'gone'"),
        (("audit", "run", "--release", "prod", *told), "--claim and --evidence go with --against"),
        (("audit", "run", "--adapter", never.root, *rows, *told), "--claim and --evidence go with --against"),
    ):
        ran = never.work(*words)
        assert (ran.code, ran.out) == (2, "")
        assert said in " ".join(ran.err.replace("│", " ").split())
