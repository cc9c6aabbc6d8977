"""Compression: no better approximation exists, the error is what it says, and nothing is lost where nothing need be."""

import math
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from adapter_files import SIZES, Spec, contents, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_compose_laws import specs, stacks, written

from efface.adapters.approximate import METHODS, approximate
from efface.adapters.compose import Part, compose
from efface.adapters.compress import compress
from efface.adapters.errors import CompositionError, InvalidAdapter
from efface.adapters.folder import delta, read_adapter

law = settings(max_examples=40, deadline=None)
Stack = list[tuple[Spec, Decimal]]


def sums(stack: Stack) -> dict[str, torch.Tensor]:
    """Σ w·s·B·A per module in float64, in full."""
    names = sorted({name for spec, _ in stack for name in spec.ranks})
    return {
        name: torch.stack([float(weight) * spec.delta(name) for spec, weight in stack]).sum(0)
        for name in names
    }


def norm(deltas: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in deltas.values()))


def on_disk(folder: Path, names: list[str]) -> dict[str, torch.Tensor]:
    adapter = read_adapter(folder)
    zeros = {name: torch.zeros(SIZES[name][::-1], dtype=torch.float64) for name in names}
    return zeros | {name: delta(adapter, name).double() for name in adapter.modules}


@law
@given(stacks())
def test_without_a_budget_only_zero_directions_go(stack: Stack) -> None:
    with written(stack) as (root, parts):
        wanted = sums(stack)
        made = compress(parts, root / "out")
        far = norm({k: v - wanted[k] for k, v in on_disk(made.path, sorted(wanted)).items()}) / norm(wanted)
        assert far == pytest.approx(made.error, abs=3e-7)
        assert made.error < 1e-6
        assert made.rank <= made.was
        for name, rank in made.ranks.items():
            assert rank <= min(SIZES[name])


@law
@given(stacks(), st.integers(1, 3))
def test_at_a_rank_nothing_is_closer_than_eckart_and_young(stack: Stack, rank: int) -> None:
    with written(stack) as (root, parts):
        wanted = sums(stack)
        made = compress(parts, root / "out", rank=rank)
        lost = sum(float(torch.linalg.svdvals(value)[rank:].square().sum()) for value in wanted.values())
        assert made.error == pytest.approx(math.sqrt(lost) / norm(wanted), abs=1e-6)
        assert max(made.ranks.values()) <= rank
        far = norm({k: v - wanted[k] for k, v in on_disk(made.path, sorted(wanted)).items()}) / norm(wanted)
        assert far == pytest.approx(made.error, abs=3e-7)


@law
@given(stacks(), st.floats(0.0, 0.9))
def test_a_budget_is_met_with_as_few_directions_as_can_be(stack: Stack, error: float) -> None:
    with written(stack) as (root, parts):
        wanted = sums(stack)
        made = compress(parts, root / "out", error=error)
        assert made.error <= error + 1e-6
        values = sorted(float(s) ** 2 for value in wanted.values() for s in torch.linalg.svdvals(value))
        # A hair less of a budget than was asked for: what is on its border, to rounding, may be kept.
        # What is zero to rounding goes without a budget.
        total = norm(wanted) ** 2
        budget = max(0.0, error**2 - 1e-9) * total
        live = [value for value in values if value > 1e-20 * total]
        fewest = len(live)
        for value in live:
            budget -= value
            if budget < 0:
                break
            fewest -= 1
        assert sum(made.ranks.values()) <= max(fewest, 1) + 1  # one on the border, to rounding


def test_the_true_rank_is_found_and_nothing_is_lost(tmp_path: Path) -> None:
    one = plain(rank=2, seed=1)
    parts = [Part(one.write(tmp_path / "one")), Part(plain(rank=2, seed=1, alpha=2).write(tmp_path / "same"))]
    made = compress(parts, tmp_path / "out", rank=2)
    assert (made.rank, made.was) == (2, 4)
    assert made.error < 1e-6


def test_the_folder_is_a_peft_lora_with_a_rank_per_module(tmp_path: Path) -> None:
    parts = [Part(plain(rank=2, seed=seed).write(tmp_path / str(seed))) for seed in range(3)]
    made = compress(parts, tmp_path / "out", error=0.3)
    config = LoraConfig.from_pretrained(str(made.path))
    assert (config.r, config.lora_alpha, config.use_rslora) == (made.rank, made.rank, False)
    assert set(config.target_modules) == set(made.ranks)
    again = compress(list(reversed(parts)), tmp_path / "again", error=0.3)
    assert (again.digest, contents(again.path)) == (made.digest, contents(made.path))


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"rank": 0}, "rank of at least 1"),
        ({"rank": True}, "rank of at least 1"),
        ({"error": 1.0}, r"\[0, 1\)"),
        ({"error": float("nan")}, r"\[0, 1\)"),
        ({"rank": 1, "error": 0.001}, "at most 0.001, got .* at rank 1; allow more"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, budget: dict[str, float], said: str
) -> None:
    parts = [Part(plain(rank=2, seed=seed).write(tmp_path / str(seed))) for seed in range(3)]
    with pytest.raises(CompositionError, match=said):
        compress(parts, tmp_path / "out", **budget)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_sum_of_nothing_is_refused(tmp_path: Path) -> None:
    one, other = plain(rank=2, seed=1), plain(rank=2, seed=1, alpha=2)
    parts = [Part(one.write(tmp_path / "one"), "0.5"), Part(other.write(tmp_path / "other"), "-1")]
    with pytest.raises(CompositionError, match="nothing to keep"):
        compress(parts, tmp_path / "out")


@pytest.mark.parametrize("way", ["exact", "rank", "error", *METHODS])
def test_a_weight_that_float32_cannot_hold_is_refused_in_every_way(tmp_path: Path, way: str) -> None:
    """Each value is a number, scale × weight × value is not: an infinite factor, or an error that is no number."""
    parts = [Part(plain(seed=i, alpha=1e9).write(tmp_path / str(i)), "1000000") for i in range(2)]
    for part in parts:
        file = part.folder / "adapter_model.safetensors"
        save_file({key: value * 1e30 for key, value in load_file(file).items()}, file)
    make = {
        "exact": lambda out: compose(parts, out),
        "rank": lambda out: compress(parts, out, rank=1),
        "error": lambda out: compress(parts, out, error=0.1),
    }.get(way, lambda out: approximate(parts, out, way, density=0.5, rank=1))
    with pytest.raises(InvalidAdapter, match=r"lora_A.*: expected finite values, .* lower its weight"):
        make(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_one_adapter_in_half_precision_is_taken_as_its_values(tmp_path: Path) -> None:
    spec = plain(rank=2, seed=3, dtype=torch.bfloat16)
    made = compress([Part(spec.write(tmp_path / "one"))], tmp_path / "out")
    exact = compose([Part(tmp_path / "one")], tmp_path / "exact")
    names = sorted(spec.ranks)
    found, wanted = on_disk(made.path, names), on_disk(exact.path, names)
    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)


@law
@given(specs())
def test_any_adapter_compresses_to_itself(spec: Spec) -> None:
    with written([(spec, Decimal(1))]) as (root, parts):
        assert compress(parts, root / "out").error < 1e-6
