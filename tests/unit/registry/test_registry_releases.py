"""Releases: the gate, one active version per channel, rollback, and what it does to requests."""

from pathlib import Path
from typing import Any

import pytest
from registry_kit import BASE, answered, ask, audited, contents, lora, release, seal, stack

from efface.registry import (
    Conflict,
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    activate_release,
    active_release,
    channels,
    compose,
    create_release,
    find_audit,
    get_adapter,
    get_audit,
    get_release,
    get_request,
    history,
    list_audits,
    log,
    plan_removal,
    step_request,
    without,
)


def state(reg: Registry, request_id: str) -> str:
    return get_request(reg, request_id).state


def create(reg: Registry, composition, channel: str = "prod", **changes: Any):
    return create_release(
        reg, channel, composition, **{"rendered": None, "reason": "r", "actor": "a", **changes}
    )


def test_forget_one_then_two_then_take_the_first_back(reg: Registry, tmp_path: Path) -> None:
    (one, first), (two, second) = answered(reg, tmp_path, 1), answered(reg, tmp_path, 2)
    release(reg, stack([first]))
    assert (state(reg, one), state(reg, two)) == ("RELEASED", "TRAINED")
    both = release(reg, stack([second, first]))
    assert (state(reg, one), state(reg, two)) == ("RELEASED", "RELEASED")
    assert plan_removal(reg, "prod", [one]) == stack([second])
    back = release(reg, plan_removal(reg, "prod", [one]), reason="a court order")
    assert active_release(reg, "prod") == back
    assert (state(reg, one), state(reg, two)) == ("REOPENED", "RELEASED")
    reopened = next(event for event in log(reg) if event.kind == "request.reopened")
    assert reopened.body == {"release": "prod@3", "reason": "a court order"}
    assert [(r.version, r.state) for r in history(reg, "prod")] == [
        (1, "SUPERSEDED"), (2, "SUPERSEDED"), (3, "ACTIVE"),
    ]  # fmt: skip
    assert get_release(reg, "prod", 2).composition == both.composition
    again = release(reg, both.composition)
    assert again.composition.digest == both.composition.digest
    assert (again.version, state(reg, one)) == (4, "RELEASED")


def test_a_release_says_who_and_why(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    made = create(reg, stack([adapter]), reason="first", actor="ana")
    assert (made.version, made.state, made.created_by, made.reason) == (1, "CANDIDATE", "ana", "first")
    assert (made.audit, made.approved_by, made.activated_at) == (None, None, None)
    evidence = audited(reg, made.composition)
    active = activate_release(reg, "prod", 1, audit=evidence.digest[:20], approved_by="ben")
    assert (active.state, active.audit, active.approved_by) == ("ACTIVE", evidence.digest, "ben")
    assert active.activated_at is not None
    assert get_adapter(reg, adapter.digest).state == "QUALIFIED"
    assert channels(reg) == ["prod"]


def test_activating_twice_changes_nothing(reg: Registry, tmp_path: Path) -> None:
    active = release(reg, stack([answered(reg, tmp_path, 1)[1]]))
    before = contents(reg.root)
    assert active.audit is not None
    assert activate_release(reg, "prod", 1, audit=active.audit, approved_by="ben") == active
    with pytest.raises(Conflict):
        activate_release(reg, "prod", 1, audit=active.audit, approved_by="someone else")
    assert contents(reg.root) == before


@pytest.mark.parametrize(
    "change", [{"verdict": "fail"}, {"precision": "bf16"}, {"composition": "sha256:" + "1" * 64}]
)
def test_the_gate_needs_a_passing_audit_of_the_same_thing(
    reg: Registry, tmp_path: Path, change: dict[str, Any]
) -> None:
    made = create(reg, stack([answered(reg, tmp_path, 1)[1]]))
    evidence = audited(reg, made.composition, **change)
    before = contents(reg.root)
    with pytest.raises(GateFailed, match="efface audit run"):
        activate_release(reg, "prod", 1, audit=evidence.digest, approved_by="ben")
    with pytest.raises(NotFound):
        activate_release(reg, "prod", 1, audit="0" * 64, approved_by="ben")
    assert contents(reg.root) == before


def test_an_old_candidate_cannot_overtake(reg: Registry, tmp_path: Path) -> None:
    composition = stack([answered(reg, tmp_path, 1)[1]])
    old = create(reg, composition)
    new = release(reg, composition)
    for version in (old.version, new.version):
        with pytest.raises(Conflict):
            activate_release(reg, "prod", version, audit=new.audit or "", approved_by="eve")
    assert active_release(reg, "prod") == new


def test_channels_are_independent(reg: Registry, tmp_path: Path) -> None:
    one, adapter = answered(reg, tmp_path, 1)
    release(reg, stack([adapter]), "prod")
    release(reg, stack([adapter]), "canary")
    release(reg, compose(BASE, "nf4", []), "prod")
    assert state(reg, one) == "RELEASED"  # still in force on the other channel
    release(reg, compose(BASE, "nf4", []), "canary")
    assert state(reg, one) == "REOPENED"


@pytest.mark.parametrize("channel", ["", ".prod", "a b", "a/b", "a@1", "x" * 65, "prod\n", "é"])
def test_bad_channels_are_refused(reg: Registry, tmp_path: Path, channel: str) -> None:
    composition = stack([answered(reg, tmp_path, 1)[1]])
    before = contents(reg.root)
    for call in (
        lambda: create(reg, composition, channel),
        lambda: get_release(reg, channel, 1),
        lambda: active_release(reg, channel),
        lambda: history(reg, channel),
        lambda: plan_removal(reg, channel, ["req-000001"]),
    ):
        with pytest.raises(InvalidInput, match="channel"):
            call()
    assert contents(reg.root) == before


def test_absent_releases_are_not_found(reg: Registry, tmp_path: Path) -> None:
    create(reg, stack([answered(reg, tmp_path, 1)[1]]))
    for call in (
        lambda: active_release(reg, "prod"),
        lambda: get_release(reg, "prod", 2),
        lambda: history(reg, "other"),
        lambda: plan_removal(reg, "prod", ["req-000001"]),
    ):
        with pytest.raises(NotFound, match="efface release"):
            call()


def test_adapters_of_another_base_name_both(reg: Registry, tmp_path: Path) -> None:
    _, adapter = answered(reg, tmp_path, 1)
    other = "sha256:" + "c" * 64
    foreign = seal(reg, lora(tmp_path / "foreign", 2), [ask(reg)], base=other)
    before = contents(reg.root)
    with pytest.raises(InvalidInput) as caught:
        create(reg, stack([adapter, foreign]))
    assert BASE in str(caught.value)
    assert other in str(caught.value)
    with pytest.raises(InvalidInput, match="int8"):
        create(reg, compose(BASE, "int8", [(adapter.digest, 1)]))
    with pytest.raises(NotFound):
        create(reg, compose(BASE, "nf4", [("sha256:" + "0" * 64, 1)]))
    assert contents(reg.root) == before


def test_a_withdrawn_request_is_not_released(reg: Registry, tmp_path: Path) -> None:
    one, adapter = answered(reg, tmp_path, 1)
    made = create(reg, stack([adapter]))
    evidence = audited(reg, made.composition)
    step_request(reg, one, "WITHDRAWN", actor="ana", reason="changed their mind")
    before = contents(reg.root)
    with pytest.raises(Conflict, match=one):
        create(reg, made.composition)
    with pytest.raises(Conflict, match=one):
        activate_release(reg, "prod", 1, audit=evidence.digest, approved_by="ben")
    assert contents(reg.root) == before


def test_the_rendered_adapter_is_checked(reg: Registry, tmp_path: Path) -> None:
    one, adapter = answered(reg, tmp_path, 1)
    composition = stack([adapter])
    facts = {"composition": composition.digest}
    good = seal(reg, lora(tmp_path / "r", 9), [one], kind="rendered", facts=facts)
    wrong = {"composition": "sha256:" + "0" * 64}
    other = seal(reg, lora(tmp_path / "o", 8), [one], kind="rendered", facts=wrong)
    silent = seal(reg, lora(tmp_path / "s", 7), [one], kind="rendered")
    before = contents(reg.root)
    for bad in (adapter, other, silent):
        with pytest.raises(InvalidInput):
            create(reg, composition, rendered=bad.digest)
    with pytest.raises(InvalidInput, match="rendered"):
        create(reg, stack([good]))
    assert contents(reg.root) == before
    assert create(reg, composition, rendered=good.digest).rendered == good.digest


def test_plan_removal_names_what_is_there(reg: Registry, tmp_path: Path) -> None:
    one, adapter = answered(reg, tmp_path, 1)
    two = ask(reg)
    release(reg, stack([adapter]))
    for wrong in ([two], [one, two], []):
        with pytest.raises(InvalidInput, match=one):
            plan_removal(reg, "prod", wrong)
    assert plan_removal(reg, "prod", [one]) == compose(BASE, "nf4", [])


def test_an_adapter_of_two_requests_leaves_with_both(reg: Registry, tmp_path: Path) -> None:
    one, two = ask(reg), ask(reg)
    shared = seal(reg, lora(tmp_path / "shared"), [two, one])
    release(reg, stack([shared]))
    with pytest.raises(InvalidInput, match=two):
        plan_removal(reg, "prod", [one])
    assert plan_removal(reg, "prod", [one, two]).parts == ()


def test_what_others_were_trained_on_stays(reg: Registry, tmp_path: Path) -> None:
    one, first = answered(reg, tmp_path, 1)
    below = release(reg, stack([first])).composition
    two = ask(reg)
    second = seal(reg, lora(tmp_path / "on-top", 2), [two], trained_on=below.digest)
    release(reg, stack([first, second]))
    with pytest.raises(Conflict) as caught:
        plan_removal(reg, "prod", [one])
    assert first.digest in str(caught.value)
    assert second.digest in str(caught.value)
    assert plan_removal(reg, "prod", [two]) == below
    assert plan_removal(reg, "prod", [one, two]).parts == ()


def test_audits_are_found(reg: Registry) -> None:
    composition = compose(BASE, "nf4", [])
    first = audited(reg, composition, verdict="fail")
    second = audited(reg, composition, seed=1)
    other = audited(reg, composition, precision="bf16")
    assert find_audit(reg, composition=composition.digest, precision="nf4", suite="quick@1") == second
    assert get_audit(reg, first.digest[7:20]) == first
    assert list_audits(reg, composition.digest) == list_audits(reg) == [first, second, other]
    assert reg.blobs.read(first.report) == b'{"forget":{"rouge":0.1}}'
    with pytest.raises(NotFound):
        find_audit(reg, composition=composition.digest, precision="nf4", suite="other")


def test_recording_an_audit_twice_is_recording_it_once(reg: Registry) -> None:
    composition = compose(BASE, "nf4", [])
    first = audited(reg, composition)
    before = contents(reg.root)
    assert audited(reg, composition, actor="someone else") == first
    assert contents(reg.root) == before


@pytest.mark.parametrize(
    "change",
    [
        {"composition": "abc"},
        {"precision": ""},
        {"suite": "a b"},
        {"seed": -1},
        {"verdict": "maybe"},
        {"report": b"<html>"},
        {"environment": {"torch": ""}},
        {"environment": {"a key": "x"}},
        {"environment": {str(n): "x" for n in range(101)}},
        {"actor": "a\0"},
    ],
)
def test_a_bad_audit_writes_nothing(reg: Registry, change: dict[str, Any]) -> None:
    before = contents(reg.root)
    with pytest.raises(InvalidInput):
        audited(reg, compose(BASE, "nf4", []), **change)
    assert contents(reg.root) == before


def test_compositions_are_checked() -> None:
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    for bad in ([(one, 1), (one, 2)], [("sha256:12", 1)], [(one, "x")]):
        with pytest.raises(InvalidInput):
            compose(BASE, "nf4", bad)
    with pytest.raises(InvalidInput, match="render"):
        compose(BASE, "nf4", [], render="svd")
    with pytest.raises(InvalidInput, match=two):
        without(compose(BASE, "nf4", [(one, 1)]), [two])
