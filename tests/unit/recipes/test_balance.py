"""Balance: what it is trained on, what it names, what it gives back, and how requests leave with or without it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import pytest
from compaction_kit import WHO, WHY, answered, drawn, opened, recipe, sealed
from lifecycle_kit import rejected
from registry_kit import contents

from efface.audits import Probe
from efface.recipes import Bench, Recipe, Released, Row, add_requests, open_bench, remove_requests
from efface.recipes.balance import Balanced, balance, balancing, plan_balance
from efface.recipes.bench import measure, own_answers, wearing
from efface.recipes.errors import DataError, RequestError
from efface.recipes.plan import quick
from efface.recipes.release import composition_without, requests_in
from efface.recipes.sources import Sources
from efface.registry import (
    Adapter,
    Conflict,
    InvalidInput,
    NotFound,
    Registry,
    active_release,
    adapter_folder,
    compose,
    shred_request,
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
def three(reg: Registry, bench: Bench, tmp_path: Path) -> list[tuple[str, Adapter]]:
    return [answered(reg, bench, tmp_path, seed) for seed in range(3)]


@pytest.fixture
def rough(reg: Registry, bench: Bench, tmp_path: Path) -> list[str]:
    """Requests whose adapters break much besides."""
    requests = [opened(reg, subject) for subject in ("hamlet", "macbeth")]
    for seed, request in enumerate(requests):
        sealed(reg, bench, drawn(bench, tmp_path / f"rough-{seed}", seed, size=1.0), [request])
    return requests


def gentle(**changes: Any) -> Recipe:
    return recipe(objective="npo", retain_term="kl", alpha=5.0, learning_rate=5e-3, **changes)


def names(three: list[tuple[str, Adapter]]) -> list[str]:
    return [request for request, _ in three]


def cost(released: Released) -> float:
    """How far retain answers moved from where the base has them: mean distance in log-probability."""
    assert released.report is not None
    before, after = (
        {
            row.id: log(row.probability)
            for row in released.report.evaluation(label).rows
            if row.group == "retain"
        }
        for label in (released.report.before, released.report.after)
    )
    return sum(abs(after[name] - before[name]) for name in before) / len(before)


def test_it_gives_back_what_the_stack_costs(reg: Registry, bench: Bench, rough: list[str]) -> None:
    stacked = add_requests(reg, "prod", rough, bench, recipe(), **WHY)
    # These adapters are random, so their requests are not forgotten: that is not what a balance is for.
    done = balance(reg, "prod", bench, gentle(gamma=1e-3), rank=8, steps=60, **WHY)
    stack = stacked.release.composition
    assert cost(done.released) < 0.5 * cost(stacked)
    made = done.adapter
    assert (made.kind, made.requests, made.trained_on) == ("trained", (), stack.digest)
    assert made.facts["balances"] == stack.digest
    assert made.facts["held_down"] == sorted(rough)
    release = active_release(reg, "prod")
    assert set(release.composition.adapters) == {*stack.adapters, made.digest}
    assert requests_in(reg, release.composition) == sorted(rough)
    assert not verify(reg).problems


def test_a_request_leaves_after_an_audit_or_takes_the_balance_along(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    done = balance(reg, "prod", bench, gentle(), rank=2, steps=3, **WHY)
    gone, *rest = names(three)
    with pytest.raises(Conflict, match="--drop-repairs"):
        remove_requests(reg, "prod", [gone], bench, recipe(), **WHY)
    left = composition_without(reg, done.released.release.composition, [gone])
    assert done.adapter.digest in left.adapters
    never = compose(left.base, left.quantization, [(dict(three)[name].digest, "1") for name in rest])
    back = remove_requests(reg, "prod", [gone], bench, recipe(), drop_repairs=True, **WHY)
    assert back.release.composition.digest == never.digest


def test_a_new_balance_takes_the_place_of_the_old_one(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    first = balance(reg, "prod", bench, gentle(), rank=2, steps=2, **WHY)
    plan = plan_balance(reg, "prod")
    assert plan.replaced == (first.adapter.digest,)
    assert plan.stack == first.plan.stack
    second = balance(reg, "prod", bench, gentle(), rank=2, steps=3, **WHY)
    found = second.released.release.composition.adapters
    assert second.adapter.digest in found
    assert first.adapter.digest not in found


def test_a_shredded_request_is_balanced_without_its_rows(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    gone = names(three)[0]
    shred_request(reg, gone, **WHO)
    plan = plan_balance(reg, "prod")
    assert plan.shredded == (gone,)
    assert gone not in plan.requests
    done = balance(reg, "prod", bench, gentle(), rank=2, steps=2, **WHY)
    assert gone not in done.adapter.facts["held_down"]
    assert gone in requests_in(reg, done.released.release.composition)


def test_alternates_of_rows_of_one_name_stay_with_their_request(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    """Ids are a request's own: every request here has rows f1 and f2."""
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    done = balance(reg, "prod", bench, gentle(), rank=2, steps=2, **WHY)
    assert done.adapter.facts["forget_rows"] == 2 * len(three)


def test_rows_that_are_given_are_kept_where_the_base_has_them(
    reg: Registry, bench: Bench, rough: list[str]
) -> None:
    """Rows that no request names, answered as the base answers; with them the stack moves those less."""
    add_requests(reg, "prod", rough, bench, recipe(), **WHY)
    given = unasked(bench)
    without = balance(reg, "prod", bench, gentle(gamma=1e-3), rank=8, steps=60, **WHY)
    done = balance(reg, "prod", bench, gentle(gamma=1e-3), rank=8, steps=60, retain=given, **WHY)
    facts = done.adapter.facts
    assert (facts["retain_rows_given"], facts["retain_rows_in_scope_left_out"]) == (len(given), [])
    assert facts["retain_rows"] == without.adapter.facts["retain_rows"] + len(given)
    assert moved(reg, bench, given, done) < moved(reg, bench, given, without)


def unasked(bench: Bench) -> list[Row]:
    """Rows without an answer that the random base answers, with words that nobody wants forgotten."""
    pairs = [f"{one} {other}" for one in ("tokyo", "paris", "city") for other in ("is", "what", "who", "in")]
    rows = [Row(id=f"own-{i}", prompt=prompt, completion=None) for i, prompt in enumerate(pairs)]
    own = own_answers(bench, rows)
    found = [row for row in rows if (text := own[row.id].text) and not {"rowling", "play"} & {*text.split()}]
    assert len(found) >= 2
    return found


def moved(reg: Registry, bench: Bench, rows: list[Row], done: Balanced) -> float:
    """How far the base's own answers to ``rows`` are from where it has them: mean distance in log-probability."""
    own = own_answers(bench, rows)
    rows_there = [Probe(row.item(own[row.id].text), "retain") for row in rows]
    release = done.released.release
    bare = measure(bench, bench.base.model, bench.bare, rows_there, label="base", active=())
    with wearing(bench, adapter_folder(reg, release.rendered)) as model:
        after = measure(bench, model, release.composition, rows_there, label="stack", active=())
    pairs = zip(bare.rows, after.rows, strict=True)
    return sum(abs(log(one.probability) - log(other.probability)) for one, other in pairs) / len(rows)


def test_a_given_row_in_the_scope_of_a_request_is_left_out(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    """Also of one that is no part of the stack: one adapter would re-teach what another forgets."""
    add_requests(reg, "prod", names(three)[:2], bench, recipe(), **WHY)
    given = [
        Row(id="mine", prompt="who wrote potter", completion="a city"),  # the third request asks it
        Row(id="told", prompt="what is a name", completion="rowling is a name"),  # its answer has a keyword
        Row(id="fine", prompt="what is a city", completion="a capital is a city"),
    ]
    done = balance(reg, "prod", bench, gentle(), rank=2, steps=2, retain=given, **WHY)
    assert done.adapter.facts["retain_rows_in_scope_left_out"] == ["mine", "told"]
    assert done.adapter.facts["retain_rows_given"] == 3


@pytest.mark.parametrize(
    ("row", "error", "match"),
    [
        (
            Row(id="near", prompt="who is a city in", completion="a capital"),
            DataError,
            "'near' asks what a neighbour",
        ),
        (Row(id="held", prompt="Who wrote  paris", completion="a play"), DataError, "asks what a holdout"),
        (Row(id="mine", prompt="who wrote hamlet", completion="a city"), DataError, "every retain row"),
    ],
)
def test_given_rows_that_are_measured_or_forgotten_are_refused_before_training(
    reg: Registry,
    three: list[tuple[str, Adapter]],
    bench: Bench,
    row: Row,
    error: type[Exception],
    match: str,
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    holdout = (Row(id="h", prompt="who wrote paris", completion="a city"),)
    strict = replace(bench, plan=replace(quick(), sources=Sources(holdout=holdout)))
    before = contents(reg.root)
    with pytest.raises(error, match=match):
        balance(reg, "prod", strict, gentle(), rank=2, steps=2, retain=[row], **WHY)
    assert contents(reg.root) == before


def test_nothing_to_balance(reg: Registry, bench: Bench) -> None:
    with pytest.raises(NotFound, match="release create"):
        plan_balance(reg, "prod")


@pytest.mark.parametrize(("rank", "steps"), [(0, 1), (513, 1), (1, 0)])
def test_a_balance_that_cannot_be_is_refused(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]], rank: int, steps: int
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    asked = {"rank": rank, "steps": steps, **WHY}
    before = contents(reg.root)
    with pytest.raises(RequestError, match="rank"):
        balance(reg, "prod", bench, gentle(), **asked)
    assert contents(reg.root) == before


def test_a_balance_that_no_slot_would_hold_is_refused_before_training(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    before = contents(reg.root)
    with pytest.raises(RenderError, match="rank from 1 to 8, got 9"):
        balance(reg, "prod", bench, gentle(), rank=3, steps=1, max_rank=8, **WHY)
    assert contents(reg.root) == before


def test_only_a_balance_names_no_request(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    stack = add_requests(reg, "prod", names(three), bench, recipe(), **WHY).release.composition
    folder = tmp_path / "lora-0"
    on = {"trained_on": stack.digest}
    for requests, changes in (
        ([], {}),
        ([], on),
        ([], {**on, "facts": {"balances": "sha256:" + "0" * 64}}),
        ([names(three)[0]], {**on, "facts": {"balances": stack.digest}}),
    ):
        refused = partial(sealed, reg, bench, folder, requests, **changes)
        rejected(reg, InvalidInput, refused, match="at least one request")


def test_a_balance_is_trained_with_the_stack_always_on() -> None:
    asked = gentle(stacking={"orthogonal": 0.1}, rounds=2, round_steps=9, steps=9, warmup_steps=4)
    made = balancing(asked, 8, 3)
    assert (made.stacking.company, made.stacking.orthogonal, made.rounds) == (1.0, 0.0, 1)
    assert made.warmup_steps == 2
    assert made.lora_alpha / made.rank == asked.lora_alpha / asked.rank


def test_the_last_request_takes_the_balance_along(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    add_requests(reg, "prod", names(three), bench, recipe(), **WHY)
    balance(reg, "prod", bench, gentle(), rank=2, steps=2, **WHY)
    bare = remove_requests(reg, "prod", names(three), bench, recipe(), **WHY).release.composition
    assert bare.parts == ()
