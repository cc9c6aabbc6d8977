"""Compactions in the registry: what they may say they are made from, and how requests leave them again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lifecycle_kit import rejected, state
from registry_kit import BASE, answered, ask, audited, contents, lora, release, seal, stack

from efface.registry import (
    Adapter,
    Conflict,
    InvalidInput,
    Registry,
    active_release,
    adapter_for_request,
    compose,
    create_release,
    get_adapter,
    list_adapters,
    plan_compaction,
    plan_removal,
    plan_without,
    purge_adapter,
    rebuild,
    retire_adapter,
    verify,
)

Pairs = list[tuple[str, Adapter]]


def compaction(reg: Registry, work: Path, of: Sequence[Adapter], seed: int = 50, **changes: Any) -> Adapter:
    """A compaction of these adapters, with bytes of its own."""
    facts = {"made_from": {one.digest: "1" for one in of}}
    requests = sorted({request for one in of for request in one.requests})
    values: dict[str, Any] = {"kind": "consolidated", "facts": facts, "error_bound": "0.1", **changes}
    return seal(reg, lora(work / f"compaction-{seed}", seed), values.pop("requests", requests), **values)


@pytest.fixture
def four(reg: Registry, tmp_path: Path) -> Pairs:
    return [answered(reg, tmp_path, seed) for seed in range(4)]


def adapters(pairs: Pairs) -> list[Adapter]:
    return [adapter for _, adapter in pairs]


def test_a_request_leaves_by_the_originals_of_the_others(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    (one, _), (two, second), (three, third), (_, fourth) = four
    made = compaction(reg, tmp_path, adapters(four[:3]))
    release(reg, stack([made, fourth]))
    assert state(reg, one) == "RELEASED"
    assert plan_removal(reg, "prod", [one]) == stack([second, third, fourth])
    assert plan_removal(reg, "prod", [one, three]) == stack([second, fourth])
    assert plan_removal(reg, "prod", [one, two, three]) == stack([fourth])
    found = plan_without(reg, stack([made, fourth]), [one])
    assert set(found.gone) == {made.digest, four[0][1].digest}
    assert (set(found.restored), found.repairs) == ({second.digest, third.digest}, ())
    release(reg, plan_removal(reg, "prod", [one]))
    assert (state(reg, one), state(reg, two)) == ("REOPENED", "RELEASED")
    before = active_release(reg, "prod")
    rebuild(reg)
    assert active_release(reg, "prod") == before
    assert not verify(reg).problems


def test_compactions_of_compactions_come_apart_as_far_as_they_must(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    (one, first), (two, second), (three, third), (four_, fourth) = four
    low = compaction(reg, tmp_path, [first, second], 60)
    high = compaction(reg, tmp_path, [low, third, fourth], 61)
    release(reg, stack([high]))
    assert plan_removal(reg, "prod", [three]) == stack([low, fourth])
    assert plan_removal(reg, "prod", [one]) == stack([second, third, fourth])
    assert plan_removal(reg, "prod", [one, two]) == stack([third, fourth])
    assert plan_removal(reg, "prod", [one, two, three, four_]) == stack([])


def test_weights_multiply(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    (one, first), (_, second), *_ = four
    facts = {"made_from": {first.digest: "1", second.digest: "0.7"}}
    made = compaction(reg, tmp_path, [first, second], facts=facts)
    release(reg, compose(BASE, "nf4", [(made.digest, "0.3")]))
    assert plan_removal(reg, "prod", [one]) == compose(BASE, "nf4", [(second.digest, "0.21")])


def test_it_takes_the_place_of_its_originals_at_their_weights(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    _, (_, second), (_, third), (_, fourth) = four
    made = compaction(reg, tmp_path, [second, third])
    release(reg, stack([second, third, fourth]))
    assert plan_compaction(reg, "prod", made.digest) == stack([made, fourth])
    release(reg, compose(BASE, "nf4", [(second.digest, "0.5"), (third.digest, 1)]))
    rejected(reg, InvalidInput, lambda: plan_compaction(reg, "prod", made.digest), second.digest)
    release(reg, stack([second, fourth]))
    rejected(reg, InvalidInput, lambda: plan_compaction(reg, "prod", made.digest), third.digest)
    rejected(reg, InvalidInput, lambda: plan_compaction(reg, "prod", second.digest), "efface adapter compact")


def test_an_adapter_does_not_count_twice(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    first, second, third, _ = adapters(four)
    made, other = (
        compaction(reg, tmp_path, some, i) for i, some in ((60, [first, second]), (61, [second, third]))
    )
    for twice in ([made, first], [made, other]):
        call = lambda twice=twice: create_release(  # noqa: E731
            reg, "prod", stack(twice), rendered=None, reason="r", actor="ana"
        )
        rejected(reg, InvalidInput, call, "each adapter once")


@pytest.mark.parametrize(
    "facts",
    [
        {"made_from": {}},
        {"made_from": ["sha256:" + "1" * 64]},
        {"made_from": {"sha256:" + "1" * 64: "1"}},
        {"made_from": {"first": "1"}},
        {"made_from": {"ORIGINAL": "0"}},
        {"made_from": {"ORIGINAL": "1.0"}},
        {"made_from": {"ORIGINAL": 1}},
        {"made_from": {"ORIGINAL": "NaN"}},
    ],
    ids=str,
)
def test_what_it_is_made_from_is_checked(
    reg: Registry, four: Pairs, tmp_path: Path, facts: dict[str, Any]
) -> None:
    request, original = four[0]
    named = facts["made_from"]
    if "ORIGINAL" in named:
        facts = {"made_from": {original.digest: named["ORIGINAL"]}}
    folder = lora(tmp_path / "bad", 70)
    call = lambda: seal(reg, folder, [request], kind="consolidated", facts=facts)  # noqa: E731
    rejected(reg, InvalidInput, call)


def test_an_original_does_not_go_in_twice(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    inner = compaction(reg, tmp_path, adapters(four[:2]))
    before = contents(reg.root)
    with pytest.raises(InvalidInput, match="each original once"):
        compaction(reg, tmp_path, [inner, four[0][1]], 51)
    assert contents(reg.root) == before


def test_a_weight_by_which_it_would_not_come_apart(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    """A request has to be able to leave: the weights of the originals are products, of at most 18 digits."""
    weights = {adapter.digest: "0.1234567890123" for _, adapter in four[:2]}
    made = compaction(reg, tmp_path, adapters(four[:2]), facts={"made_from": weights})
    for weight, fits in (("0.1234567890123", False), ("0.125", True)):
        composition = compose(BASE, "nf4", [(made.digest, weight)])
        if fits:
            release(reg, composition)
            assert plan_removal(reg, "prod", [four[0][0]]).parts[0].weight == "0.0154320986265375"
            continue
        with pytest.raises(InvalidInput, match="Round it"):
            create_release(reg, "prod", composition, rendered=None, reason="r", actor="ana")


def test_its_requests_are_those_of_its_originals(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    first, second, *_ = adapters(four)
    folder = lora(tmp_path / "bad", 70)
    facts = {"made_from": {first.digest: "1", second.digest: "1"}}
    for requests in (first.requests, (*first.requests, four[2][0]), tuple(request for request, _ in four)):
        call = lambda requests=requests: seal(  # noqa: E731
            reg, folder, requests, kind="consolidated", facts=facts
        )
        rejected(reg, InvalidInput, call, "originals")


def test_originals_are_of_its_base_and_in_use(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    (one, first), (_, second), *_ = four
    elsewhere = seal(reg, lora(tmp_path / "else", 71), [one], quantization="int8")
    error = rejected(
        reg, InvalidInput, lambda: compaction(reg, tmp_path, [second, elsewhere], 72), "one base"
    )
    for digest in (BASE, elsewhere.base, elsewhere.digest):
        assert digest in str(error)
    int8 = seal(reg, lora(tmp_path / "int8", 73), list(second.requests), quantization="int8")
    error = rejected(reg, InvalidInput, lambda: compaction(reg, tmp_path, [second, int8], 74), "one base")
    assert f"{BASE} at nf4" in error.expected
    assert f"{int8.digest} on base {BASE} at int8" in error.came
    retire_adapter(reg, first.digest, reason="old", actor="ana")
    rejected(reg, InvalidInput, lambda: compaction(reg, tmp_path, [first, second], 73), "RETIRED")


def test_originals_stay_while_it_is_in_use(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    first, second, *_ = adapters(four)
    made = compaction(reg, tmp_path, [first, second])
    end = lambda digest: retire_adapter(reg, digest, reason="old", actor="ana")  # noqa: E731
    rejected(reg, Conflict, lambda: end(first.digest), made.digest)
    end(made.digest)
    purge_adapter(reg, made.digest, reason="old", actor="ana")
    assert end(first.digest).state == "RETIRED"


def test_one_without_provenance_comes_apart_only_whole(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    """Adapters of kind `consolidated` from before there were compactions."""
    (one, _), (two, _), *_ = four
    made = seal(reg, lora(tmp_path / "old", 74), [one, two], kind="consolidated")
    release(reg, stack([made]))
    rejected(reg, InvalidInput, lambda: plan_removal(reg, "prod", [one]), two)
    assert plan_removal(reg, "prod", [one, two]) == stack([])


# --- dependencies through compactions


def on_top(reg: Registry, work: Path, below: Sequence[Adapter], seed: int = 80, **changes: Any) -> Adapter:
    request = changes.pop("request", None) or ask(reg)
    facts = {"repairs": [request]} if changes.pop("repair", False) else {}
    return seal(reg, lora(work / f"top-{seed}", seed), [request], trained_on=stack(below).digest, facts=facts)


def test_what_was_trained_on_an_original_depends_on_the_compaction(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    (one, first), (_, second), (three, third), _ = four
    release(reg, stack([first, second]))
    top = on_top(reg, tmp_path, [first, second])
    made = compaction(reg, tmp_path, [first, second])
    release(reg, stack([made, third, top]))
    error = rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [one]), "efface audit run")
    assert top.requests[0] in error.then
    assert plan_removal(reg, "prod", [three]) == stack([made, top])
    assert plan_removal(reg, "prod", [one, *top.requests]) == stack([second, third])
    left = plan_without(reg, stack([made, third, top]), [one]).composition
    audited(reg, left)
    assert plan_removal(reg, "prod", [one]) == left == stack([second, third, top])


def test_what_was_trained_on_a_compaction_depends_on_its_originals(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    (one, first), (_, second), *_ = four
    made = compaction(reg, tmp_path, [first, second])
    release(reg, stack([made]))
    top = on_top(reg, tmp_path, [made])
    release(reg, stack([first, second, top]))
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [one]), "efface audit run")
    assert plan_removal(reg, "prod", list(top.requests)) == stack([first, second])


def test_a_compaction_of_a_tower_depends_on_what_it_stands_on(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    """Its originals were trained on an adapter that is not in it."""
    (one, first), (two, second), *_ = four
    release(reg, stack([first]))
    top = on_top(reg, tmp_path, [first])
    made = compaction(reg, tmp_path, [second, top])
    release(reg, stack([first, made]))
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [one]), made.digest)
    assert plan_removal(reg, "prod", [two]) == stack([first, top])
    whole = compaction(reg, tmp_path, [first, second, top], 81)
    release(reg, stack([whole]))
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [one]), top.digest)
    assert plan_removal(reg, "prod", [two]) == stack([first, top])


# --- repairs


def test_a_repair_leaves_with_its_request_and_is_not_its_adapter(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    (one, first), (two, second), *_ = four
    release(reg, stack([first, second]))
    repair = on_top(reg, tmp_path, [first, second], request=one, repair=True)
    release(reg, stack([first, second, repair]))
    assert adapter_for_request(reg, one) == get_adapter(reg, first.digest)
    assert {adapter.digest for adapter in list_adapters(reg, one)} == {first.digest, repair.digest}
    assert plan_removal(reg, "prod", [one]) == stack([second])
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [two]), "--drop-repairs")
    assert plan_removal(reg, "prod", [two], drop_repairs=True) == stack([first])
    audited(reg, stack([first, repair]))
    assert plan_removal(reg, "prod", [two]) == stack([first, repair])


def test_repairs_of_repairs_are_dropped_together(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    (one, first), (two, second), (three, third), _ = four
    release(reg, stack([first, second]))
    low = on_top(reg, tmp_path, [first, second], 80, request=one, repair=True)
    release(reg, stack([first, second, third, low]))
    high = on_top(reg, tmp_path, [first, second, third, low], 83, request=three, repair=True)
    release(reg, stack([first, second, third, low, high]))
    found = plan_without(reg, stack([first, second, third, low, high]), [two], drop_repairs=True)
    assert found.composition == stack([first, third])
    assert set(found.repairs) == {low.digest, high.digest}
    assert plan_removal(reg, "prod", [three]) == stack([first, second, low])
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [one]), high.digest)
    assert plan_removal(reg, "prod", [one], drop_repairs=True) == stack([second, third])


def test_a_repair_comes_back_out_of_a_compaction_unless_it_is_dropped(
    reg: Registry, four: Pairs, tmp_path: Path
) -> None:
    (one, first), (two, second), (three, third), _ = four
    release(reg, stack([first, second]))
    repair = on_top(reg, tmp_path, [first, second], request=one, repair=True)
    made = compaction(reg, tmp_path, [first, second, third, repair])
    release(reg, stack([made]))
    assert plan_removal(reg, "prod", [one]) == stack([second, third])
    assert plan_removal(reg, "prod", [three]) == stack([first, second, repair])
    rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [two]), repair.digest)
    assert plan_removal(reg, "prod", [two], drop_repairs=True) == stack([first, third])


def test_dropped_repairs_leave_a_compaction_too(reg: Registry, four: Pairs, tmp_path: Path) -> None:
    """What they stood on was outside of it; the others of the compaction come back."""
    (one, first), (two, second), (_, third), _ = four
    release(reg, stack([first, second]))
    repair = on_top(reg, tmp_path, [first, second], request=one, repair=True)
    made = compaction(reg, tmp_path, [first, third, repair])
    release(reg, stack([second, made]))
    error = rejected(reg, Conflict, lambda: plan_removal(reg, "prod", [two]), made.digest)
    assert f"efface release rollback prod --remove {two} --drop-repairs --reason" in error.then
    assert plan_removal(reg, "prod", [two], drop_repairs=True) == stack([first, third])
    found = plan_without(reg, stack([second, made]), [two], drop_repairs=True)
    assert (set(found.restored), found.repairs) == ({first.digest, third.digest}, (repair.digest,))


def test_requests_that_share_adapters_are_named_at_once(reg: Registry, tmp_path: Path) -> None:
    one, two, three = ask(reg), ask(reg), ask(reg)
    chain = [seal(reg, lora(tmp_path / f"{i}", i), some) for i, some in enumerate(([one, two], [two, three]))]
    release(reg, stack(chain))
    error = rejected(reg, InvalidInput, lambda: plan_removal(reg, "prod", [one]))
    assert error.came.endswith(f"also forgets {two}, {three}")
    assert plan_removal(reg, "prod", [one, two, three]) == stack([])
