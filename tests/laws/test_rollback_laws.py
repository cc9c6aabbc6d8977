"""Rollback in any order (design §4, number 7): what is left is what never having had a request gives, bit for bit.

On a tiny model, through the registry: compositions, the rendered files and the logits under them; with a compaction
that came out lossy and a repair that stands on the whole stack.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, pairwise, permutations
from pathlib import Path

import pytest
import torch
from compaction_kit import drawn, opened, recipe, sealed
from hypothesis import given, settings
from hypothesis import strategies as st
from lifecycle_kit import state
from model_kit import logits
from registry_kit import audited
from story_kit import scratch

from efface.adapters import Part, compose, read_adapter
from efface.adapters.compress import compress
from efface.adapters.model import state_digest
from efface.recipes import Bench, open_bench, render_composition
from efface.recipes.bench import wearing
from efface.registry import (
    Adapter,
    Composition,
    Conflict,
    Registry,
    activate_release,
    active_release,
    adapter_folder,
    create_release,
    plan_removal,
    plan_without,
    verify,
)
from efface.registry import compose as composition_of

COUNT = 4
COMPACTED = (0, 1, 2)
law = settings(max_examples=25, deadline=None)


@dataclass(frozen=True)
class World:
    """Requests with an adapter each, a lossy compaction of three of them, a repair of the first on all."""

    reg: Registry
    bench: Bench
    work: Path
    requests: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    compaction: Adapter
    repair: Adapter

    def stack(self, members: "frozenset[int] | set[int]", *more: Adapter) -> Composition:
        """As it is for who never had another request."""
        digests = [self.adapters[i].digest for i in members] + [one.digest for one in more]
        base = self.bench.base
        return composition_of(base.fingerprint.digest, base.quantization, [(one, "1") for one in digests])

    def compacted(self, members: "frozenset[int] | set[int]") -> Composition:
        return self.stack(set(members) - set(COMPACTED), self.compaction)

    def named(self, members: "frozenset[int] | set[int]") -> list[str]:
        return [self.requests[i] for i in sorted(members)]

    def answers(self, composition: Composition) -> tuple[str, torch.Tensor]:
        """The digest of the rendered files, and the logits of the model that wears them."""
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            if not composition.parts:
                return "", logits(self.bench.base.model)
            folder = render_composition(self.reg, composition, Path(name) / "rendered")
            with wearing(self.bench, folder) as model:
                return read_adapter(folder).digest, logits(model)


@pytest.fixture(scope="module")
def world(tiny_llama: Path) -> Iterator[World]:
    with tempfile.TemporaryDirectory(dir=scratch()) as name:
        work = Path(name)
        with Registry.open(work / "registry", create=True) as reg:
            bench = open_bench(tiny_llama, recipe())
            requests = tuple(opened(reg, f"play {i}") for i in range(COUNT))
            adapters = tuple(
                sealed(reg, bench, drawn(bench, work / f"lora-{i}", i, rank=1 + i % 2), [request])
                for i, request in enumerate(requests)
            )
            parts = [Part(adapter_folder(reg, adapters[i].digest)) for i in COMPACTED]
            small = compress(parts, work / "small", rank=2)
            assert small.error > 0.05
            compaction = sealed(
                reg,
                bench,
                small.path,
                [requests[i] for i in COMPACTED],
                kind="consolidated",
                facts={"made_from": {adapters[i].digest: "1" for i in COMPACTED}},
            )
            whole = World(reg, bench, work, requests, adapters, compaction, compaction).stack(
                set(range(COUNT))
            )
            serve(reg, whole)
            repair = sealed(
                reg,
                bench,
                drawn(bench, work / "repair", 9, rank=1),
                [requests[0]],
                trained_on=whole.digest,
                facts={"repairs": [requests[0]]},
            )
            yield World(reg, bench, work, requests, adapters, compaction, repair)


def serve(reg: Registry, composition: Composition, channel: str = "prod") -> None:
    made = create_release(reg, channel, composition, rendered=None, reason="why", actor="ana")
    passed = audited(reg, composition, precision=composition.quantization)
    activate_release(reg, channel, made.version, audit=passed.digest, approved_by="ben")


def same(world: World, one: Composition, other: Composition) -> None:
    assert one == other
    (files, answers), (others, expected) = world.answers(one), world.answers(other)
    assert files == others
    assert torch.equal(answers, expected)


steps = st.lists(st.integers(0, COUNT - 1), max_size=10)


@law
@given(walk=steps, from_compaction=st.booleans())
def test_any_walk_of_adding_and_removing_ends_where_its_members_are(
    world: World, walk: list[int], from_compaction: bool
) -> None:
    """Each step takes a request off that is in, and adds one that is not. Base and logits of it stay as they were."""
    members, whole = set(range(COUNT)), from_compaction
    now = world.compacted(members) if from_compaction else world.stack(members)
    bare, weights = logits(world.bench.base.model), state_digest(world.bench.base.model)
    for i in walk:
        if i in members:
            now = plan_without(world.reg, now, [world.requests[i]]).composition
            members, whole = members - {i}, whole and i not in COMPACTED
        else:
            now = composition_of(now.base, now.quantization, [*now.parts, (world.adapters[i].digest, "1")])
            members = members | {i}
    same(world, now, world.compacted(members) if whole else world.stack(members))
    assert torch.equal(logits(world.bench.base.model), bare)
    assert state_digest(world.bench.base.model) == weights


@law
@given(
    order=st.permutations(range(COUNT)),
    cuts=st.sets(st.integers(1, COUNT - 1)),
    left=st.integers(0, COUNT - 1),
)
def test_at_once_or_one_by_one_is_the_same(world: World, order: list[int], cuts: set[int], left: int) -> None:
    """Removing requests in any order and in any groups."""
    going = [i for i in order if i != left]
    edges = [0, *sorted(cut for cut in cuts if cut < len(going)), len(going)]
    now = world.compacted(set(range(COUNT)))
    at_once = plan_without(world.reg, now, world.named(set(going))).composition
    for start, end in pairwise(edges):
        group = set(going[start:end])
        now = plan_without(world.reg, now, world.named(group)).composition if group else now
    same(world, now, at_once)
    same(world, now, world.stack({left}))


@pytest.mark.parametrize("drop", [False, True])
def test_with_a_repair_every_set_is_refused_or_as_if_never_had(world: World, drop: bool) -> None:
    """The repair of the first request leaves with it; it was trained on all, so nothing else leaves under it."""
    everyone = set(range(COUNT))
    for served in (world.stack(everyone, world.repair), world.stack({3}, world.compaction, world.repair)):
        channel = "repaired" if world.adapters[0].digest in served.adapters else "compacted"
        serve(world.reg, served, channel)
        for going in subsets(everyone):
            gone = set(going)
            touched = channel == "repaired" or bool(gone & set(COMPACTED))
            expected = world.stack(everyone - gone) if touched else world.compacted(everyone - gone)
            if 0 not in gone and not drop:
                with pytest.raises(Conflict, match="--drop-repairs") as refused:
                    plan_removal(world.reg, channel, world.named(gone))
                assert world.repair.digest in str(refused.value)
                # The plan that it names works.
                left = plan_removal(world.reg, channel, world.named(gone), drop_repairs=True)
                assert left == expected
                continue
            left = plan_removal(world.reg, channel, world.named(gone), drop_repairs=drop)
            same(world, left, expected)


def test_every_order_of_rollbacks_through_releases(world: World) -> None:
    """A compaction beside another adapter, taken apart request by request; the ledger verifies at the end."""
    everyone = set(range(COUNT))
    for number, order in enumerate(permutations(range(COUNT))):
        channel = f"order-{number}"
        serve(world.reg, world.compacted(everyone), channel)
        members = set(everyone)
        for i in order:
            members.discard(i)
            serve(world.reg, plan_removal(world.reg, channel, [world.requests[i]]), channel)
            now = active_release(world.reg, channel).composition
            untouched = members >= set(COMPACTED)
            assert now == (world.compacted(members) if untouched else world.stack(members))
    assert not active_release(world.reg, channel).composition.parts
    assert state(world.reg, world.requests[0]) == "RELEASED"  # other channels still serve it
    assert not verify(world.reg).problems


def test_files_alone_are_the_same_in_every_order(world: World, tmp_path: Path) -> None:
    """Without a registry: each order of adding, after any was left out again, gives the same bytes."""
    folders = [adapter_folder(world.reg, adapter.digest) for adapter in world.adapters]
    for members in subsets(set(range(COUNT))):
        digests = {
            compose([Part(folders[i]) for i in order], tmp_path / "-".join(map(str, order))).digest
            for order in permutations(members)
        }
        assert len(digests) == 1


def subsets(members: set[int]) -> Iterator[tuple[int, ...]]:
    """All but the empty one."""
    return chain.from_iterable(combinations(sorted(members), size) for size in range(1, len(members) + 1))
