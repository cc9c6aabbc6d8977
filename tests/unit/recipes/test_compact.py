"""Compaction: two ways, the better one sealed, its provenance; released in place of its originals and back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compaction_kit import WHO, WHY, answered, data, drawn, opened, recipe, sealed
from lifecycle_kit import rejected
from registry_kit import contents

from efface.adapters import read_adapter
from efface.adapters.distil import DistilSettings
from efface.recipes import Bench, add_requests, open_bench, remove_requests
from efface.recipes.bench import wearing
from efface.recipes.compact import WAYS, compact
from efface.recipes.compact_rows import SAMPLE, Rows, distillation_rows, to_compact
from efface.recipes.errors import RequestError
from efface.recipes.release import composition_without, serve_compaction
from efface.registry import (
    Adapter,
    Conflict,
    InvalidInput,
    Registry,
    active_release,
    adapter_folder,
    compose,
    get_adapter,
    get_audit,
    get_request,
    list_adapters,
    retire_adapter,
    shred_request,
    verify,
)

QUICK = DistilSettings(steps=4, batch=4)


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


def made(reg: Registry, bench: Bench, **changes: Any):
    values: dict[str, Any] = {"rank": 4, "settings": QUICK, **WHO, **changes}
    return compact(reg, bench, recipe(), **values)


def test_the_better_of_two_ways_is_sealed_with_the_figures_of_both(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    requests, originals = zip(*three, strict=True)
    done = made(reg, bench, requests=requests)
    adapter, (best, other) = done.adapter, done.candidates
    assert {best.way, other.way} == set(WAYS)
    assert (best.verdict != "pass", best.failed, best.drift) <= (
        other.verdict != "pass",
        other.failed,
        other.drift,
    )
    assert (adapter.kind, adapter.requests, adapter.trained_on) == ("consolidated", requests, None)
    assert adapter.facts["made_from"] == {one.digest: "1" for one in originals}
    assert adapter.facts["way"] == best.way
    assert adapter.facts["candidates"] == [best.figures(), other.figures()]
    assert abs(float(adapter.error_bound or 0) - best.error) <= 1e-6
    assert read_adapter(adapter_folder(reg, adapter.digest)).rank <= 4
    audit = get_audit(reg, done.audit.digest)
    assert (audit.composition, audit.verdict) == (done.composition.digest, done.report.verdict)
    labels = [one.label for one in done.report.evaluations]
    assert labels[:2] == ["base", "stack of 3"]
    assert len(labels) == 4
    assert {get_request(reg, request).state for request in requests} == {"TRAINED"}
    assert not verify(reg).problems


def test_at_full_rank_compression_loses_nothing_and_wins(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    done = made(reg, bench, requests=[request for request, _ in three], rank=6)
    best = done.candidates[0]
    assert best.way == "compressed"
    assert best.error < 1e-5
    assert best.drift < 1e-5
    assert all(value < 1e-5 for value in best.kl.values())
    assert set(best.kl) == {"forget", "retain", "neighbour"}


def test_the_error_is_the_frobenius_one_that_compressing_reports(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    from efface.adapters import Part
    from efface.adapters.compress import compress

    done = made(reg, bench, requests=[request for request, _ in three], rank=2, ways=["compressed"])
    parts = [Part(adapter_folder(reg, adapter.digest)) for _, adapter in three]
    assert done.candidates[0].error == pytest.approx(
        compress(parts, tmp_path / "again", rank=2).error, abs=1e-4
    )


def test_distilling_learns_the_stack(reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]) -> None:
    requests = [request for request, _ in three]
    settings = DistilSettings(steps=150, batch=16, learning_rate=1e-2)
    little = made(reg, bench, requests=requests, ways=["distilled"])
    more = made(reg, bench, requests=requests, ways=["distilled"], settings=settings)
    assert more.candidates[0].kl["forget"] < 0.3 * little.candidates[0].kl["forget"]
    assert more.candidates[0].drift < little.candidates[0].drift


# --- released in their place, and back


def test_it_is_served_in_their_place_and_a_request_leaves_by_the_originals(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    (one, _), (two, second), (three_, third) = three
    add_requests(reg, "prod", [one, two, three_], bench, recipe(), **WHY)
    done = made(reg, bench, channel="prod")
    served = serve_compaction(reg, "prod", done.adapter.digest, bench, recipe(), **WHY)
    assert served.release.state == "ACTIVE"
    assert served.release.composition == done.composition
    assert {get_request(reg, request).state for request in (one, two, three_)} == {"RELEASED"}
    left = composition_without(reg, done.composition, [one])
    back = remove_requests(reg, "prod", [one], bench, recipe(), **WHY).release
    never = compose(second.base, second.quantization, [(second.digest, "1"), (third.digest, "1")])
    assert back.composition == left == never
    assert get_request(reg, one).state == "REOPENED"
    assert not verify(reg).problems


def test_some_of_a_channel_are_compacted_and_the_rest_stays_beside(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    (one, first), (two, second), (three_, third) = three
    add_requests(reg, "prod", [one, two, three_], bench, recipe(), **WHY)
    done = made(reg, bench, channel="prod", requests=[one, two], ways=["compressed"])
    assert done.originals.adapters == tuple(sorted((first.digest, second.digest)))
    served = serve_compaction(reg, "prod", done.adapter.digest, bench, recipe(), **WHY).release
    assert set(served.composition.adapters) == {done.adapter.digest, third.digest}
    with pytest.raises(RequestError, match=one):
        add_requests(reg, "prod", [one], bench, recipe(), **WHY)
    again = made(reg, bench, channel="prod", ways=["compressed"])
    tiers = serve_compaction(reg, "prod", again.adapter.digest, bench, recipe(), **WHY).release
    assert tiers.composition.adapters == (again.adapter.digest,)
    left = remove_requests(reg, "prod", [two], bench, recipe(), **WHY).release.composition
    assert set(left.adapters) == {first.digest, third.digest}


def test_originals_are_not_retired_under_it(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    done = made(reg, bench, requests=[three[0][0], three[1][0]], ways=["compressed"])
    original = three[0][1].digest
    rejected(reg, Conflict, lambda: retire_adapter(reg, original, reason="old", **WHO), done.adapter.digest)
    retire_adapter(reg, done.adapter.digest, reason="not used", **WHO)
    assert retire_adapter(reg, original, reason="old", **WHO).state == "RETIRED"


def test_a_shredded_request_is_compressed_and_not_distilled(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    (one, _), (two, _), _ = three
    add_requests(reg, "prod", [one, two], bench, recipe(), **WHY)
    shred_request(reg, one, **WHO)
    done = made(reg, bench, channel="prod")
    assert [candidate.way for candidate in done.candidates] == ["compressed"]
    assert done.adapter.facts["without_rows"] == [one]
    assert done.adapter.requests == (one, two)
    unmeasured = {finding.request for finding in done.report.findings if finding.outcome == "not measured"}
    assert one in unmeasured
    with pytest.raises(RequestError, match=f"{one} are shredded"):
        made(reg, bench, channel="prod", ways=["distilled"])


# --- rows


def test_paraphrases_and_every_other_neighbour_stay_unseen(bench: Bench) -> None:
    requests = {"req-000001": data("hamlet"), "req-000002": data("potter")}
    with wearing(bench, None) as model:
        rows = distillation_rows(bench, model, bench.bare, requests, recipe(), _silent())
    decode = bench.base.tokenizer.decode
    asked = {role: {str(decode(list(row.prompt))) for row in getattr(rows, role)} for role in Rows.__slots__}
    assert {f"{ask} {name}" for ask in ("who wrote", "what is") for name in ("hamlet", "potter")} <= {
        prompt.strip() for prompt in asked["forget"]
    }
    everything = " | ".join(prompt for prompts in asked.values() for prompt in prompts)
    assert "author" not in everything
    assert "what is a city in" in everything
    assert "who is a city in" not in everything
    assert len(rows.retain) == 3  # shared by both requests, once each
    answers = {str(decode(list(row.answer))).strip() for row in rows.forget}
    assert "rowling wrote a play in tokyo" in answers
    assert len(answers) > 2  # and what the stack says
    assert set(rows.every) == {*rows.forget, *rows.retain, *rows.neighbour}


def test_a_role_is_sampled_evenly(bench: Bench) -> None:
    with wearing(bench, None) as model:
        few = distillation_rows(bench, model, bench.bare, {"r": data("hamlet")}, recipe(), _silent())
    many = Rows(few.forget[:1] * (3 * SAMPLE), few.retain, ())
    assert [len(some) for some in many.sampled().values()] == [SAMPLE, len(few.retain), 0]


# --- what cannot be compacted


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 0}, "rank from 1 to 512, got 0"),
        ({"rank": 513}, "rank from 1 to 512, got 513"),
        ({"ways": []}, "got none"),
        ({"ways": ["averaged"]}, "got averaged"),
        ({"requests": ["req-000001"]}, "expected 2 to 500 adapters to compact, got 1"),
        ({"requests": []}, "requests or a channel"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]], changes: dict[str, Any], said: str
) -> None:
    before = contents(reg.root)
    with pytest.raises(RequestError, match=said):
        made(reg, bench, **{"requests": [request for request, _ in three], **changes})
    assert contents(reg.root) == before


def test_what_was_trained_on_top_of_another_is_compacted_with_it(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    (one, _), (two, _), _ = three
    add_requests(reg, "prod", [one], bench, recipe(), **WHY)
    below = active_release(reg, "prod").composition.digest
    top = opened(reg, "potter")
    sealed(reg, bench, drawn(bench, tmp_path / "top", 9), [top], trained_on=below)
    with pytest.raises(RequestError, match="compact both, or neither"):
        to_compact(reg, [two, top], None)
    assert len(to_compact(reg, [one, top], None).parts) == 2


def test_an_adapter_of_two_requests_is_compacted_with_both(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    (one, _), (two, _), (other, _) = three
    sealed(reg, bench, drawn(bench, tmp_path / "shared", 8), [one, two])
    with pytest.raises(RequestError, match=f"some of {two} too"):
        to_compact(reg, [one, other], None)
    add_requests(reg, "prod", [other], bench, recipe(), **WHY)
    with pytest.raises(RequestError, match="none of req-999999"):
        to_compact(reg, ["req-999999"], "prod")


def test_only_a_compaction_of_what_is_served_is_served_in_its_place(
    reg: Registry, bench: Bench, three: list[tuple[str, Adapter]]
) -> None:
    (one, first), (two, _), _ = three
    add_requests(reg, "prod", [one], bench, recipe(), **WHY)
    done = made(reg, bench, requests=[one, two], ways=["compressed"])
    for adapter, said in ((done.adapter.digest, "not at all"), (first.digest, "not made from others")):
        with pytest.raises(InvalidInput, match=said):
            serve_compaction(reg, "prod", adapter, bench, recipe(), **WHY)
    assert get_adapter(reg, done.adapter.digest).state == "SEALED"
    assert len(list_adapters(reg)) == 5  # three, a rendering, the compaction


def _silent() -> Any:
    from efface.recipes import Silent

    return Silent()
