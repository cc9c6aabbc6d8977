"""A removal that is refused names one that works, and no request in it could stay.

Random adapters, each trained on a random draw of those before it (through the registry, weights by hand, no model):
some forget two requests, some are repairs or balances, and some are compacted together.
"""

import shlex
import tempfile
from collections.abc import Iterator
from itertools import chain, combinations, pairwise
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from registry_kit import ask, lora, release, seal, stack
from story_kit import scratch

from efface.registry import (
    Adapter,
    Composition,
    Conflict,
    InvalidInput,
    Registry,
    active_release,
    create_release,
    plan_removal,
    plan_whole,
)

MOST = 5
Shape = tuple[str, frozenset[int]]
"""What an adapter is, and the numbers of those before it that it was trained on."""
shapes = st.lists(
    st.tuples(
        st.sampled_from(["trained", "trained", "two", "repair", "balance"]),
        st.frozensets(st.integers(0, MOST - 1), max_size=3),
    ),
    min_size=2,
    max_size=MOST,
)


@settings(max_examples=25, deadline=None)
@given(drawn=shapes, compacted=st.frozensets(st.integers(0, MOST - 1)))
def test_following_the_plan_of_a_refusal_succeeds_and_nothing_in_it_could_stay(
    drawn: list[Shape], compacted: frozenset[int]
) -> None:
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        work = Path(name)
        with Registry.open(work / "registry", create=True) as reg:
            served = world(reg, work, drawn, compacted)
            requests = sorted({one for adapter in served for one in adapter.requests})
            release(reg, stack(served))
            allowed = [
                (frozenset(going), drop)
                for going in subsets(requests)
                for drop in (False, True)
                if answer(reg, going, drop) is None
            ]
            for going in subsets(requests):
                for drop in (False, True):
                    check(reg, going, drop, allowed)


def check(
    reg: Registry, going: tuple[str, ...], drop: bool, allowed: list[tuple[frozenset[str], bool]]
) -> None:
    refused = answer(reg, going, drop)
    if refused is None:
        return
    if isinstance(
        refused, InvalidInput
    ):  # an adapter forgets more: with those named, it is not for that any more
        more = refused.came.partition("also forgets ")[2].split(", ")
        assert not isinstance(answer(reg, (*going, *more), drop), InvalidInput)
        return
    said = command(refused, "release rollback")
    plan, drops = options(said, "--remove"), "--drop-repairs" in said
    assert said[:4] == ["efface", "release", "rollback", "prod"]
    assert (plan, drops) in allowed
    wider = [(other, with_drop) for other, with_drop in allowed if other >= set(going)]
    assert all(plan <= other for other, _ in wider)
    assert drops == ((plan, False) not in allowed)
    audit = command(refused, "audit run")
    assert (options(audit, "--without"), audit[3:5]) == (set(going), ["--release", "prod"])
    whole = plan_whole(reg, active(reg), going)
    assert (frozenset(whole.requests), whole.drop_repairs) == (plan, drops)
    assert whole.removal.composition == plan_removal(reg, "prod", plan, drop_repairs=drops)


def world(reg: Registry, work: Path, drawn: list[Shape], compacted: frozenset[int]) -> list[Adapter]:
    """The adapters that are served: those drawn, some of them in one compaction."""
    made: list[Adapter] = []
    for seed, (kind, below) in enumerate(drawn):
        on = [made[i] for i in sorted(below) if i < len(made)]
        made.append(adapter(reg, work, seed, kind, on, made))
    inside = [made[i] for i in sorted(compacted) if i < len(made)]
    requests = sorted({one for each in inside for one in each.requests})
    if len(inside) < 2 or not requests:
        return made
    facts = {"made_from": {one.digest: "1" for one in inside}}
    one = seal(
        reg, lora(work / "compaction", 90), requests, kind="consolidated", facts=facts, error_bound="0.1"
    )
    return [*(each for each in made if each not in inside), one]


def adapter(
    reg: Registry, work: Path, seed: int, kind: str, on: list[Adapter], made: list[Adapter]
) -> Adapter:
    folder, below = lora(work / f"lora-{seed}", seed), stack(on).digest if on else None
    more: dict[str, Any] = {}
    if on:
        create_release(reg, "seen", stack(on), rendered=None, reason="why", actor="ana")
        more = {"trained_on": below}
    held = [one for each in made for one in each.requests]
    if kind == "balance" and on:
        return seal(reg, folder, [], facts={"balances": below}, **more)
    if kind == "repair" and on and held:
        return seal(reg, folder, [held[0]], facts={"repairs": [held[0]]}, **more)
    if kind == "two" and held:
        return seal(reg, folder, [held[-1], ask(reg)], **more)
    return seal(reg, folder, [ask(reg)], **more)


def answer(reg: Registry, going: tuple[str, ...], drop: bool) -> Conflict | InvalidInput | None:
    try:
        plan_removal(reg, "prod", going, drop_repairs=drop)
    except (Conflict, InvalidInput) as error:
        return error
    return None


def active(reg: Registry) -> Composition:
    return active_release(reg, "prod").composition


def command(refused: Conflict | InvalidInput, verb: str) -> list[str]:
    """The words of the command that the refusal names, as somebody would paste them."""
    text = refused.then[refused.then.index(f"efface {verb}") :]
    return shlex.split(text.partition(";")[0].removesuffix("."))


def options(words: list[str], flag: str) -> frozenset[str]:
    return frozenset(value for word, value in pairwise(words) if word == flag)


def subsets(members: list[str]) -> Iterator[tuple[str, ...]]:
    """All but the empty one."""
    return chain.from_iterable(combinations(members, size) for size in range(1, len(members) + 1))
