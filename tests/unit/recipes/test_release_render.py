"""Releases with a render of their own: what a server's slot holds, and what no server loads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compaction_kit import SUBJECTS, WHY, drawn, opened, recipe, sealed
from registry_kit import contents

from efface.adapters import Part, delta, read_adapter
from efface.adapters.compress import compress
from efface.adapters.errors import BaseMismatch
from efface.recipes import (
    Bench,
    add_requests,
    open_bench,
    remove_requests,
    render_composition,
    render_release,
    return_to,
)
from efface.recipes.balance import balance
from efface.recipes.compact import compact
from efface.recipes.errors import RequestError
from efface.recipes.progress import Silent
from efface.recipes.release import composition_without, release_composition, serve_compaction
from efface.recipes.repair import repair
from efface.recipes.reversible_paths import path_findings
from efface.registry import (
    Adapter,
    InvalidInput,
    Registry,
    active_release,
    adapter_folder,
    compose,
    get_adapter,
    list_adapters,
    rendered_as,
    verify,
)
from efface.serving.render import RenderError

LARGE = 260
"""Two of them are more than any slot."""
FITS = "render it as svd:512, which fits \\(--render svd:512"


@pytest.fixture(scope="module")
def bench(tiny_llama: Path) -> Bench:
    return open_bench(tiny_llama, recipe())


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "registry", create=True) as reg:
        yield reg


@pytest.fixture
def large(reg: Registry, bench: Bench, tmp_path: Path) -> list[tuple[str, Adapter]]:
    return [one_of(reg, bench, tmp_path, seed) for seed in range(4)]


def one_of(reg: Registry, bench: Bench, work: Path, seed: int, rank: int = LARGE) -> tuple[str, Adapter]:
    request = opened(reg, SUBJECTS[seed])
    folder = drawn(bench, work / f"lora-{seed}", seed, rank=rank, size=0.02)
    return request, sealed(reg, bench, folder, [request])


def compacted(reg: Registry, bench: Bench, work: Path, pairs: list[tuple[str, Adapter]]) -> Adapter:
    """A compaction to rank 4."""
    small = compress([Part(adapter_folder(reg, one.digest)) for _, one in pairs], work, rank=4)
    facts = {"made_from": {one.digest: "1" for _, one in pairs}}
    requests = [request for request, _ in pairs]
    return sealed(reg, bench, small.path, requests, kind="consolidated", facts=facts, error_bound="0.5")


def stack(bench: Bench, *adapters: Adapter, render: str = "cat") -> Any:
    base = bench.base
    parts = [(one.digest, "1") for one in adapters]
    return compose(base.fingerprint.digest, base.quantization, parts, render)


def test_an_adapter_that_is_registered_for_another_base_is_in_no_stack(
    reg: Registry, bench: Bench, tmp_path: Path
) -> None:
    """Whatever the composition claims, nothing of the mixture is sealed."""
    (_, own), request = one_of(reg, bench, tmp_path, 0, rank=2), opened(reg, SUBJECTS[1])
    theirs = drawn(bench, tmp_path / "theirs", 1, rank=2, size=0.02)
    config = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/model"}))
    other = sealed(reg, bench, theirs, [request], base="sha256:" + "b" * 64)
    before = list_adapters(reg)
    with pytest.raises(BaseMismatch, match=r"expected adapters of one base, got .*sha256:b"):
        serve(reg, bench, stack(bench, own, other))
    assert list_adapters(reg) == before


def test_an_adapter_of_others_is_stacked_with_our_own(reg: Registry, bench: Bench, tmp_path: Path) -> None:
    """Its author calls the base by another name; that it fits was found when it was registered."""
    theirs = drawn(bench, tmp_path / "theirs", 1, rank=2, size=0.02)
    config = json.loads((theirs / "adapter_config.json").read_text())
    said = {"base_model_name_or_path": "org/model", "revision": "main", "task_type": None}
    (theirs / "adapter_config.json").write_text(json.dumps(config | said))
    (_, own), request = one_of(reg, bench, tmp_path, 0, rank=2), opened(reg, SUBJECTS[1])
    foreign = sealed(reg, bench, theirs, [request])
    made = render_composition(reg, stack(bench, own, foreign), tmp_path / "both")
    both, parts = (
        read_adapter(made),
        [read_adapter(adapter_folder(reg, one.digest)) for one in (own, foreign)],
    )
    assert both.config.base_model_name_or_path == bench.base.fingerprint.digest
    for name in both.modules:
        torch.testing.assert_close(delta(both, name), sum(delta(part, name) for part in parts))
    release = serve(reg, bench, stack(bench, own, foreign)).release
    assert [one.outcome for one in path_findings(reg, release)] == ["passed"] * 3


def serve(reg: Registry, bench: Bench, composition: Any) -> Any:
    return release_composition(reg, "prod", composition, bench, recipe(), **WHY, progress=Silent())


def rank_of(reg: Registry, digest: str | None) -> int:
    assert digest is not None
    return read_adapter(adapter_folder(reg, digest)).rank


def test_a_request_leaves_compactions_whose_originals_are_more_than_a_slot(
    reg: Registry, bench: Bench, large: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    """Two side by side; one comes apart, and what comes back has rank 520 and the other's 4."""
    request = opened(reg, "a play")
    small = (request, sealed(reg, bench, drawn(bench, tmp_path / "small", 8), [request]))
    first = compacted(reg, bench, tmp_path / "first", large[:3])
    second = compacted(reg, bench, tmp_path / "second", [large[3], small])
    served = serve(reg, bench, stack(bench, first, second)).release
    assert served.state == "ACTIVE"
    gone = large[0][0]
    before = contents(reg.root)
    with pytest.raises(RenderError, match=f"from 1 to 512, got 524; {FITS}"):
        remove_requests(reg, "prod", [gone], bench, recipe(), **WHY)
    assert active_release(reg, "prod") == served
    assert {name for name in contents(reg.root) if not name.startswith("cache")} == {
        name for name in before if not name.startswith("cache")
    }
    done = remove_requests(reg, "prod", [gone], bench, recipe(), render="svd:16", **WHY)
    assert done.release.state == "ACTIVE"
    assert done.release.composition == stack(bench, large[1][1], large[2][1], second, render="svd:16")
    assert rank_of(reg, done.release.rendered) == 16
    bound = get_adapter(reg, done.release.rendered or "").error_bound
    assert bound is not None and 0 < float(bound) < 1
    # The next one keeps that render, and is held to the slot that is named.
    with pytest.raises(RenderError, match=r"from 1 to 8, got 16; render it as svd:8.*raise --max-lora-rank"):
        remove_requests(reg, "prod", [small[0]], bench, recipe(), max_rank=8, **WHY)
    less = remove_requests(reg, "prod", [small[0]], bench, recipe(), render="svd:8", max_rank=8, **WHY)
    assert rank_of(reg, less.release.rendered) == 8
    back = return_to(reg, "prod", 1, bench, recipe(), **WHY)
    assert back.release.composition == served.composition
    again = return_to(reg, "prod", 1, bench, recipe(), render="svd:2", **WHY)
    assert again.release.composition == rendered_as(served.composition, "svd:2")
    assert not verify(reg).problems


def test_live_is_held_to_no_slot_and_the_stack_of_it_is_compacted(
    reg: Registry, bench: Bench, large: list[tuple[str, Adapter]]
) -> None:
    requests = [request for request, _ in large[:2]]
    with pytest.raises(RenderError, match=f"got 520; {FITS}"):
        add_requests(reg, "prod", requests, bench, recipe(), **WHY)
    done = add_requests(reg, "prod", requests, bench, recipe(), render="live", **WHY)
    assert (done.release.state, done.release.rendered) == ("ACTIVE", None)
    assert [one.outcome for one in path_findings(reg, done.release)] == ["passed"] * 3
    made = compact(reg, bench, recipe(), channel="prod", rank=4, ways=("compressed",), actor="ana")
    taken = serve_compaction(reg, "prod", made.adapter.digest, bench, recipe(), render="cat", **WHY)
    assert taken.release.composition == stack(bench, made.adapter)
    assert rank_of(reg, taken.release.rendered) == 4


def test_what_is_only_measured_is_held_to_no_slot(
    reg: Registry, bench: Bench, large: list[tuple[str, Adapter]], tmp_path: Path
) -> None:
    """An audit of what would be left comes before its release, whatever that will be rendered as."""
    made = compacted(reg, bench, tmp_path / "made", large[:3])
    served = serve(reg, bench, stack(bench, made)).release
    left = composition_without(reg, served.composition, [large[0][0]])
    assert read_adapter(render_composition(reg, left, tmp_path / "left")).rank == 2 * LARGE
    small = composition_without(reg, served.composition, [large[0][0]], render="svd:8")
    assert small == rendered_as(left, "svd:8")
    assert read_adapter(render_composition(reg, small, tmp_path / "small")).rank == 8


def test_what_is_served_is_rendered_another_way(reg: Registry, bench: Bench, tmp_path: Path) -> None:
    request, _ = one_of(reg, bench, tmp_path, 0, rank=8)
    first = add_requests(reg, "prod", [request], bench, recipe(), **WHY).release
    small = render_release(reg, "prod", "svd:2", bench, recipe(), **WHY)
    assert (small.release.version, small.release.state) == (2, "ACTIVE")
    assert small.release.composition == rendered_as(first.composition, "svd:2")
    assert small.audit.composition == small.release.composition.digest
    assert rank_of(reg, small.release.rendered) == 2
    with pytest.raises(RequestError, match="got svd:2, as it is"):
        render_release(reg, "prod", "svd:2", bench, recipe(), **WHY)
    left = render_release(reg, "prod", "cat", bench, recipe(), activate=False, **WHY)
    assert (left.release.composition, left.release.state) == (first.composition, "CANDIDATE")
    with pytest.raises(RenderError, match="from 1 to 4, got 8"):
        render_release(reg, "prod", "cat", bench, recipe(), max_rank=4, **WHY)
    remove_requests(reg, "prod", [request], bench, recipe(), **WHY)
    with pytest.raises(RequestError, match="bare base"):
        render_release(reg, "prod", "svd:2", bench, recipe(), **WHY)


def test_a_balance_and_a_repair_are_released_as_asked(reg: Registry, bench: Bench, tmp_path: Path) -> None:
    pairs = [one_of(reg, bench, tmp_path, seed, rank=4) for seed in range(2)]
    add_requests(reg, "prod", [request for request, _ in pairs], bench, recipe(), **WHY)
    before = contents(reg.root)
    with pytest.raises(InvalidInput, match="expected render"):
        balance(reg, "prod", bench, recipe(), rank=2, steps=2, render="svd", **WHY)
    assert contents(reg.root) == before
    done = balance(reg, "prod", bench, recipe(), rank=2, steps=2, render="svd:3", max_rank=3, **WHY)
    assert done.released.release.composition.render == "svd:3"
    assert rank_of(reg, done.released.release.rendered) == 3
    strict = recipe(gates={**recipe().gates.model_dump(), "max_probability_ratio_forget": 0.0})
    back = return_to(reg, "prod", 1, bench, strict, **WHY)
    assert back.audit.verdict == "fail"
    fixed = repair(
        reg, "prod", bench, recipe(), version=1, rank=1, steps=2, render="svd:5", max_rank=5, **WHY
    )
    assert fixed.released.release.composition.render == "svd:5"
    assert rank_of(reg, fixed.released.release.rendered) == 5
