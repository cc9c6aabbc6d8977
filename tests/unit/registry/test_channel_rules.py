"""The rule that two people let a release through: asked by the registry, and again by whoever replays the ledger."""

from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import rejected, state
from registry_kit import answered, audited, release, stack
from tamper_kit import forge

from efface.registry import (
    BrokenRegistry,
    Channel,
    Composition,
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    activate_release,
    active_release,
    approve_release,
    channels,
    create_release,
    get_channel,
    history,
    log,
    rebuild,
    rule_channel,
    verify,
    withdraw_release,
)
from efface.registry import bundle_facts as facts


def ruled(reg: Registry, two_person: bool = True, channel: str = "prod", **changes: Any) -> Channel:
    values = {"reason": "four eyes", "actor": "cleo", **changes}
    return rule_channel(reg, channel, two_person=two_person, **values)


def candidate(reg: Registry, work: Path, seed: int = 1) -> tuple[str, Composition, str]:
    """A candidate that ana created, and a passing audit of it."""
    request_id, adapter = answered(reg, work, seed)
    create_release(reg, "prod", stack([adapter]), rendered=None, reason="r", actor="ana")
    return request_id, stack([adapter]), audited(reg, stack([adapter])).digest


def moved(to: str, **body: Any) -> tuple[str, str, Any]:
    return f"release.{to}", "prod@1", {"channel": "prod", "version": 1, **body}


def test_a_channel_has_no_rule_until_it_gets_one(reg: Registry) -> None:
    rejected(reg, NotFound, lambda: get_channel(reg, "prod"))
    assert ruled(reg, False) == Channel("prod", 0, None, two_person=False)
    assert log(reg) == []  # it changed nothing
    assert ruled(reg) == get_channel(reg, "prod") == Channel("prod", 0, None, two_person=True)
    (event,) = log(reg)
    assert (event.kind, event.subject_id, event.actor) == ("channel.ruled", "prod", "cleo")
    assert event.body == {"two_person": True, "reason": "four eyes"}
    assert ruled(reg, reason="again") == get_channel(reg, "prod")
    assert len(log(reg)) == 1
    assert channels(reg) == ["prod"]
    rejected(reg, NotFound, lambda: history(reg, "prod"))
    rejected(reg, NotFound, lambda: active_release(reg, "prod"))
    assert rebuild(reg) == 1
    assert verify(reg).ok


@pytest.mark.parametrize("creator", ["ana", "Ana", " ANA  "])
def test_its_creator_does_not_let_it_through(reg: Registry, tmp_path: Path, creator: str) -> None:
    ruled(reg)
    request_id, _, audit = candidate(reg, tmp_path)
    for call in (approve_release, activate_release):
        rejected(
            reg,
            GateFailed,
            lambda call=call: call(reg, "prod", 1, audit=audit, approved_by=creator),
            "efface release approve prod 1",
        )
    approve_release(reg, "prod", 1, audit=audit, approved_by="ben")
    active = activate_release(reg, "prod", 1, approved_by=creator)  # ben approved it
    assert (active.state, active.approved_by, state(reg, request_id)) == ("ACTIVE", "ben", "RELEASED")
    assert verify(reg, deep=True).ok


def test_somebody_else_may_do_both_at_once(reg: Registry, tmp_path: Path) -> None:
    ruled(reg)
    _, _, audit = candidate(reg, tmp_path)
    assert activate_release(reg, "prod", 1, audit=audit, approved_by="ben").state == "ACTIVE"


def test_other_channels_go_on_as_before(reg: Registry, tmp_path: Path) -> None:
    ruled(reg)
    _, adapter = answered(reg, tmp_path, 1)
    create_release(reg, "canary", stack([adapter]), rendered=None, reason="r", actor="ana")
    audit = audited(reg, stack([adapter])).digest
    assert activate_release(reg, "canary", 1, audit=audit, approved_by="ana").state == "ACTIVE"


def test_what_its_creator_approved_before_the_rule(reg: Registry, tmp_path: Path) -> None:
    _, composition, audit = candidate(reg, tmp_path)
    approve_release(reg, "prod", 1, audit=audit, approved_by="ana")
    ruled(reg)
    for who in ("ana", "ben"):
        rejected(
            reg,
            GateFailed,
            lambda who=who: activate_release(reg, "prod", 1, approved_by=who),
            "efface release withdraw prod 1",
        )
    withdraw_release(reg, "prod", 1, reason="the rule", actor="ana")
    assert release(reg, composition).version == 2


def test_giving_it_up_is_recorded_with_its_reason(reg: Registry, tmp_path: Path) -> None:
    ruled(reg)
    _, _, audit = candidate(reg, tmp_path)
    for reason in ("", "x" * 501, "a\nb"):
        rejected(reg, InvalidInput, lambda reason=reason: ruled(reg, False, reason=reason))
    assert ruled(reg, False, reason="ben is on leave", actor="ana") == Channel(
        "prod", 1, None, two_person=False
    )
    assert log(reg)[-1].body == {"two_person": False, "reason": "ben is on leave"}
    assert activate_release(reg, "prod", 1, audit=audit, approved_by="ana").state == "ACTIVE"
    ruled(reg)
    assert get_channel(reg, "prod") == Channel("prod", 1, 1, two_person=True)
    assert rebuild(reg) == len(log(reg))
    assert verify(reg, deep=True).ok
    assert len(facts.facts(log(reg), {})["releases"]) == 1


@pytest.mark.parametrize(
    "change", [{"channel": "a b"}, {"channel": ""}, {"actor": ""}, {"two_person": 1}, {"two_person": "no"}]
)
def test_a_rule_that_is_none_writes_nothing(reg: Registry, change: dict[str, Any]) -> None:
    values = {"channel": "prod", "two_person": True, **change}
    rejected(reg, InvalidInput, lambda: ruled(reg, **values))


@pytest.mark.parametrize("late", [False, True])
def test_a_release_that_its_creator_let_through_is_named(reg: Registry, tmp_path: Path, late: bool) -> None:
    """By its approval; or, where that was before the rule, when it becomes active."""
    _, _, audit = candidate(reg, tmp_path)
    rule = ("channel.ruled", "prod", {"two_person": True, "reason": "r"})
    through = [moved("approved", audit=audit), moved("active", audit=audit)]
    made = {"channel": "prod", "version": 2, "rendered": None, "reason": "r"}
    event = log(reg, kind="release.candidate")[0]
    again = {**made, "composition": event.body["composition"], "digest": event.body["digest"]}
    second = [(kind, "prod@2", {**body, "version": 2}) for kind, _, body in through]
    events = [second[0], rule, second[1]] if late else [rule, *second]
    forge(reg, ("release.candidate", "prod@2", again), *events)
    named = len(log(reg)) if late else len(log(reg)) - 1
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where, problem.found) == ("replay", f"event {named}", "its creator's own")
    with pytest.raises(BrokenRegistry, match="its creator's own"):
        rebuild(reg)
    with pytest.raises(BrokenRegistry, match="its creator's own"):
        facts.facts(log(reg), {})


def test_a_rule_that_says_nothing_is_named(reg: Registry) -> None:
    forge(reg, ("channel.ruled", "prod", {"two_person": "yes", "reason": "r"}))
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where) == ("replay", "event 1")
