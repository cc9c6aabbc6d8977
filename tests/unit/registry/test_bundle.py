"""Evidence bundles: what is in them, what they show, and what they must never hold."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from proof_kit import ORIGIN, key_id, open_as_0_1_0, pem, private, signed_story
from registry_kit import BASE, CANARY, accept, answered, audited, contents, lora, release, seal, stack

from efface.registry import (
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    bundle_members,
    bundle_summary,
    bundle_zip,
    close_request,
    compose,
    get_request,
    ledger,
    log,
    open_request,
    plan_removal,
    record_evidence,
    rule_channel,
    shred_request,
    step_request,
    supported_claim,
)
from efface.registry.attest import attest_audit
from efface.registry.bundle import export_bundle
from efface.registry.bundle_verify import TOFU, UNSIGNED, WITHHELD, verify_bundle
from efface.registry.keys import add_key, added, revoke_key
from efface.registry.log_checkpoints import list_checkpoints, make_checkpoint
from efface.registry.trust import trusted_key
from efface.registry.vault_id import ID_FILE
from efface.registry.verify import verify as verify_registry

SUBJECT = "Ada Heron <ada@example.com>"
NAME = "evidence.efface.zip"


@pytest.fixture
def told(reg: Registry, tmp_path: Path) -> Registry:
    signed_story(reg, tmp_path)
    return reg


def export(reg: Registry, path: Path, **changes: Any):
    values: dict[str, Any] = {"request": "req-000001", **changes}
    return export_bundle(reg, path, **values)


def member(path: Path, name: str) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(name))


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def signed(reg: Registry) -> None:
    make_checkpoint(reg, private("log"), origin=ORIGIN)


def fill(reg: Registry, count: int = 200) -> None:
    """So many further events that audit paths are shorter than all hashes."""
    with reg.write("root") as tx:
        for number in range(20, 20 + count):
            key = trusted_key(pem(number), roles=["auditor"], valid_from=tx.at, name=f"key {number}")
            ledger.append(tx, "key.added", key.key_id, added(key))


def test_a_signed_bundle_verifies(told: Registry, tmp_path: Path) -> None:
    signed(told)
    made = export(told, tmp_path / NAME)
    found = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")])
    assert found.problems == ()
    assert found.warnings == ()
    assert (found.kind, found.id, found.digest) == ("request", "req-000001", made.digest)
    assert found.signed_size == found.tree_size == made.tree_size == len(log(told)) - 1
    assert (found.events, found.withheld) == (made.events, 0)
    assert {(signer.name, signer.known) for signer in found.signers} == {
        ("log 1", True), ("auditor 1", False), ("operator 1", False), ("approver 1", False),
    }  # fmt: skip


def test_what_is_in_it(told: Registry, tmp_path: Path) -> None:
    signed(told)
    export(told, tmp_path / NAME)
    folders = sorted({name.partition("/")[0] for name in names(tmp_path / NAME)})
    assert folders == [
        "attestations", "audits", "checkpoints.json", "facts.json", "keys.json", "ledger.json", "manifest.json",
        "manifests", "reports", "summary.html",
    ]  # fmt: skip
    manifest = member(tmp_path / NAME, "manifest.json")
    assert (manifest["format"], manifest["v"]) == ("efface-evidence-bundle", 2)
    for event in log(told):
        if event.kind == "adapter.sealed":
            path = bundle_members.member("manifests", event.subject_id)
            assert member(tmp_path / NAME, path) == event.body["manifest"]


def test_the_same_registry_gives_the_same_bytes(told: Registry, tmp_path: Path) -> None:
    signed(told)
    one, two = export(told, tmp_path / "one.zip"), export(told, tmp_path / "two.zip")
    assert one.digest == two.digest
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert export(told, tmp_path / "one.zip") == one


def test_exporting_changes_nothing_in_the_registry(told: Registry, tmp_path: Path) -> None:
    signed(told)
    before = contents(told.root)
    export(told, tmp_path / NAME)
    assert contents(told.root) == before


def test_other_files_are_not_overwritten(told: Registry, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("mine")
    with pytest.raises(Conflict):
        export(told, tmp_path / NAME)
    assert (tmp_path / NAME).read_text() == "mine"


def test_audit_paths_where_they_are_shorter(told: Registry, tmp_path: Path) -> None:
    signed(told)
    fill(told)
    signed(told)
    export(told, tmp_path / NAME)
    ledger = member(tmp_path / NAME, "ledger.json")
    assert "hashes" not in ledger
    assert all(entry["path"] for entry in ledger["events"])
    assert len(member(tmp_path / NAME, "checkpoints.json")) == 2
    found = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")])
    assert found.ok
    assert found.tree_size == len(log(told)) - 1


def test_without_a_checkpoint_it_says_so(told: Registry, tmp_path: Path) -> None:
    made = export(told, tmp_path / NAME)
    assert made.signed_size is None
    found = verify_bundle(tmp_path / NAME)
    assert found.ok
    assert found.warnings == (UNSIGNED,)
    assert "Nobody signed this root" in _page(tmp_path / NAME)
    assert len(member(tmp_path / NAME, "ledger.json")["hashes"]) == len(log(told))
    refused = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")])
    assert [problem.where for problem in refused.problems] == ["checkpoints.json"]


def test_an_old_checkpoint_covers_the_beginning_only(told: Registry, tmp_path: Path) -> None:
    size = len(log(told))
    signed(told)
    release(told, plan_removal(told, "prod", ["req-000001"]), reason="a court order")
    made = export(told, tmp_path / NAME)
    assert (made.signed_size, made.tree_size) == (size, len(log(told)))
    found = verify_bundle(tmp_path / NAME)
    assert found.ok
    assert found.warnings[0] == (f"{UNSIGNED} Only the first {size} of {made.tree_size} events are signed.")
    (problem,) = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")]).problems
    assert (problem.where, problem.found) == ("checkpoints.json", f"over {size}")
    assert "Nobody signed this root" in _page(tmp_path / NAME)


def test_with_the_log_s_key_at_hand_it_is_signed(told: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        export(told, tmp_path / NAME, private=private("log"))
    made = export(told, tmp_path / NAME, private=private("log"), origin=ORIGIN)
    assert made.signed_size == made.tree_size == len(log(told)) - 1
    assert len(list_checkpoints(told)) == 1
    step = release(told, plan_removal(told, "prod", ["req-000001"]))
    assert step.version == 2
    again = export(told, tmp_path / "again.zip", private=private("log"))
    assert again.signed_size == again.tree_size == len(log(told)) - 1
    assert [one.checkpoint.origin for one in list_checkpoints(told)] == [ORIGIN, ORIGIN]


def test_a_key_that_only_the_bundle_knows_is_a_warning(told: Registry, tmp_path: Path) -> None:
    signed(told)
    export(told, tmp_path / NAME)
    found = verify_bundle(tmp_path / NAME)
    assert found.ok
    assert found.warnings == (TOFU,)
    other = verify_bundle(tmp_path / NAME, trusted_keys=[pem(9), pem("auditor")])
    assert [(p.where, p.found) for p in other.problems] == [("checkpoints.json", "none")]
    with pytest.raises(InvalidInput):
        verify_bundle(tmp_path / NAME, trusted_keys=["no key"])


def test_what_is_no_bundle(told: Registry, tmp_path: Path) -> None:
    for error, changes in (
        (NotFound, {"request": "req-000009"}),
        (NotFound, {"request": None, "channel": "none"}),
        (InvalidInput, {"request": None}),
        (InvalidInput, {"channel": "prod"}),
        (InvalidInput, {"request": None, "channel": ".."}),
    ):
        with pytest.raises(error):
            export(told, tmp_path / NAME, **changes)
        assert not (tmp_path / NAME).exists()
    with pytest.raises(NotFound):
        verify_bundle(tmp_path / "absent")
    with pytest.raises(NotFound):
        verify_bundle(tmp_path)
    (tmp_path / "text").write_text("PK, but no zip")
    with pytest.raises(InvalidInput):
        verify_bundle(tmp_path / "text")


def test_a_channel_with_all_its_versions(told: Registry, tmp_path: Path) -> None:
    _, second = answered(told, tmp_path, 2)
    first = seal(told, lora(tmp_path / "more", 7), ["req-000001"])
    release(told, stack([first, second]))
    release(told, stack([second]), reason="back <b>to</b> one")
    signed(told)
    export(told, tmp_path / NAME, request=None, channel="prod")
    found = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")])
    assert found.problems == ()
    assert [row["version"] for row in found.facts["releases"]] == [1, 2, 3]
    assert [row["id"] for row in found.facts["requests"]] == ["req-000001", "req-000002"]
    assert "back &lt;b&gt;to&lt;/b&gt; one" in _page(tmp_path / NAME)
    assert "<b>" not in _page(tmp_path / NAME)


def test_the_facts_are_those_of_the_registry(told: Registry, tmp_path: Path) -> None:
    """Through the whole life of a request, after each step."""
    steps = [
        lambda: shred_request(told, "req-000001", actor="ana"),
        lambda: close_request(told, "req-000001", actor="ana"),
        lambda: release(told, plan_removal(told, "prod", ["req-000001"]), reason="appeal"),
        lambda: step_request(told, "req-000001", "WITHDRAWN", reason="r", actor="ana"),
        lambda: None,
    ]
    for number, step in enumerate(steps):
        request = get_request(told, "req-000001")
        export(told, tmp_path / f"{number}.zip")
        found = verify_bundle(tmp_path / f"{number}.zip")
        assert found.ok
        (row,) = found.facts["requests"]
        assert (row["state"], row["claim"], row["shredded_at"]) == (
            request.state, request.claim_level, request.shredded_at,
        )  # fmt: skip
        assert row["supported"] == supported_claim(told, "req-000001")
        assert (row["received_at"], row["due_at"]) == (request.received_at, request.due_at)
        step()


def test_evidence_of_a_merge_and_its_audit(told: Registry, tmp_path: Path) -> None:
    base = "sha256:" + "c" * 64
    proof = audited(told, compose(base, "nf4", []), seed=5, requests=["req-000001"])
    record_evidence(
        told, "req-000001", method="merge", artefact=base, audit=proof.digest, base_withdrawn=True,
        statement="merged & withdrawn", actor="ana",
    )  # fmt: skip
    export(told, tmp_path / "served.zip")
    assert verify_bundle(tmp_path / "served.zip").facts["requests"][0]["supported"] == "suppressed"
    release(told, compose(base, "nf4", []))
    export(told, tmp_path / NAME)
    found = verify_bundle(tmp_path / NAME)
    assert found.ok
    assert found.facts["requests"][0]["supported"] == "consolidated"
    assert proof.digest in {row["digest"] for row in found.facts["audits"]}
    assert "merged &amp; withdrawn" in _page(tmp_path / NAME)
    assert "Not by taking an adapter off" in _page(tmp_path / NAME)


def test_the_rule_of_a_channel_goes_with_it_and_is_held_to(told: Registry, tmp_path: Path) -> None:
    rule_channel(told, "prod", two_person=True, reason="four eyes", actor="cleo")
    rule_channel(told, "canary", two_person=True, reason="not about this one", actor="cleo")
    release(told, compose(BASE, "nf4", []))  # ana creates, ben approves
    for what in ({}, {"request": None, "channel": "prod"}):
        path = tmp_path / f"{len(what)}.zip"
        export(told, path, **what)
        found = verify_bundle(path)
        assert found.ok
        ruled = [line for line in member(path, "ledger.json")["events"] if "channel.ruled" in str(line)]
        assert len(ruled) == 1
        (rule,) = found.facts["channels"]
        assert (rule["channel"], rule["two_person"], rule["by"]) == ("prod", True, "cleo")
        page = _page(path)
        assert "four eyes" in page and bundle_summary.TWO_PERSON in page and "canary" not in page
    rule_channel(told, "prod", two_person=False, reason="one desk", actor="cleo")
    export(told, tmp_path / "given-up.zip")
    assert verify_bundle(tmp_path / "given-up.zip").ok
    assert bundle_summary.ONE_PERSON in _page(tmp_path / "given-up.zip")


def test_a_failed_audit_is_not_left_out(told: Registry, tmp_path: Path) -> None:
    made = stack([seal(told, lora(tmp_path / "more", 7), ["req-000001"])])
    failed = audited(told, made, verdict="fail", seed=8)
    export(told, tmp_path / NAME)
    verdicts = {row["digest"]: row["verdict"] for row in verify_bundle(tmp_path / NAME).facts["audits"]}
    assert verdicts[failed.digest] == "fail"
    assert '<span class="no">fail</span>' in _page(tmp_path / NAME)


def test_deadlines_in_the_summary(reg: Registry, tmp_path: Path) -> None:
    asked = reg.clock() - timedelta(days=40)
    late = open_request(reg, basis="gdpr17", payload=b"x", n_items=3, received_at=asked, actor="ana")
    export(reg, tmp_path / "open.zip", request=late.id)
    assert "not answered in these events" in _page(tmp_path / "open.zip")
    step_request(reg, late.id, "REFUSED", reason="not ours", actor="ana")
    export(reg, tmp_path / "late.zip", request=late.id)
    assert late.due_at
    assert f'<span class="no">missed: due {late.due_at[:10]} ' in _page(tmp_path / "late.zip")
    soon = open_request(reg, basis="gdpr17", payload=b"x", n_items=3, actor="ana")
    step_request(reg, soon.id, "REFUSED", reason="not ours", actor="ana")
    export(reg, tmp_path / "met.zip", request=soon.id)
    assert soon.due_at
    assert f"met: due {soon.due_at[:10]} {soon.due_at[11:19]} UTC" in _page(tmp_path / "met.zip")
    assert verify_bundle(tmp_path / "met.zip").ok


def test_nothing_of_rows_vault_weights_or_subject_is_in_it(told: Registry, tmp_path: Path) -> None:
    request = open_request(
        told, basis="gdpr17", payload=CANARY.encode(), n_items=1, subject_ref=SUBJECT, actor="ana"
    )
    adapter = seal(told, lora(tmp_path / "weights", 3), [accept(told, request.id)])
    release(told, stack([adapter]), "late")
    signed(told)
    made = export(told, tmp_path / NAME, request=request.id)
    assert made.withheld == 0
    data = (tmp_path / NAME).read_bytes()
    assert request.subject_ref
    hidden = [CANARY.encode(), CANARY.encode("utf-16-le"), SUBJECT.encode(), b"ada@example.com"]
    hidden += [hashlib.sha256(text).hexdigest().encode() for text in hidden]
    hidden += [request.subject_ref.encode(), (tmp_path / "weights/adapter_model.safetensors").read_bytes()]
    # The vault's id is in the ledger: it names the vault and opens nothing.
    hidden += [
        path.read_bytes()
        for path in told.vault.folder.rglob("*")
        if path.is_file() and path.stat().st_size and path.name != ID_FILE
    ]
    assert [text for text in hidden if text in data] == []
    found = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")])
    assert found.problems == ()
    assert found.warnings == ()
    assert found.facts["requests"][0]["opening"] == "proven"


def test_of_a_request_of_0_1_0_the_first_event_is_withheld(told: Registry, tmp_path: Path) -> None:
    request = open_as_0_1_0(told, SUBJECT)
    signed(told)
    assert export(told, tmp_path / NAME, request=request).withheld == 1
    assert told.vault.subject(SUBJECT).encode() not in (tmp_path / NAME).read_bytes()
    found = verify_bundle(tmp_path / NAME, trusted_keys=[pem("log")])
    assert found.problems == ()
    assert [WITHHELD in warning for warning in found.warnings] == [True]
    assert found.facts["requests"][0]["opening"] == "stated"
    assert "the word of whoever exported this" in _page(tmp_path / NAME)
    problems = verify_registry(told).problems
    assert [problem.kind for problem in problems] == []


def test_the_keyed_reference_goes_along_when_asked(told: Registry, tmp_path: Path) -> None:
    request = open_request(told, basis="gdpr17", payload=b"x", n_items=1, subject_ref=SUBJECT, actor="ana")
    made = export(told, tmp_path / NAME, request=request.id, with_subject=True)
    assert made.withheld == 0
    found = verify_bundle(tmp_path / NAME)
    assert found.ok
    assert found.facts["requests"][0]["opening"] == "proven"
    assert SUBJECT.encode() not in (tmp_path / NAME).read_bytes()


def test_a_compromised_key_spoils_what_nobody_signed_again(told: Registry, tmp_path: Path) -> None:
    signed(told)
    revoke_key(told, key_id("auditor"), reason="compromised", actor="root")
    signed(told)
    export(told, tmp_path / "bad.zip")
    (problem,) = verify_bundle(tmp_path / "bad.zip", trusted_keys=[pem("log")]).problems
    assert (problem.where, problem.found) == ("attestations", "a revoked key")
    add_key(told, pem(8), name="new", roles=["auditor", "log"], actor="root")
    audit = next(event for event in log(told) if event.kind == "audit.recorded").subject_id
    attest_audit(told, audit, private=private(8), actor="zoe")
    revoke_key(told, key_id("log"), reason="compromised", actor="root")
    export(told, tmp_path / NAME, private=private(8), origin=ORIGIN)
    found = verify_bundle(tmp_path / NAME, trusted_keys=[pem(8)])
    assert found.problems == ()


def test_a_rolled_back_stack_with_a_rendered_adapter(told: Registry, tmp_path: Path) -> None:
    from efface.registry import activate_release, create_release

    one, first = answered(told, tmp_path, 4)
    two, second = answered(told, tmp_path, 5)
    both = stack([first, second])
    rendered = seal(
        told, lora(tmp_path / "rendered", 6), [one, two], kind="rendered", facts={"composition": both.digest}
    )
    made = create_release(told, "big", both, rendered=rendered.digest, reason="r", actor="ana")
    activate_release(told, "big", made.version, audit=audited(told, both).digest, approved_by="ben")
    export(told, tmp_path / NAME, request=one)
    found = verify_bundle(tmp_path / NAME)
    assert found.ok
    assert [row["id"] for row in found.facts["requests"]] == [one]
    shown = {row["digest"] for row in found.facts["adapters"]}
    assert shown == {first.digest, rendered.digest}
    assert BASE in {row["base"] for row in found.facts["adapters"]}


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"sqlalchemy", "alembic", "torch", "numpy", "fsspec", "huggingface_hub", "socket",
                                  "psycopg", "keyring", "http", "requests"}:
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Blocked())
for name in ("socket", "_socket"):
    sys.modules[name] = None
"""


def test_it_verifies_without_database_torch_or_network(told: Registry, tmp_path: Path) -> None:
    signed(told)
    export(told, tmp_path / NAME)
    program = BLOCKED + (
        "from pathlib import Path\n"
        "from efface.registry.bundle_verify import verify_bundle\n"
        f"found = verify_bundle(Path({str(tmp_path / NAME)!r}), trusted_keys=[{pem('log')!r}])\n"
        "print(found.ok, found.problems, found.events)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ran.stdout.startswith("True () "), ran.stderr


def test_the_words_of_the_summary_belong_to_the_version(told: Registry, tmp_path: Path) -> None:
    """Verifiers write the page again: other words would fail every bundle that is out there. Raise the version."""
    signed(told)
    shred_request(told, "req-000001", actor="ana")
    export(told, tmp_path / NAME)
    page = re.sub(r"(hmac-)?sha256:[0-9a-f]{64}|\d{4}-\d\d-\d\d [0-9:]+ UTC", "*", _page(tmp_path / NAME))
    assert bundle_members.VERSION == 2
    assert hashlib.sha256(page.encode()).hexdigest() == GOLDEN


GOLDEN = "a225f939981210ae696dd2a1b4290f005e192c4be3e6898d91e1dbc7a9912b3c"


def test_a_zip_has_one_spelling(tmp_path: Path) -> None:
    members = {"facts.json": b"{}", "audits/" + "a" * 64 + ".json": b"[]", "summary.html": b""}
    data = bundle_zip.pack(members)
    assert bundle_zip.unpack(data) == members
    (tmp_path / "x.zip").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == members
    for name in ("../x.json", "/x.json", "x.exe", "a/b.json", "A.json", "x.json\n", ""):
        with pytest.raises(InvalidInput):
            bundle_zip.pack({name: b""})


def _page(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("summary.html").decode()
