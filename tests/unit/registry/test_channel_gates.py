"""Gates of a channel: what an audit must have been judged by; asked again by whoever replays the ledger."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifecycle_kit import rejected
from registry_kit import answered, audited, stack
from tamper_kit import forge

from efface.registry import (
    BrokenRegistry,
    Channel,
    Composition,
    GateFailed,
    InvalidInput,
    Registry,
    activate_release,
    approve_release,
    compose,
    create_release,
    gate_channel,
    get_channel,
    log,
    rebuild,
    record_audit,
    rule_channel,
    verify,
)
from efface.registry import bundle_facts as facts
from efface.registry.gates import unmet


def gated(reg: Registry, gates: dict[str, Any], channel: str = "prod", **changes: Any) -> Channel:
    return gate_channel(reg, channel, gates, **{"reason": "policy 7", "actor": "cleo", **changes})


def judged(
    reg: Registry, composition: Composition, gates: dict[str, Any] | None, requests: Any = None
) -> str:
    fields: dict[str, Any] = {
        "composition": composition.digest,
        "precision": composition.quantization,
        "suite": "quick/1",
        "seed": 0,
        "verdict": "pass",
        "report": json.dumps({"n": 1}).encode(),
        "environment": {},
    }
    return record_audit(reg, **fields, requests=requests, gates=gates, actor="ana").digest


def candidate(reg: Registry, work: Path) -> Composition:
    _, adapter = answered(reg, work, 1)
    create_release(reg, "prod", stack([adapter]), rendered=None, reason="r", actor="ana")
    return stack([adapter])


def test_gates_are_set_one_by_one_and_taken_off(reg: Registry) -> None:
    assert gated(reg, {}) == Channel("prod", 0, None, two_person=False)
    assert log(reg) == []
    first = gated(reg, {"max_extraction_strength_forget": 0.1, "min_fluency_ratio": "0.70"})
    assert first.gates == {"max_extraction_strength_forget": "0.1", "min_fluency_ratio": "0.7"}
    assert gated(reg, {"min_fluency_ratio": Decimal("0.7")}) == first == get_channel(reg, "prod")
    assert len(log(reg)) == 1
    rule_channel(reg, "prod", two_person=True, reason="r", actor="cleo")
    last = gated(reg, {"min_fluency_ratio": None, "confidence": 0.95, "few_rows": 30.0})
    kept = {"confidence": "0.95", "few_rows": "30", "max_extraction_strength_forget": "0.1"}
    assert last.gates == kept
    assert last.two_person
    assert log(reg)[-1].body == {"gates": last.gates, "reason": "policy 7"}
    (row,) = facts.facts(log(reg), {})["channels"]
    assert (row["gates"], row["two_person"], row["gates_reason"]) == (last.gates, True, "policy 7")
    assert rebuild(reg) == 3
    assert verify(reg, deep=True).ok


@pytest.mark.parametrize(
    "judging",
    [None, {}, {"max_drop": 0.2}, {"max_drop": 0.1}, {"max_drop": 0.1, "min_ratio": 0.4}],
    ids=str,
)
def test_an_audit_that_was_not_judged_so_carries_nothing(reg: Registry, tmp_path: Path, judging: Any) -> None:
    gated(reg, {"max_drop": 0.1, "min_ratio": 0.5})
    composition = candidate(reg, tmp_path)
    audit = judged(reg, composition, judging)
    for call in (approve_release, activate_release):
        rejected(
            reg,
            GateFailed,
            lambda call=call: call(reg, "prod", 1, audit=audit, approved_by="ana"),
            "judged under every gate of prod",
        )


@pytest.mark.parametrize(
    "judging", [{"max_drop": 0.1, "min_ratio": 0.5}, {"max_drop": 0, "min_ratio": 2, "max_x": 1}]
)
def test_one_judged_as_strictly_or_more_does(reg: Registry, tmp_path: Path, judging: Any) -> None:
    gated(reg, {"max_drop": 0.1, "min_ratio": 0.5})
    audit = judged(reg, candidate(reg, tmp_path), judging)
    assert activate_release(reg, "prod", 1, audit=audit, approved_by="ana").state == "ACTIVE"
    assert verify(reg, deep=True).ok


def test_what_was_approved_before_the_gate_is_not_served_under_it(reg: Registry, tmp_path: Path) -> None:
    composition = candidate(reg, tmp_path)
    approve_release(reg, "prod", 1, audit=judged(reg, composition, None), approved_by="ana")
    gated(reg, {"max_drop": 0.1})
    rejected(reg, GateFailed, lambda: activate_release(reg, "prod", 1, approved_by="ana"), "max_drop")


def test_no_gate_holds_the_bare_base(reg: Registry, tmp_path: Path) -> None:
    gated(reg, {"max_drop": 0.1})
    composition = candidate(reg, tmp_path)
    bare = compose(composition.base, composition.quantization, ())
    create_release(reg, "prod", bare, rendered=None, reason="r", actor="ana")
    assert (
        activate_release(reg, "prod", 2, audit=audited(reg, bare).digest, approved_by="ana").state == "ACTIVE"
    )
    assert verify(reg, deep=True).ok


@pytest.mark.parametrize("late", [False, True])
def test_a_release_that_went_past_its_gates_is_named(reg: Registry, tmp_path: Path, late: bool) -> None:
    audit = judged(reg, candidate(reg, tmp_path), None)
    gate = ("channel.gated", "prod", {"gates": {"max_drop": "0.1"}, "reason": "r"})
    body = {"channel": "prod", "version": 1}
    through = [
        ("release.approved", "prod@1", body | {"audit": audit}),
        ("release.active", "prod@1", body | {"audit": audit}),
    ]
    forge(reg, *([through[0], gate, through[1]] if late else [gate, *through]))
    (problem,) = verify(reg).problems
    assert problem.kind == "replay" and problem.found == "one without max_drop"
    for read in (lambda: rebuild(reg), lambda: facts.facts(log(reg), {})):
        with pytest.raises(BrokenRegistry, match="gates of its channel"):
            read()


@pytest.mark.parametrize(
    "gates",
    [
        {"drop": "1"},
        {"max_drop": "0.10"},
        {"max_drop": 0.1},
        {"max_drop": "-1"},
        {"max_drop": "x"},
        "none",
        None,
        [1],
    ],
    ids=str,
)
def test_an_event_of_what_is_no_gate_is_named(reg: Registry, gates: Any) -> None:
    forge(reg, ("channel.gated", "prod", {"gates": gates, "reason": "r"}))
    (problem,) = verify(reg).problems
    assert (problem.kind, problem.where) == ("replay", "event 1")


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"gates": {name: 0.1}}
            for name in ("drop", "max_", "MAX_drop", "max_drop.", "max drop", "", "confidences")
        ),
        *({"gates": {"max_drop": value}} for value in (-1, "many", float("nan"), float("inf"), "1e99")),
        {"gates": {f"max_{i}a": 1 for i in range(101)}},
        {"reason": ""},
        {"actor": ""},
        {"channel": "a b"},
    ],
    ids=str,
)
def test_what_is_no_gate_writes_nothing(reg: Registry, change: dict[str, Any]) -> None:
    values: dict[str, Any] = {"gates": {"max_drop": 0.1}, **change}
    rejected(reg, InvalidInput, lambda: gated(reg, values.pop("gates"), **values))


BOUNDS = st.decimals(0, 10, places=3)
NAMES = st.sampled_from(["max_a", "max_a.b", "min_a", "confidence", "few_rows"])


@given(st.dictionaries(NAMES, BOUNDS, max_size=4), st.dictionaries(NAMES, BOUNDS, max_size=4))
def test_strictness_is_an_order(asked: dict[str, Decimal], given_: dict[str, Decimal]) -> None:
    one, other = ({k: str(v) for k, v in some.items()} for some in (asked, given_))
    assert unmet(one, one) == [] == unmet({}, other)
    assert set(unmet(one, None)) == set(one) == set(unmet(one, {}))
    stricter = {
        name: max([d[name] for d in (one, other) if name in d], key=Decimal) for name in {*one, *other}
    }
    stricter |= {
        name: min([d[name] for d in (one, other) if name in d], key=Decimal)
        for name in stricter
        if name.startswith("max_")
    }
    assert unmet(one, stricter) == [] == unmet(other, stricter)
