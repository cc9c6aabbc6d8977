"""`efface request`: from receipt to closing, each refusal with its way out, and plans that change nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cli_kit import FORGET, RETAIN, checked, efface, jsonl
from registry_kit import BASE, Clock, answered, ask, audited, contents, release, stack

from efface.recipes.data import from_payload
from efface.registry import Registry, compose, read_payload

ONE, TWO = "req-000001", "req-000002"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A registry with one request that is released on prod."""
    root = tmp_path / "registry"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        _, adapter = answered(reg, tmp_path, 1)
        release(reg, stack([adapter]))
    return root


def opened(root: Path, rows: Path, *more: object) -> str:
    return checked(root, *opening(rows), *more)["id"]


def opening(rows: Path) -> tuple[object, ...]:
    files = (jsonl(rows / "forget.jsonl", FORGET), "--retain", jsonl(rows / "retain.jsonl", RETAIN))
    return ("request", "open", "--forget", *files, "--basis", "gdpr17")


def state(root: Path, request: str) -> str:
    return checked(root, "request", "show", request)["state"]


def test_a_repeat_subject_is_told_on_stderr_without_its_name(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    assert opened(root, tmp_path, "--subject-ref", "Zoë Zebra") == ONE
    words = (*opening(tmp_path), "--registry", root)
    again = efface(*words, "--subject-ref", " Zoë Zebra ", "--format", "json")
    assert again.json["earlier_requests"] == [ONE]
    assert "asked before: req-000001" in again.err
    assert "Zebra" not in again.out + again.err
    other = efface(*words, "--subject-ref", "Ana")
    assert (other.code, other.err) == (0, "")


def test_the_scope_of_a_request_goes_into_the_vault_with_it(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    sets = {"heldout": "heldout", "entailed": "entailed", "format-rows": "formats", "unrelated": "unrelated"}
    rows = {
        option: jsonl(tmp_path / f"{option}.jsonl", [{"prompt": f"what is {option}", "completion": "tokyo"}])
        for option in sets
    }
    named = [part for option, file in rows.items() for part in (f"--{option}", file)]
    assert opened(root, tmp_path, *named) == ONE
    with Registry.open(root) as reg:
        data = from_payload(read_payload(reg, ONE))
    found = {name: [row.id for row in getattr(data, name)] for name in sets.values()}
    assert found == {name: [f"{option}-1"] for option, name in sets.items()}
    # What is to be measured as forgotten cannot be kept.
    clash = efface(
        *opening(tmp_path), "--unrelated", tmp_path / "forget.jsonl", "--registry", tmp_path / "new"
    )
    assert clash.code == 2
    assert "asks the same" in clash.err
    assert not (tmp_path / "new").exists()


def test_scope_rows_go_with_an_adapter_that_has_no_request_to_bring_them(tmp_path: Path) -> None:
    words = ("audit", "run", "--release", "prod", "--model", tmp_path, "--registry", tmp_path / "none")
    for option in ("--heldout", "--entailed", "--format-rows", "--unrelated"):
        refused = efface(*words, option, "rows.jsonl")
        assert refused.code == 2
        assert "a request brings its own" in refused.err


def test_a_request_walks_to_acceptance_and_the_ledger_keeps_the_reasons(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    opened(root, tmp_path)
    assert checked(root, "request", "verify", ONE, "--reason", "passport seen")["state"] == "VERIFIED"
    assert checked(root, "request", "accept", ONE)["state"] == "ACCEPTED"
    (event,) = checked(root, "log", "--kind", "request.verified")
    assert event["body"] == {"reason": "passport seen"}
    assert checked(root, "log", "--after", event["seq"])[0]["kind"] == "request.accepted"
    again = efface("request", "verify", ONE, "--registry", root)
    assert again.code == 2
    assert again.err.startswith("error: expected TRAINED or REFUSED or WITHDRAWN after ACCEPTED")


@pytest.mark.parametrize(("verb", "ended"), [("refuse", "REFUSED"), ("withdraw", "WITHDRAWN")])
def test_an_end_needs_a_reason_and_is_for_good(tmp_path: Path, verb: str, ended: str) -> None:
    root = tmp_path / "registry"
    opened(root, tmp_path)
    assert efface("request", verb, ONE, "--registry", root).code == 2
    assert state(root, ONE) == "RECEIVED"
    assert checked(root, "request", verb, ONE, "--reason", "why")["state"] == ended
    assert efface("request", "accept", ONE, "--registry", root).code == 2


@pytest.mark.parametrize("verb", ["withdraw", "refuse"])
def test_a_request_that_is_served_is_rolled_back_first(home: Path, verb: str) -> None:
    before = contents(home)
    refused = efface("request", verb, ONE, "--reason", "why", "--registry", home)
    assert refused.code == 2
    assert "got one in prod@1" in refused.err
    assert "efface release rollback prod --remove req-000001 --reason TEXT" in refused.err
    assert contents(home) == before


def test_extension_moves_the_day_that_is_due_once(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    now = datetime.now(UTC)
    opened(root, tmp_path, "--received-at", (now - timedelta(days=2)).isoformat())
    shown = checked(root, "request", "show", ONE)
    assert (shown["effective_due_at"], shown["overdue"]) == (shown["due_at"], False)
    extended = checked(root, "request", "extend", ONE, "--months", 2, "--reason", "eleven at once")
    assert extended["effective_due_at"] == extended["extended_to"] > extended["due_at"]
    for months in ("1", "3"):
        again = efface("request", "extend", ONE, "--months", months, "--reason", "x", "--registry", root)
        assert again.code == 2


def test_lists_by_state_page_and_lateness(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        for basis in ("gdpr17", "copyright", "gdpr17"):
            ask(reg, basis=basis)

    def ids(*more: object) -> list[str]:
        return [record["id"] for record in checked(root, "request", "list", *more)]

    assert ids() == [ONE, TWO, "req-000003"]
    assert ids("--limit", 1) == [ONE]
    assert ids("--after", ONE, "--limit", 1) == [TWO]
    assert ids("--overdue") == [ONE, "req-000003"]
    assert ids("--overdue", "--after", ONE) == ["req-000003"]
    checked(root, "request", "refuse", ONE, "--reason", "unfounded")
    assert ids("--state", "refused") == [ONE]
    assert ids("--overdue") == ["req-000003"]
    text = efface("request", "list", "--registry", root).out.splitlines()
    assert [("OVERDUE" in line) for line in text] == [False, False, False, True]
    assert efface("request", "list", "--state", "lost", "--registry", root).code == 2


def test_show_says_what_answers_it_and_what_may_be_claimed(home: Path) -> None:
    shown = checked(home, "request", "show", ONE)
    assert shown["releases"] == [{"channel": "prod", "version": 1}]
    assert (shown["supported_claim"], shown["evidence"], len(shown["adapters"])) == ("suppressed", [], 1)
    text = efface("request", "show", ONE, "--registry", home).out
    assert "served by        prod@1" in text
    assert "overdue          no" in text
    assert "None" not in text


def test_shredding_shows_its_plan_first_and_then_keeps_the_ledger_whole(home: Path) -> None:
    left = home / "work" / ONE
    left.mkdir(parents=True)
    (left / "state.safetensors").write_bytes(b"optimizer")
    before = contents(home)
    planned = efface("request", "shred", ONE, "--registry", home)
    assert (planned.code, contents(home)) == (0, before)
    assert "Nothing was destroyed" in planned.err
    assert f"work/{ONE}/state.safetensors  9 bytes" in planned.out
    record = checked(home, "request", "shred", ONE)
    assert (record["done"], record["plan"]["vault_entry"]) == (False, True)
    done = checked(home, "request", "shred", ONE, "--yes")
    assert (done["done"], done["request"]["state"]) == (True, "SHREDDED")
    assert done["plan"]["files"] == record["plan"]["files"]
    assert not left.exists()
    again = checked(home, "request", "shred", ONE, "--yes")
    assert (again["plan"], again["request"]) == (
        {"vault_entry": False, "files": [], "folders": []},
        done["request"],
    )
    assert checked(home, "verify", "--deep")["problems"] == []


def test_rows_that_are_still_needed_are_not_shredded(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    opened(root, tmp_path)
    for more in ([], ["--yes"]):
        refused = efface("request", "shred", ONE, *more, "--registry", root)
        assert refused.code == 2
        assert "Release, refuse or withdraw it first" in refused.err


def test_a_claim_is_never_more_than_its_evidence(home: Path) -> None:
    assert efface("request", "close", ONE, "--registry", home).code == 2  # not shredded yet
    checked(home, "request", "shred", ONE, "--yes")
    for claim in ("consolidated", "erased"):
        beyond = efface("request", "close", ONE, "--claim", claim, "--registry", home)
        assert beyond.code == 1
        assert "where the evidence shows suppressed" in beyond.err
    assert efface("request", "close", ONE, "--claim", "forgotten", "--registry", home).code == 2
    closed = checked(home, "request", "close", ONE)
    assert (closed["state"], closed["claim_level"]) == ("CLOSED", "suppressed")


def test_evidence_of_a_merge_carries_a_higher_claim(home: Path) -> None:
    merged = "sha256:" + "c" * 64
    with Registry.open(home) as reg:
        proof = audited(reg, compose(merged, "nf4", []), requests=[ONE])
    words = ("request", "evidence", ONE, "--method", "merge", "--artefact", merged, "--audit", proof.digest)
    words = (*words, "--statement", "merged; the base before is deleted")
    refused = efface(*words, "--registry", home)
    assert (refused.code, "a passing audit" in refused.err) == (2, False)
    made = checked(home, *words, "--base-withdrawn")
    assert (made["level"], made["artefact"]) == ("consolidated", merged)
    other = efface(*words[:6], BASE, *words[7:], "--base-withdrawn", "--registry", home)
    assert other.code == 2  # it replaces itself
    shown = checked(home, "request", "show", ONE)
    assert shown["supported_claim"] == "suppressed"  # the base before is still served
    assert "consolidated by merge" in efface("request", "show", ONE, "--registry", home).out


@pytest.mark.parametrize("verb", ["show", "verify", "accept", "shred", "close"])
def test_an_unknown_request_is_bad_input(home: Path, verb: str) -> None:
    ran = efface("request", verb, "req-000009", "--registry", home)
    assert (ran.code, ran.out) == (2, "")
    assert "efface request list" in ran.err
