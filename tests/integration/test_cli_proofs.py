"""`efface key`, `efface checkpoint` and `efface bundle` from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_kit import Ran, efface
from registry_kit import answered, release, stack

from efface.registry import Registry, log, signing
from efface.registry.checkpoints import verify_note


class Shell:
    """Commands on one registry, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = folder / "registry"

    def __call__(self, *arguments: object) -> Ran:
        return efface(*arguments, "--registry", self.registry)

    def json(self, *arguments: object) -> Any:
        ran = self(*arguments, "--format", "json")
        assert ran.code == 0, ran.err
        return ran.json


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A registry with an active release, a key of the log in `log.key` and `log.pub`, trusted."""
    run = Shell(tmp_path)
    with Registry.open(run.registry, create=True) as reg:
        release(reg, stack([answered(reg, tmp_path, 1)[1]]))
    made = efface("key", "generate", "--out", tmp_path / "log.key")
    assert made.code == 0
    (tmp_path / "log.pub").write_text(made.out)
    assert run("key", "add", tmp_path / "log.pub", "--name", "log 1", "--role", "log").code == 0
    return run


def test_keys_are_made_added_listed_and_revoked(tmp_path: Path) -> None:
    run = Shell(tmp_path)
    made = efface("key", "generate", "--out", tmp_path / "k", "--format", "json").json
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert made["key_id"] == signing.key_id(made["public"])
    assert "PRIVATE" not in json.dumps(made)
    (tmp_path / "k.pub").write_text(made["public"])
    add = ("key", "add", tmp_path / "k.pub", "--name", "zoe", "--role", "auditor", "--role", "log")
    added = run.json(*add, "--valid-from", "2026-01-01T00:00:00Z", "--valid-until", "2027-01-01")
    assert (added["roles"], added["valid_until"]) == (["auditor", "log"], "2027-01-01T00:00:00.000000Z")
    (listed,) = run.json("key", "list")
    assert listed == added
    assert "zoe" in run("key", "list").out
    ended = run.json("key", "revoke", made["key_id"][:15], "--reason", "retired")
    assert ended["revoked_reason"] == "retired"
    assert run("key", "revoke", made["key_id"], "--reason", "retired").code == 2


def test_bad_keys_are_refused(tmp_path: Path) -> None:
    run = Shell(tmp_path)
    efface("key", "generate", "--out", tmp_path / "k")
    again = efface("key", "generate", "--out", tmp_path / "k")
    assert (again.code, again.out) == (2, "")
    (tmp_path / "pub").write_text(signing.public_pem(signing.generate()))
    for file, role in (
        (tmp_path / "k", "log"), (tmp_path / "absent", "log"), (tmp_path, "log"), (tmp_path / "pub", "root"),
    ):  # fmt: skip
        ran = run("key", "add", file, "--name", "x", "--role", role)
        assert (ran.code, ran.out) == (2, "")
        assert "PRIVATE" not in ran.err
    assert not run.registry.exists()


def test_a_checkpoint_is_made_listed_and_proven(shell: Shell) -> None:
    key = ("--key", shell.folder / "log.key")
    assert shell("checkpoint", "create", *key).code == 2  # the first one needs an origin
    made = shell("checkpoint", "create", *key, "--origin", "example.com/log")
    assert made.code == 0
    public = (shell.folder / "log.pub").read_text()
    head = verify_note(made.out, [("example.com/log", public)], "example.com/log")
    with Registry.open(shell.registry) as reg:
        *covered, signed = log(reg)
    assert (head.tree_size, signed.kind) == (len(covered), "checkpoint.signed")
    assert shell("checkpoint", "create", *key).out == made.out
    (listed,) = shell.json("checkpoint", "list")
    assert (listed["root"], listed["note"]) == (head.root, made.out)
    size = ("--size", head.tree_size)
    proof = shell.json("checkpoint", "prove", "--event", 2, *size)
    assert (proof["root"], proof["seq"]) == (head.root, 2)
    grown = shell.json("checkpoint", "prove", "--from", 2, "--size", 5)
    assert (grown["first"], grown["tree_size"]) == (2, 5)
    assert f"root         {head.root}" in shell("checkpoint", "prove", "--event", 2, *size).out
    verified = shell("verify")
    assert verified.code == 0
    for wrong in ((), ("--event", 1, "--from", 1), ("--event", 99), ("--from", 9, "--size", 3)):
        assert shell("checkpoint", "prove", *wrong).code == 2


def test_only_a_key_of_the_log_signs(shell: Shell) -> None:
    efface("key", "generate", "--out", shell.folder / "other")
    ran = shell("checkpoint", "create", "--key", shell.folder / "other", "--origin", "example.com/log")
    assert (ran.code, ran.out) == (1, "")
    assert shell("checkpoint", "create", "--origin", "example.com/log").code == 2  # no key at all


def test_a_bundle_is_exported_and_verified(shell: Shell) -> None:
    file, pub = shell.folder / "evidence.efface.zip", shell.folder / "log.pub"
    made = shell.json(
        "bundle", "export", "req-000001", "--out", file, "--key", shell.folder / "log.key",
        "--origin", "example.com/log",
    )  # fmt: skip
    assert made["path"] == str(file)
    assert made["signed_size"] == made["tree_size"]
    found = efface("bundle", "verify", file, "--key", pub, "--format", "json")
    assert (found.code, found.err) == (0, "")
    assert (found.json["ok"], found.json["problems"], found.json["id"]) == (True, [], "req-000001")
    assert found.json["digest"] == made["digest"]
    assert found.json["facts"]["requests"][0]["supported"] == "suppressed"
    text = efface("bundle", "verify", file)
    assert text.code == 0
    assert "warning:" in text.err
    assert "req-000001  RELEASED  suppressed  no deadline" in text.out
    assert "signed by log 1" in text.out


def test_a_channel_without_a_key_is_exported_unsigned(shell: Shell) -> None:
    file = shell.folder / "prod.efface.zip"
    ran = shell("bundle", "export", "prod", "--out", file)
    assert ran.code == 0
    assert "No signed checkpoint" in ran.err
    found = efface("bundle", "verify", file)
    assert found.code == 0
    assert "channel prod" in found.out
    assert efface("bundle", "verify", file, "--key", shell.folder / "log.pub").code == 1


def test_a_changed_bundle_fails_and_another_file_is_bad_input(shell: Shell) -> None:
    file = shell.folder / "evidence.efface.zip"
    assert shell("bundle", "export", "req-000001", "--out", file).code == 0
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    ran = efface("bundle", "verify", file)
    assert ran.code == 1
    assert "NOT as written" in ran.out
    assert efface("bundle", "verify", file, "--format", "json").json["facts"] is None
    assert efface("bundle", "verify", shell.folder / "log.pub").code == 2
    assert efface("bundle", "verify", shell.folder / "absent").code == 2
    assert efface("bundle", "verify", file, "--key", shell.folder / "log.key").code == 2


def test_what_cannot_be_exported(shell: Shell) -> None:
    file = shell.folder / "x.zip"
    for about in ("req-000009", "none", "../x"):
        assert shell("bundle", "export", about, "--out", file).code == 2
        assert not file.exists()
    file.write_text("mine")
    assert shell("bundle", "export", "prod", "--out", file).code == 2
    assert file.read_text() == "mine"
