"""Releases beyond the first path: two steps, giving up, differences, rolling back to a version, stacks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import rejected, released, state, wait
from registry_kit import BASE, answered, ask, audited, contents, lora, release, seal, stack

from efface.registry import (
    Adapter,
    Composition,
    Conflict,
    GateFailed,
    InvalidInput,
    NotFound,
    Registry,
    activate_release,
    active_release,
    approve_release,
    channels,
    compose,
    create_release,
    diff_releases,
    get_adapter,
    get_release,
    history,
    log,
    plan_removal,
    rebuild,
    rendered_as,
    step_request,
    verify,
    withdraw_release,
)

EMPTY = compose(BASE, "nf4", [])


def create(reg: Registry, composition: Composition, channel: str = "prod", **changes: Any):
    values = {"rendered": None, "reason": "r", "actor": "ana", **changes}
    return create_release(reg, channel, composition, **values)


def candidate(reg: Registry, work: Path, seed: int = 1) -> tuple[str, Composition]:
    """A request with a candidate release of its adapter, and a passing audit."""
    request_id, adapter = answered(reg, work, seed)
    create(reg, stack([adapter]))
    return request_id, stack([adapter])


def approve(reg: Registry, composition: Composition, version: int = 1, by: str = "ben", **changes: Any):
    digest = audited(reg, composition, **changes).digest
    return approve_release(reg, "prod", version, audit=digest, approved_by=by)


def activate(reg: Registry, version: int = 1, by: str = "eve", audit: str | None = None):
    return activate_release(reg, "prod", version, audit=audit, approved_by=by)


def test_approving_and_activating_are_two_steps_of_two_people(reg: Registry, tmp_path: Path) -> None:
    request_id, composition = candidate(reg, tmp_path)
    approved = approve(reg, composition)
    assert (approved.state, approved.approved_by, approved.activated_at) == ("APPROVED", "ben", None)
    assert state(reg, request_id) == "TRAINED"
    assert get_adapter(reg, composition.adapters[0]).state == "SEALED"
    with pytest.raises(NotFound):
        active_release(reg, "prod")
    active = activate(reg)
    assert (active.state, active.approved_by, active.audit) == ("ACTIVE", "ben", approved.audit)
    assert state(reg, request_id) == "RELEASED"
    assert get_adapter(reg, composition.adapters[0]).state == "QUALIFIED"
    actors = {event.kind: event.actor for event in log(reg)}
    assert (actors["release.candidate"], actors["release.approved"]) == ("ana", "ben")
    assert (actors["release.active"], actors["request.released"]) == ("eve", "eve")
    before = contents(reg.root)
    assert activate(reg, by="someone else") == active
    assert contents(reg.root) == before


def test_a_candidate_without_an_audit_is_not_activated(reg: Registry, tmp_path: Path) -> None:
    _, composition = candidate(reg, tmp_path)
    audited(reg, composition)
    rejected(reg, GateFailed, lambda: activate(reg), "efface release approve")


@pytest.mark.parametrize(
    "change", [{"verdict": "fail"}, {"precision": "bf16"}, {"composition": EMPTY.digest}], ids=str
)
def test_approving_is_gated(reg: Registry, tmp_path: Path, change: dict[str, Any]) -> None:
    _, composition = candidate(reg, tmp_path)
    digest = audited(reg, composition, **change).digest
    call = lambda: approve_release(reg, "prod", 1, audit=digest, approved_by="ben")  # noqa: E731
    rejected(reg, GateFailed, call, "audit")
    assert get_release(reg, "prod", 1).audit is None


def test_what_is_approved_is_approved_once(reg: Registry, tmp_path: Path) -> None:
    _, composition = candidate(reg, tmp_path)
    approved = approve(reg, composition)
    other = audited(reg, composition, seed=1)
    for digest in (approved.audit or "", other.digest):
        call = lambda digest=digest: approve_release(  # noqa: E731
            reg, "prod", 1, audit=digest, approved_by="ben"
        )
        rejected(reg, Conflict, call, "APPROVED")
        rejected(reg, Conflict, lambda digest=digest: activate(reg, audit=digest), "APPROVED")
    assert activate(reg).audit == approved.audit


def test_what_was_approved_does_not_overtake(reg: Registry, tmp_path: Path) -> None:
    _, composition = candidate(reg, tmp_path)
    approve(reg, composition)
    release(reg, EMPTY)
    rejected(reg, Conflict, lambda: activate(reg), "2 is active")
    create(reg, composition)
    release(reg, EMPTY)
    rejected(reg, Conflict, lambda: approve(reg, composition, 3), "4 is active")


def test_a_request_that_is_withdrawn_between_the_steps(reg: Registry, tmp_path: Path) -> None:
    request_id, composition = candidate(reg, tmp_path)
    approve(reg, composition)
    step_request(reg, request_id, "WITHDRAWN", actor="ana", reason="settled")
    rejected(reg, Conflict, lambda: activate(reg), request_id)
    assert withdraw_release(reg, "prod", 1, reason="settled", actor="ben").state == "WITHDRAWN"


@pytest.mark.parametrize("by_then", ["CANDIDATE", "APPROVED"])
def test_giving_up(reg: Registry, tmp_path: Path, by_then: str) -> None:
    request_id, composition = candidate(reg, tmp_path)
    if by_then == "APPROVED":
        approve(reg, composition)
    given_up = withdraw_release(reg, "prod", 1, reason="a mistake", actor="eve")
    assert (given_up.state, state(reg, request_id)) == ("WITHDRAWN", "TRAINED")
    last = log(reg)[-1]
    assert (last.kind, last.actor) == ("release.withdrawn", "eve")
    assert last.body == {"channel": "prod", "version": 1, "reason": "a mistake"}
    digest = audited(reg, composition).digest
    rejected(reg, Conflict, lambda: withdraw_release(reg, "prod", 1, reason="r", actor="a"), "WITHDRAWN")
    rejected(reg, Conflict, lambda: activate(reg, audit=digest), "WITHDRAWN")
    rejected(reg, Conflict, lambda: approve(reg, composition), "WITHDRAWN")
    assert release(reg, composition).version == 2
    assert [one.state for one in history(reg, "prod")] == ["WITHDRAWN", "ACTIVE"]
    rebuild(reg)
    assert verify(reg, deep=True).ok


def test_what_is_or_was_served_is_not_withdrawn(reg: Registry, tmp_path: Path) -> None:
    released(reg, tmp_path)
    rejected(reg, Conflict, lambda: withdraw_release(reg, "prod", 1, reason="r", actor="a"), "rollback")
    release(reg, EMPTY)
    rejected(reg, Conflict, lambda: withdraw_release(reg, "prod", 1, reason="r", actor="a"), "SUPERSEDED")
    rejected(reg, InvalidInput, lambda: withdraw_release(reg, "prod", 2, reason="", actor="a"), "reason")
    rejected(reg, NotFound, lambda: withdraw_release(reg, "prod", 9, reason="r", actor="a"))


@pytest.mark.parametrize(
    "change", [{"reason": ""}, {"reason": None}, {"reason": "a\nb"}, {"actor": ""}], ids=str
)
def test_a_release_says_who_and_why(reg: Registry, change: dict[str, Any]) -> None:
    rejected(reg, InvalidInput, lambda: create(reg, EMPTY, **change))
    create(reg, EMPTY)
    digest = audited(reg, EMPTY).digest
    rejected(reg, InvalidInput, lambda: activate(reg, by="", audit=digest), "actor")
    rejected(reg, InvalidInput, lambda: approve(reg, EMPTY, by=" "), "actor")


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, 2**53])
def test_what_is_no_version(reg: Registry, version: Any) -> None:
    create(reg, EMPTY)
    for call in (
        lambda: get_release(reg, "prod", version),
        lambda: activate_release(reg, "prod", version, approved_by="b"),
        lambda: withdraw_release(reg, "prod", version, reason="r", actor="a"),
        lambda: diff_releases(reg, "prod", 1, version),
    ):
        rejected(reg, InvalidInput, call, "version")


def test_the_difference_of_two_versions(reg: Registry, tmp_path: Path) -> None:
    (one, first), (two, second) = answered(reg, tmp_path, 1), answered(reg, tmp_path, 2)
    both, third = ask(reg), ask(reg)
    shared = seal(reg, lora(tmp_path / "shared", 3), [both, third])
    create(reg, stack([first, shared]))
    create(reg, compose(BASE, "nf4", [(first.digest, "0.5"), (second.digest, 1)]))
    other = seal(reg, lora(tmp_path / "other", 4), [one], quantization="bf16")
    create(reg, compose(BASE, "bf16", [(other.digest, 1)]))
    diff = diff_releases(reg, "prod", 1, 2)
    assert (diff.before.version, diff.after.version, diff.base_changed) == (1, 2, False)
    assert (diff.requests_added, diff.requests_removed) == ((two,), (both, third))
    assert (diff.adapters_added, diff.adapters_removed) == ((second.digest,), (shared.digest,))
    assert diff.reweighted == ((first.digest, "1", "0.5"),)
    back = diff_releases(reg, "prod", 2, 1)
    assert (back.requests_added, back.requests_removed) == (diff.requests_removed, diff.requests_added)
    assert (back.adapters_added, back.adapters_removed) == (diff.adapters_removed, diff.adapters_added)
    assert back.reweighted == ((first.digest, "0.5", "1"),)
    same = diff_releases(reg, "prod", 1, 1)
    assert not any((same.requests_added, same.adapters_added, same.reweighted, same.base_changed))
    requantized = diff_releases(reg, "prod", 2, 3)
    assert (requantized.base_changed, requantized.requests_removed) == (True, (two,))
    rejected(reg, NotFound, lambda: diff_releases(reg, "prod", 1, 9))
    rejected(reg, NotFound, lambda: diff_releases(reg, "none", 1, 1))


def test_rolling_back_to_a_version(reg: Registry, tmp_path: Path) -> None:
    """A new version with the old composition, on the audit that it has."""
    (one, first), (two, second) = answered(reg, tmp_path, 1), answered(reg, tmp_path, 2)
    release(reg, stack([first]))
    both = release(reg, stack([first, second]))
    release(reg, stack([second]))
    again = create(reg, get_release(reg, "prod", 2).composition, reason="back to 2")
    assert activate(reg, 4, audit=both.audit).composition == both.composition
    assert (again.version, state(reg, one), state(reg, two)) == (4, "RELEASED", "RELEASED")
    assert [found.version for found in history(reg, "prod")] == [1, 2, 3, 4]
    diff = diff_releases(reg, "prod", 2, 4)
    assert not (diff.adapters_added or diff.adapters_removed or diff.reweighted)


def test_a_version_with_a_withdrawn_request_is_not_returned_to(reg: Registry, tmp_path: Path) -> None:
    one, first = released(reg, tmp_path)
    release(reg, EMPTY)
    step_request(reg, one, "WITHDRAWN", actor="ana", reason="settled")
    rejected(reg, Conflict, lambda: create(reg, stack([first])), one)


def test_rolling_back_reopens_with_the_reason(reg: Registry, tmp_path: Path) -> None:
    request_id, adapter = released(reg, tmp_path)
    other, second = answered(reg, tmp_path, 2)
    release(reg, stack([adapter, second]))
    create(reg, plan_removal(reg, "prod", [request_id]), reason="a court order")
    activate(reg, 3, audit=audited(reg, stack([second])).digest, by="judge")
    (event,) = [event for event in log(reg) if event.kind == "request.reopened"]
    assert (event.subject_id, event.actor) == (request_id, "judge")
    assert event.body == {"release": "prod@3", "reason": "a court order"}
    assert (state(reg, request_id), state(reg, other)) == ("REOPENED", "RELEASED")


class Stack:
    """Three adapters: the second was trained on the first, the third on both."""

    def __init__(self, reg: Registry, work: Path) -> None:
        self.reg = reg
        self.one, self.first = answered(reg, work, 1)
        release(reg, stack([self.first]))
        self.two, self.three = ask(reg), ask(reg)
        self.second = self._on(work, 2, self.two, [self.first])
        release(reg, stack([self.first, self.second]))
        self.third = self._on(work, 3, self.three, [self.first, self.second])
        release(reg, stack([self.first, self.second, self.third]))

    def _on(self, work: Path, seed: int, request_id: str, below: list[Adapter]) -> Adapter:
        on = stack(below).digest
        return seal(self.reg, lora(work / f"on-{seed}", seed), [request_id], trained_on=on)


def test_what_others_were_trained_on_is_not_removed(reg: Registry, tmp_path: Path) -> None:
    tower = Stack(reg, tmp_path)
    for gone in ([tower.one], [tower.two], [tower.one, tower.two], [tower.one, tower.three]):
        rejected(reg, Conflict, lambda gone=gone: plan_removal(reg, "prod", gone), "efface audit run")
    error = rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [tower.two]))
    assert tower.third.digest in error.came
    assert tower.three in error.then
    everything = " ".join(f"--remove {one}" for one in (tower.one, tower.two, tower.three))
    for gone in ([tower.one], [tower.one, tower.two], [tower.one, tower.three]):
        error = rejected(reg, Conflict, lambda gone=gone: plan_removal(reg, "prod", gone))
        assert f"efface release rollback prod {everything} --reason" in error.then
        less = " ".join(f"--without {one}" for one in gone)
        assert f"efface audit run --release prod {less}." in error.then
    assert plan_removal(reg, "prod", [tower.three]) == stack([tower.first, tower.second])
    assert plan_removal(reg, "prod", [tower.two, tower.three]) == stack([tower.first])
    assert plan_removal(reg, "prod", [tower.one, tower.two, tower.three]) == EMPTY


def test_the_plan_of_a_refusal_ends_where_what_is_left_has_passed(reg: Registry, tmp_path: Path) -> None:
    """The repair of two stands on all: without it, two and three were audited."""
    tower = Stack(reg, tmp_path)
    whole = stack([tower.first, tower.second, tower.third])
    facts = {"repairs": [tower.two]}
    repair = seal(reg, lora(tmp_path / "repair", 7), [tower.two], trained_on=whole.digest, facts=facts)
    release(reg, stack([tower.first, tower.second, tower.third, repair]))
    everything = " ".join(f"--remove {one}" for one in (tower.one, tower.two, tower.three))
    for drop in (False, True):
        call = lambda drop=drop: plan_removal(reg, "prod", [tower.one], drop_repairs=drop)  # noqa: E731
        assert f"rollback prod {everything} --reason" in rejected(reg, Conflict, call).then
    audited(reg, left := stack([tower.second, tower.third]))
    error = rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [tower.one]))
    assert f"rollback prod --remove {tower.one} --drop-repairs --reason" in error.then
    assert plan_removal(reg, "prod", [tower.one], drop_repairs=True) == left


def test_a_plan_is_for_the_render_that_was_asked_for(reg: Registry, tmp_path: Path) -> None:
    """Each render is another composition: an audit of one says nothing of another."""
    tower = Stack(reg, tmp_path)
    left = rendered_as(stack([tower.second, tower.third]), "svd:2")
    call = lambda: plan_removal(reg, "prod", [tower.one], render="svd:2")  # noqa: E731
    error = rejected(reg, Conflict, call, "--render svd:2 --reason")
    assert f"audit run --release prod --without {tower.one} --render svd:2." in error.then
    audited(reg, left)
    assert call() == left
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [tower.one]))


@pytest.mark.parametrize(
    ("change", "enough"),
    [
        ({}, True),
        ({"verdict": "fail"}, False),
        ({"precision": "bf16"}, False),
        ({"composition": EMPTY.digest}, False),
    ],
    ids=["passed", "failed", "at another precision", "of another composition"],
)
def test_a_passing_audit_of_what_is_left_allows_it(
    reg: Registry, tmp_path: Path, change: dict[str, Any], enough: bool
) -> None:
    tower = Stack(reg, tmp_path)
    left = stack([tower.second, tower.third])
    audited(reg, left, **change)
    if not enough:
        rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [tower.one]), tower.first.digest)
        return
    assert plan_removal(reg, "prod", [tower.one]) == left
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [tower.two]), tower.second.digest)
    release(reg, left, reason="a court order")
    assert (state(reg, tower.one), state(reg, tower.three)) == ("REOPENED", "RELEASED")


def test_the_same_with_another_weight_is_another_composition(reg: Registry, tmp_path: Path) -> None:
    tower = Stack(reg, tmp_path)
    halved = compose(BASE, "nf4", [(tower.second.digest, "0.5"), (tower.third.digest, 1)])
    audited(reg, halved)
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [tower.one]), tower.first.digest)


def test_channels_and_versions(reg: Registry, tmp_path: Path) -> None:
    assert channels(reg) == []
    for name in ("prod", "canary", "a.b-c_D"):
        create(reg, EMPTY, name)
    create(reg, EMPTY, "prod")
    assert channels(reg) == ["a.b-c_D", "canary", "prod"]
    assert [one.version for one in history(reg, "prod")] == [1, 2]


def test_times_are_those_of_the_events(reg: Registry, tmp_path: Path) -> None:
    _, composition = candidate(reg, tmp_path)
    approve(reg, composition)
    wait(reg, days=3)
    activate(reg)
    at = {event.kind: event.at for event in log(reg)}
    found = get_release(reg, "prod", 1)
    assert (found.created_at, found.activated_at) == (at["release.candidate"], at["release.active"])
    rebuild(reg)
    assert get_release(reg, "prod", 1) == found


def test_a_composition_is_checked_again(reg: Registry, tmp_path: Path) -> None:
    """It is a value that anyone can put together."""
    _, adapter = answered(reg, tmp_path, 1)
    good = stack([adapter])
    for bad in (
        replace(good, base="a b"),
        replace(good, quantization=""),
        replace(good, render="magic"),
        replace(good, parts=(replace(good.parts[0], weight="nan"),)),
        replace(good, parts=good.parts * 2),
        replace(good, parts=(replace(good.parts[0], adapter="x"),)),
    ):
        rejected(reg, InvalidInput, lambda bad=bad: create(reg, bad))
    odd = replace(good, parts=(replace(good.parts[0], weight="1.000"),))
    assert create(reg, odd).composition == good
