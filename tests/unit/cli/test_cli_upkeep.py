"""`efface gc`, `vault`, `log`, `verify` and `doctor`."""

import json
import shutil
from pathlib import Path

import pytest
from cli_kit import checked, efface
from registry_kit import CANARY, Clock, answered, ask, contents

from efface.registry import Registry, read_payload


@pytest.fixture
def home(tmp_path: Path) -> Path:
    root = tmp_path / "registry"
    with Registry.open(root, create=True, clock=Clock()) as reg:
        answered(reg, tmp_path, 1)
        ask(reg)
    return root


def litter(root: Path) -> str:
    """A blob that no event names, as a writer leaves it that dies early."""
    with Registry.open(root) as reg:
        return reg.blobs.put(b"left behind")


def test_gc_plans_and_then_deletes_what_it_planned(home: Path, tmp_path: Path) -> None:
    extra = litter(home)
    assert checked(home, "gc")["plan"]["items"] == []  # too young
    before = contents(home)
    plan = checked(home, "gc", "--min-age", 0, "--plan", tmp_path / "gc.json")
    assert [item["name"] for item in plan["plan"]["items"]] == [extra]
    assert contents(home) == before
    assert json.loads((tmp_path / "gc.json").read_text()) == plan["plan"]
    done = checked(home, "gc", "--plan", tmp_path / "gc.json", "--yes")
    assert [item["name"] for item in done["deleted"]] == [extra]
    twice = checked(home, "gc", "--plan", tmp_path / "gc.json", "--yes")
    assert (twice["deleted"], [item["name"] for item in twice["left"]]) == ([], [extra])


def test_a_plan_that_was_changed_deletes_nothing(home: Path, tmp_path: Path) -> None:
    litter(home)
    file = tmp_path / "gc.json"
    plan = checked(home, "gc", "--min-age", 0, "--plan", file)["plan"]
    (kept,) = list(checked(home, "adapter", "list")[0]["files"].values())[:1]
    before = contents(home)
    plan["items"][0]["name"] = kept
    for text in (json.dumps(plan), "[]", "{}", "not JSON", "[" * 100_000, ""):
        file.write_text(text)
        assert efface("gc", "--plan", file, "--yes", "--registry", home).code == 2, text[:20]
    assert efface("gc", "--plan", tmp_path / "absent", "--yes", "--registry", home).code == 2
    assert contents(home) == before


def test_a_plan_is_written_where_it_can_be(home: Path, tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "absent" / "gc.json"):
        assert efface("gc", "--plan", file, "--registry", home).code == 2
    litter(home)
    text = efface("gc", "--min-age", 0, "--registry", home)
    assert text.out.splitlines()[-1] == "1 to delete, 11 bytes"
    assert "Nothing was deleted" in text.err


def test_verify_lists_extras_and_is_content_with_them(home: Path) -> None:
    extra = litter(home)
    assert checked(home, "verify")["extras"] == []
    assert checked(home, "verify", "--deep")["extras"] == [extra]
    text = efface("verify", "--deep", "--registry", home)
    assert (text.code, f"extra: {extra}" in text.out, "efface gc" in text.err) == (0, True, True)


def test_verify_says_what_it_did_not_open_and_what_belongs_to_nothing(home: Path, tmp_path: Path) -> None:
    def counts(*words: str) -> tuple[int, int]:
        record = checked(home, "verify", *words)
        return record["vault_checked"], record["vault_unchecked"]

    assert (counts("--deep"), counts()) == ((2, 0), (0, 2))
    assert "not checked: 2 (--deep" in efface("verify", "--registry", home).out
    (home / "vault" / "rows.txt").write_text("rows in the clear")
    text = efface("verify", "--deep", "--registry", home)
    assert (text.code, "extra: vault/rows.txt" in text.out, "efface gc" in text.err) == (0, True, False)
    (home / "vault").rename(tmp_path / "elsewhere")
    assert counts("--deep") == (0, 2)
    assert "no vault folder" in efface("verify", "--deep", "--registry", home).out


def test_the_vault_shows_keys_and_never_rows(home: Path) -> None:
    shown = checked(home, "vault", "show")
    assert (shown["entries"], shown["shredded"]) == (2, 0)
    assert shown["wrapped_by"] == [{"key": shown["key"], "entries": 2}]
    assert CANARY not in efface("vault", "show", "--registry", home).out


def test_a_rotation_is_planned_then_done_and_the_rows_stay(home: Path, tmp_path: Path) -> None:
    old = checked(home, "vault", "show")["key"]
    before = contents(home)
    plan = checked(home, "vault", "rotate", "--to", "file")
    assert (plan["done"], plan["plan"]["old"], len(plan["plan"]["todo"])) == (False, old, 2)
    assert contents(home) == before
    checked(home, "vault", "rotate", "--to", "file", "--yes")
    assert checked(home, "vault", "show")["key"] != old
    with Registry.open(home) as reg:
        assert read_payload(reg, "req-000001") == CANARY.encode()
    assert efface("vault", "rotate", "--to", "the moon", "--registry", home).code == 2


def test_a_key_file_that_is_needed_is_kept(home: Path) -> None:
    assert checked(home, "vault", "drop-key-file")["done"] is False
    assert efface("vault", "drop-key-file", "--yes", "--registry", home).code == 2
    assert (home / "vault" / "master.key").exists()


def test_orphans_are_planned_then_destroyed(home: Path) -> None:
    with Registry.open(home) as reg:
        for number in (8, 9):
            reg.vault.put(f"req-00000{number}", b"rows that no event names")
    before = contents(home)
    assert "efface vault drop-orphans" in efface("verify", "--deep", "--registry", home).err
    plan = checked(home, "vault", "drop-orphans")
    assert (plan["done"], [one["name"] for one in plan["plan"]]) == (
        False,
        ["req-000008.json", "req-000009.json"],
    )
    text = efface("vault", "drop-orphans", "req-000009.json", "--registry", home)
    assert (text.code, "req-000008" in text.out) == (0, False)
    assert "no way back" in text.err
    assert efface("vault", "drop-orphans", "req-000001.json", "--yes", "--registry", home).code == 2
    assert contents(home) == before
    done = checked(home, "vault", "drop-orphans", "req-000009.json", "--yes")
    assert (done["done"], [one["name"] for one in done["plan"]]) == (True, ["req-000009.json"])
    assert checked(home, "verify", "--deep")["extras"] == ["vault/req-000008.json"]
    checked(home, "vault", "drop-orphans", "--yes")
    assert checked(home, "vault", "drop-orphans") == {"done": False, "plan": []}
    assert checked(home, "verify", "--deep")["extras"] == []


def test_another_vault_is_refused_named_and_bound_when_asked_for(home: Path, tmp_path: Path) -> None:
    mine = checked(home, "vault", "show")["id"]
    with Registry.open(tmp_path / "other", create=True) as reg:
        ask(reg)
    shutil.move(home / "vault", tmp_path / "away")
    shutil.copytree(tmp_path / "other/vault", home / "vault")
    refused = efface("request", "list", "--registry", home)
    assert (refused.code, refused.out, mine in refused.err) == (2, "", True)
    assert "efface vault bind" in refused.err
    verified = efface("verify", "--registry", home)
    assert (verified.code, f"vault-other: vault.id: expected the vault {mine}" in verified.out) == (3, True)
    assert efface("doctor", "--registry", home).code == 1
    plan = checked(home, "vault", "bind", "--reason", "disk lost")
    assert (plan["done"], plan["plan"]["old"], plan["plan"]["missing"]) == (False, mine, ["req-000002"])
    assert efface("request", "list", "--registry", home).code == 2
    done = checked(home, "vault", "bind", "--reason", "disk lost", "--yes")
    assert (done["done"], checked(home, "vault", "show")["id"]) == (True, done["plan"]["new"])
    assert efface("request", "list", "--registry", home).code == 0


def test_a_registry_without_a_vault_says_so(tmp_path: Path) -> None:
    Registry.open(tmp_path / "registry", create=True).close()
    for verb in (["show"], ["rotate", "--to", "file", "--yes"], ["drop-key-file"]):
        ran = efface("vault", *verb, "--registry", tmp_path / "registry")
        assert (ran.code, "a vault beside the registry" in ran.err) == (2, True)


def test_log_filters(home: Path) -> None:
    kinds = [event["kind"] for event in checked(home, "log")]
    assert [e["kind"] for e in checked(home, "log", "--after", 1, "--limit", 1)] == kinds[-1:]
    assert {e["kind"] for e in checked(home, "log", "--kind", "adapter.sealed")} == {"adapter.sealed"}
    assert checked(home, "log", "--kind", "nothing.happened") == []


def test_doctor_is_content_with_a_sound_machine(home: Path, tmp_path: Path) -> None:
    names = [check["name"] for check in checked(home, "doctor")["checks"]]
    assert names[0] == "python" and {"torch", "registry", "schema", "vault key", "free disk"} <= set(names)
    assert checked(tmp_path / "absent", "doctor")["ok"]
    assert not (tmp_path / "absent").exists()


def test_doctor_names_what_is_wrong(home: Path) -> None:
    (home / "vault" / "master.key").unlink()
    found = checked(home, "doctor", code=1)
    assert [check["name"] for check in found["checks"] if not check["ok"]] == ["vault key"]
    (home / "registry.db").write_bytes(b"junk" * 100)
    text = efface("doctor", "--registry", home)
    assert (text.code, "WRONG  registry" in text.out) == (1, True)
