"""Repair: which requests came back, what is trained for them and on what, and how it leaves again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compaction_kit import WHO, WHY, answered, drawn, recipe, sealed
from lifecycle_kit import rejected
from registry_kit import contents

from efface.recipes import Bench, Recipe, Released, add_requests, open_bench, remove_requests, return_to
from efface.recipes.errors import RequestError
from efface.recipes.release import composition_without, sealed_rendering
from efface.recipes.repair import Repaired, plan_repair, repair, repairing
from efface.recipes.unmeasured import UNMEASURED
from efface.registry import (
    Adapter,
    Conflict,
    Registry,
    activate_release,
    active_release,
    adapter_for_request,
    compose,
    create_release,
    get_adapter,
    get_request,
    history,
    plan_removal,
    record_audit,
    shred_request,
    step_request,
    verify,
)
from efface.serving.render import RenderError


@pytest.fixture(scope="module")
def bench(tiny_llama: Path) -> Bench:
    return open_bench(tiny_llama, recipe())


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "registry", create=True) as reg:
        yield reg


@pytest.fixture
def two(reg: Registry, bench: Bench, tmp_path: Path) -> list[tuple[str, Adapter]]:
    return [answered(reg, bench, tmp_path, seed) for seed in range(2)]


def strict(most: float, **changes: Any) -> Recipe:
    """A recipe that fails a request whose answers keep more than this share of their probability."""
    gates = {**recipe().gates.model_dump(exclude_unset=True), "max_probability_ratio_forget": most}
    return recipe(gates=gates, objective="npo", learning_rate=1e-2, **changes)


def test_a_repair_learns_its_own_a() -> None:
    """The default recipe's contrast is of inputs as the bare base has them; the stack has changed those."""
    asked = strict(0.5, initialisation="contrast", stacking={"freeze_a": True, "company": 0.5})
    made = repairing(asked, 1, 4)
    assert (made.initialisation, made.stacking.freeze_a, made.stacking.company) == ("default", False, 0.5)
    null = repairing(strict(0.5, initialisation="null_space", stacking={"freeze_a": True}), 1, 4)
    assert (null.initialisation, null.stacking.freeze_a) == ("null_space", True)


def ratios(released: Released) -> dict[str, float]:
    return {
        finding.request: finding.value
        for finding in released.report.findings
        if finding.gate == "max_probability_ratio_forget" and finding.request and finding.value is not None
    }


def came_back(reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]) -> tuple[Recipe, str, str]:
    """A candidate in which one request is above the gate: the recipe, that request, the other one."""
    requests = [request for request, _ in two]
    found = ratios(add_requests(reg, "scratch", requests, bench, recipe(), **WHY))
    best, worst = sorted(found, key=found.__getitem__)
    gate = strict((found[best] * found[worst]) ** 0.5)
    failed = add_requests(reg, "prod", requests, bench, gate, **WHY)
    assert (failed.release.state, failed.audit.verdict) == ("CANDIDATE", "fail")
    return gate, worst, best


def test_the_last_audit_says_who_came_back(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    _, worst, _ = came_back(reg, bench, two)
    plan = plan_repair(reg, "prod")
    assert (plan.requests, plan.release.version, plan.audit.verdict) == ((worst,), 1, "fail")
    assert plan_repair(reg, "prod", 1) == plan
    assert plan_repair(reg, "scratch").audit == plan.audit  # the same composition, its newest audit


def repaired(reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]) -> tuple[Repaired, str, str]:
    gate, worst, best = came_back(reg, bench, two)
    done = repair(reg, "prod", bench, gate, rank=2, steps=25, **WHY)
    return done, worst, best


def test_a_small_adapter_on_top_of_the_stack_forgets_it_again(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    done, worst, best = repaired(reg, bench, two)
    (adapter,) = done.adapters
    stack = done.plan.release.composition
    assert (adapter.kind, adapter.requests, adapter.trained_on) == ("trained", (worst,), stack.digest)
    assert adapter.facts["repairs"] == [worst]
    assert adapter.facts["rank"] == 2
    assert adapter.facts["scope_kept_out_of"] == [best]
    release = done.released.release
    assert (release.state, release.version) == ("ACTIVE", 2)
    assert set(release.composition.adapters) == {*stack.adapters, adapter.digest}
    assert {get_request(reg, request).state for request in (worst, best)} == {"RELEASED"}
    assert plan_repair(reg, "prod").requests == ()
    own = dict(two)[worst]
    assert adapter_for_request(reg, worst).digest == own.digest  # and not the repair
    assert not verify(reg).problems


def test_a_request_takes_its_repair_with_it(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    done, worst, best = repaired(reg, bench, two)
    never = compose(*_base(bench), [(dict(two)[best].digest, "1")])
    back = remove_requests(reg, "prod", [worst], bench, recipe(), **WHY).release
    assert back.composition == never
    assert get_adapter(reg, done.adapters[0].digest).state == "QUALIFIED"  # kept, and in no release


def test_what_it_was_trained_on_does_not_leave_under_it(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    """Refused with the two plans that work: without the repair too, or with an audit of what is left."""
    done, worst, best = repaired(reg, bench, two)
    error = rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [best]), "--drop-repairs")
    assert "efface audit run --release" in error.then
    own = dict(two)[worst].digest
    without = compose(*_base(bench), [(own, "1")])
    assert plan_removal(reg, "prod", [best], drop_repairs=True) == without
    served = active_release(reg, "prod").composition
    left = composition_without(reg, served, [best])
    assert set(left.adapters) == {own, done.adapters[0].digest}
    back = remove_requests(reg, "prod", [best], bench, recipe(), drop_repairs=True, **WHY).release
    assert back.composition == without
    audited = _audit(reg, bench, left)
    assert audited.verdict == "pass"
    # prod serves something else now; the other plan is for what scratch serves.
    again = add_requests(reg, "other", [worst, best], bench, recipe(), **WHY).release
    assert again.composition == done.plan.release.composition


def test_dropping_repairs_drops_no_more_than_it_must(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    """A request that was added afterwards leaves, and the repair stays."""
    done, worst, best = repaired(reg, bench, two)
    third, _ = answered(reg, bench, tmp_path, 2)
    add_requests(reg, "prod", [third], bench, recipe(), **WHY)
    before = done.released.release.composition
    assert plan_removal(reg, "prod", [third], drop_repairs=True) == before
    assert plan_removal(reg, "prod", [third]) == before
    both = plan_removal(reg, "prod", [worst, third])
    assert both == compose(*_base(bench), [(dict(two)[best].digest, "1")])


# --- nothing to do, or nothing to do it with


def test_a_stack_that_passed_needs_no_repair(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    add_requests(reg, "prod", [request for request, _ in two], bench, recipe(), **WHY)
    before = contents(reg.root)
    assert plan_repair(reg, "prod").requests == ()
    with pytest.raises(RequestError, match="no request came back"):
        repair(reg, "prod", bench, recipe(), **WHY)
    assert contents(reg.root) == before


def test_what_was_never_audited_says_so(reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]) -> None:
    from efface.registry import create_release, withdraw_release

    stack = compose(*_base(bench), [(adapter.digest, "1") for _, adapter in two])
    create_release(reg, "prod", stack, rendered=None, **WHY)
    with pytest.raises(RequestError, match="never audited at fp32: efface audit run"):
        plan_repair(reg, "prod")
    withdraw_release(reg, "prod", 1, **WHY)
    with pytest.raises(RequestError, match="candidate, approved or active"):
        plan_repair(reg, "prod")


def test_a_shredded_request_is_not_repaired(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    gate, worst, _ = came_back(reg, bench, two)
    shred_request(reg, worst, **WHO)  # `scratch` serves it
    assert get_request(reg, worst).shredding_at is not None
    before = [release.version for release in history(reg, "prod")]
    with pytest.raises(RequestError, match="shredded"):
        repair(reg, "prod", bench, gate, **WHY)
    assert [release.version for release in history(reg, "prod")] == before


def test_settings_that_cannot_be_meant_train_nothing(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    gate, _, _ = came_back(reg, bench, two)
    before = contents(reg.root)
    for bad in ({"rank": 0}, {"steps": 0}, {"rank": 513}):
        with pytest.raises(RequestError, match="rank and steps"):
            repair(reg, "prod", bench, gate, **bad, **WHY)
    assert contents(reg.root) == before


@pytest.mark.parametrize("render", [None, "svd:7"])
def test_a_stack_that_no_slot_would_hold_is_refused_before_training(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]], render: str | None
) -> None:
    gate, _, _ = came_back(reg, bench, two)
    before = contents(reg.root)
    with pytest.raises(RenderError, match="rank from 1 to 6, got 7"):
        repair(reg, "prod", bench, gate, rank=3, max_rank=6, render=render, **WHY)
    assert contents(reg.root) == before
    repair(reg, "prod", bench, gate, rank=3, steps=1, max_rank=6, render="svd:6", activate=False, **WHY)


def _base(bench: Bench) -> tuple[str, str]:
    return bench.base.fingerprint.digest, bench.base.quantization


def _audit(reg: Registry, bench: Bench, left: Any):
    from efface.recipes.audit import audit_composition, audit_rows, record
    from efface.recipes.release import render_composition, requests_in

    known = audit_rows(reg, requests_in(reg, left))
    folder = render_composition(reg, left, reg.root.parent / "left")
    report = audit_composition(
        bench, left, folder, known.requests, active=known.active, recipe=recipe(), label="left"
    )
    return record(reg, left, report, recipe(), "ana", measured=known.active)


def test_of_the_bare_base_nothing_came_back(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    """Its audit says that nothing was measured, and has no findings."""
    (one, _), _ = two
    add_requests(reg, "prod", [one], bench, recipe(), **WHY)
    shred_request(reg, one, **WHO)
    assert remove_requests(reg, "prod", [one], bench, recipe(), **WHY).audit.suite == UNMEASURED
    assert plan_repair(reg, "prod").requests == ()


def test_a_withdrawn_request_in_the_stack_is_named_before_anything_is_trained(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]]
) -> None:
    gate, worst, best = came_back(reg, bench, two)
    pull_back(reg, "scratch")
    for request in (worst, best):
        step_request(reg, request, "WITHDRAWN", reason="asked again", **WHO)
        before = contents(reg.root)
        with pytest.raises(RequestError, match=f"{request} is WITHDRAWN"):
            repair(reg, "prod", bench, gate, **WHY)
        assert contents(reg.root) == before


def pull_back(reg: Registry, channel: str) -> None:
    """Serve the bare base there, so that its requests may be withdrawn."""
    served = active_release(reg, channel).composition
    bare = compose(served.base, served.quantization, [])
    made = create_release(reg, channel, bare, rendered=None, **WHY)
    proof = record_audit(
        reg, composition=bare.digest, precision=bare.quantization, suite="quick/1", seed=0, verdict="pass",
        report=b"{}", environment={}, **WHO,
    )  # fmt: skip
    activate_release(reg, channel, made.version, audit=proof.digest, approved_by="ben")


def test_an_approximate_rendering_is_served_again_as_it_was_sealed(
    reg: Registry, bench: Bench, two: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    """Another machine may round it otherwise; what is carried by an audit of before is what that audit measured."""
    requests = [request for request, _ in two]
    first = add_requests(reg, "prod", requests, bench, recipe(), render="svd:2", **WHY).release
    digest = first.composition.digest
    other = sealed(
        reg, bench, drawn(bench, tmp_path / "elsewhere", 9), requests,
        kind="rendered", facts={"composition": digest}, error_bound="0.5",
    )  # fmt: skip
    assert other.digest != first.rendered
    for request in requests:
        shred_request(reg, request, **WHO)
    remove_requests(reg, "prod", requests, bench, recipe(), **WHY)
    again = return_to(reg, "prod", 1, bench, recipe(), **WHY)
    assert (again.report, again.release.composition, again.release.state) == (
        None,
        first.composition,
        "ACTIVE",
    )
    served = sealed_rendering(reg, first.composition)
    assert served is not None and again.release.rendered == served.digest
