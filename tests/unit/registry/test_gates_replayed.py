"""Events that no verb would append, chained as they should be: `verify` and bundles ask the gates again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import MERGED, alone, proven, shredded, state
from registry_kit import BASE, answered, ask, audited, lora, release, seal, stack
from tamper_kit import forge

from efface.registry import (
    BrokenRegistry,
    Conflict,
    GateFailed,
    Registry,
    activate_release,
    approve_release,
    bundle_summary,
    compose,
    create_release,
    ledger,
    log,
    plan_removal,
    rebuild,
    shred_request,
    step_request,
    verify,
)
from efface.registry import bundle_facts as facts
from efface.registry.canon import digest_json

REASON = {"reason": "r"}


def caught(reg: Registry, match: str) -> None:
    """The newest event is named, by `verify`, by a replay and by whoever reads it in a bundle."""
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where) == ("replay", f"event {len(log(reg))}")
    with pytest.raises(BrokenRegistry, match=match):
        rebuild(reg)
    with pytest.raises(BrokenRegistry, match=match):
        facts.facts(log(reg), {})


def moved(state: str, **body: Any) -> tuple[str, str, Mapping[str, Any]]:
    return f"release.{state}", "prod@1", {"channel": "prod", "version": 1, **body}


AUDITS = {
    "failed": ({"verdict": "fail"}, "failed"),
    "at another precision": ({"precision": "bf16"}, "bf16"),
    "of another composition": ({"composition": compose(BASE, "nf4", []).digest}, "an audit of sha256"),
}


@pytest.mark.parametrize("kind", AUDITS)
def test_a_release_approved_on_such_an_audit(reg: Registry, tmp_path: Path, kind: str) -> None:
    changes, match = AUDITS[kind]
    _, adapter = answered(reg, tmp_path, 1)
    create_release(reg, "prod", stack([adapter]), rendered=None, reason="r", actor="ana")
    forge(reg, moved("approved", audit=audited(reg, stack([adapter]), **changes).digest))
    caught(reg, match)


def test_a_release_approved_on_an_audit_that_passed_over_a_request(reg: Registry, tmp_path: Path) -> None:
    (one, first), (two, second) = (answered(reg, tmp_path, seed) for seed in (1, 2))
    made = stack([first, second])
    create_release(reg, "prod", made, rendered=None, reason="r", actor="ana")
    lacking = audited(reg, made, requests=[one]).digest
    before = log(reg)
    for act in (
        lambda: activate_release(reg, "prod", 1, audit=lacking, approved_by="ben"),
        lambda: approve_release(reg, "prod", 1, audit=lacking, approved_by="ben"),
    ):
        with pytest.raises(GateFailed, match=f"passed over {two}"):
            act()
    assert log(reg) == before
    forge(reg, moved("approved", audit=lacking))
    caught(reg, f"passed over {two}")


def test_an_audit_names_those_that_have_rows_and_more_if_it_likes(reg: Registry, tmp_path: Path) -> None:
    pairs = [answered(reg, tmp_path, seed) for seed in (1, 2, 3)]
    (one, first), (two, second), (three, _) = pairs
    release(reg, stack([first]))
    shred_request(reg, one, actor="ana")
    made = stack([first, second])
    create_release(reg, "prod", made, rendered=None, reason="r", actor="ana")
    measured = audited(reg, made, requests=[two, three]).digest
    activate_release(reg, "prod", 2, audit=measured, approved_by="ben")
    shred_request(reg, two, actor="ana")
    bare = compose(BASE, "nf4", [])
    create_release(reg, "prod", bare, rendered=None, reason="r", actor="ana")
    activate_release(reg, "prod", 3, audit=audited(reg, bare, requests=[]).digest, approved_by="ben")
    assert not verify(reg).problems
    assert {row["state"] for row in facts.facts(log(reg), {})["requests"]} == {"REOPENED", "TRAINED"}


def test_a_removal_is_not_let_through_by_an_audit_that_passed_over_who_stays(
    reg: Registry, tmp_path: Path
) -> None:
    below, first = answered(reg, tmp_path, 1)
    release(reg, stack([first]))
    top = ask(reg)
    second = seal(reg, lora(tmp_path / "top", 2), [top], trained_on=stack([first]).digest)
    release(reg, stack([first, second]))
    audited(reg, stack([second]), requests=[])
    with pytest.raises(Conflict, match="trained on"):
        plan_removal(reg, "prod", [below])
    audited(reg, stack([second]), requests=[top])
    assert plan_removal(reg, "prod", [below]) == stack([second])


def test_a_release_approved_on_no_audit(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    create_release(reg, "prod", stack([adapter]), rendered=None, reason="r", actor="ana")
    forge(reg, moved("approved", audit="sha256:" + "0" * 64))
    caught(reg, "audit")


def test_a_passing_audit_still_activates(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    create_release(reg, "prod", stack([adapter]), rendered=None, reason="r", actor="ana")
    audit = audited(reg, stack([adapter])).digest
    forge(reg, moved("approved", audit=audit), moved("active", audit=audit))
    assert rebuild(reg) == len(log(reg))
    assert verify(reg).ok


def test_a_candidate_under_another_digest(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    body = {
        "channel": "prod",
        "version": 1,
        "composition": stack([adapter]).record(),
        "rendered": None,
        **REASON,
    }
    forge(reg, ("release.candidate", "prod@1", {**body, "digest": compose(BASE, "nf4", []).digest}))
    caught(reg, "the digest of the composition")


@pytest.mark.parametrize("claim", ["consolidated", "erased", "forgotten", None])
def test_a_request_closed_with_more_than_it_shows(reg: Registry, tmp_path: Path, claim: str | None) -> None:
    request_id, _ = shredded(reg, tmp_path)
    forge(reg, ("request.closed", request_id, {"claim": claim}))
    caught(reg, "claim")


def test_a_request_closed_as_suppressed_that_nothing_suppresses(reg: Registry, tmp_path: Path) -> None:
    """A bundle of a channel does not have the others, so it says what it shows instead."""
    request_id, _ = shredded(reg, tmp_path)
    release(reg, compose(BASE, "nf4", []))
    steps = ("trained", "audited", "released", "closed")
    forge(reg, *((f"request.{one}", request_id, {"claim": "suppressed"}) for one in steps))
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where) == ("replay", f"event {len(log(reg))}")
    (row,) = facts.facts(log(reg), {})["requests"]
    assert (row["claim"], row["supported"]) == ("suppressed", None)


def test_a_shredding_that_ended_after_a_rollback(reg: Registry, tmp_path: Path) -> None:
    """The request stays reopened, in the tables and in a bundle."""
    request_id, adapter = answered(reg, tmp_path, 1)
    release(reg, stack([adapter]))
    with reg.write("ana") as tx:
        ledger.append(tx, "request.shredding", request_id, {})
    release(reg, compose(BASE, "nf4", []))
    with reg.write("ana") as tx:
        ledger.append(tx, "request.shredded", request_id, {})
    (row,) = facts.facts(log(reg), {})["requests"]
    assert row["state"] == state(reg, request_id) == "REOPENED"


def test_a_claim_beyond_what_is_shown_stands_out() -> None:
    shown = {"id": "req-000001", "claim": "erased", "supported": "suppressed"}
    assert (
        bundle_summary._claimed(shown)[-1] == f"{bundle_summary.BEYOND} {bundle_summary.UNDO['suppressed']}"
    )
    nothing = bundle_summary._claimed({**shown, "supported": None})[-1]
    assert nothing == f"{bundle_summary.BEYOND} Nothing is shown."
    less = bundle_summary._claimed({**shown, "claim": "suppressed", "supported": "erased"})[-1]
    assert less == bundle_summary.UNDO["suppressed"]
    assert bundle_summary._cell(nothing).startswith('<span class="no">')


def evidence(reg: Registry, request_id: str, **changes: Any) -> tuple[str, str, Mapping[str, Any]]:
    kept = {name: changes.pop(name) for name in ("verdict", "precision", "requests") if name in changes}
    proof = audited(reg, alone(), **{"precision": "bf16", **kept})
    record = {"v": 1, "request": request_id, "level": "erased", "method": "retrain", "artefact": MERGED,
              "audit": proof.digest, "statement": "s", **changes}  # fmt: skip
    return "evidence.recorded", digest_json(record), {"record": record}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"verdict": "fail"}, "passing audit"),
        ({"precision": "nf4"}, "passing audit"),
        ({"artefact": "sha256:" + "e" * 64}, "passing audit"),
        ({"level": "erased", "method": "merge"}, "level"),
        ({"method": "prayer"}, "level"),
        ({"audit": "sha256:" + "0" * 64}, "audit"),
        ({"requests": []}, "level"),
        ({"requests": ["req-000002"]}, "level"),
        ({"requests": [], "level": "suppressed"}, "level"),  # its rows are there
    ],
)
def test_evidence_that_shows_nothing(reg: Registry, changes: dict[str, Any], match: str) -> None:
    request_id, _ = ask(reg), ask(reg)
    forge(reg, evidence(reg, request_id, **changes))
    caught(reg, match)


def test_evidence_on_an_audit_of_before_that_does_not_name_requests_goes_on_verifying(reg: Registry) -> None:
    forge(reg, evidence(reg, ask(reg)))
    assert rebuild(reg) == len(log(reg))
    assert verify(reg).ok
    assert len(facts.facts(log(reg), {})["evidence"]) == 1


@pytest.mark.parametrize("level", ["consolidated", "erased"])
def test_evidence_of_a_shredded_request_beyond_suppressed(reg: Registry, tmp_path: Path, level: str) -> None:
    request_id, _ = shredded(reg, tmp_path)
    method = "merge" if level == "consolidated" else "retrain"
    forge(reg, evidence(reg, request_id, requests=[], level=level, method=method))
    caught(reg, "level")


def test_an_audit_of_rows_that_were_shredded(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path)
    audited(reg, alone(), precision="bf16")
    (body,) = [event.body for event in log(reg, kind="audit.recorded")[-1:]]
    record: Any = {**body["record"], "requests": [request_id]}  # pyright: ignore[reportGeneralTypeIssues]
    forge(reg, ("audit.recorded", digest_json(record), {**body, "record": record}))
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where) == ("replay", f"event {len(log(reg))}")
    assert "shredded before" in problem.found


@pytest.mark.parametrize("claim", ["suppressed", "consolidated", "forgotten", None])
def test_a_claim_that_is_not_raised_or_beyond_what_is_shown(
    reg: Registry, tmp_path: Path, claim: str | None
) -> None:
    request_id, _ = shredded(reg, tmp_path)
    forge(
        reg,
        ("request.closed", request_id, {"claim": "suppressed"}),
        ("request.claimed", request_id, {"claim": claim}),
    )
    caught(reg, "claim")


def test_a_claim_raised_of_a_request_that_is_not_closed(reg: Registry, tmp_path: Path) -> None:
    request_id, _ = shredded(reg, tmp_path)
    forge(reg, ("request.claimed", request_id, {"claim": "suppressed"}))
    caught(reg, "claim")


def test_a_long_story_replays(reg: Registry, tmp_path: Path) -> None:
    """Shredding of what was rolled back, refused requests, two adapters of one request."""
    request_id, adapter = shredded(reg, tmp_path, merged=True)
    release(reg, stack([adapter, seal(reg, lora(tmp_path / "more", 3), [ask(reg)])]))
    proven(reg, request_id)
    refused = ask(reg)
    step_request(reg, refused, "REFUSED", actor="ana", reason="no identity")
    shred_request(reg, refused, actor="ana")
    assert rebuild(reg) == len(log(reg))
    assert verify(reg, deep=True).ok
    assert len(facts.facts(log(reg), {})["requests"]) == 3
