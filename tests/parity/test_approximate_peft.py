"""TIES, DARE and KnOTS against PEFT's own merges and against the papers' formulas on whole matrices."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import SIZES, Spec, contents, plain
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.merge_utils import ties
from transformers import AutoModelForCausalLM

from efface.adapters.approximate import METHODS, approximate
from efface.adapters.compose import Part, compose
from efface.adapters.errors import CompositionError
from efface.adapters.folder import delta, read_adapter

SPECS = [plain(rank=2, seed=1), plain(rank=3, seed=2, alpha=3), plain(rank=2, seed=3)]
WEIGHTS = ["1", "0.5", "2"]


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    folders = [spec.write(tmp_path / f"part{i}") for i, spec in enumerate(SPECS)]
    return [Part(folder, weight) for folder, weight in zip(folders, WEIGHTS, strict=True)]


def deltas_of(folder: Path) -> dict[str, torch.Tensor]:
    adapter = read_adapter(folder)
    return {name: delta(adapter, name).double() for name in adapter.modules}


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("density", [0.3, 0.7])
def test_ties_is_pefts_ties_svd(tiny_llama: Path, tmp_path: Path, density: float) -> None:
    folders: dict[str, Path] = {}
    for seed, rank in enumerate((2, 4, 3)):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
        )
        adapted: Any = get_peft_model(model, config)
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(value, std=0.2)
        adapted.save_pretrained(tmp_path / f"x{seed}")
        folders[f"x{seed}"] = tmp_path / f"x{seed}"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    together: Any = PeftModel.from_pretrained(model, str(folders["x0"]), adapter_name="x0")
    for name in ("x1", "x2"):
        together.load_adapter(str(folders[name]), adapter_name=name)
    weights = [1.0, 0.5, 2.0]
    rank = 3
    together.base_model.add_weighted_adapter(
        list(folders), weights, "merged", combination_type="ties_svd", density=density, svd_rank=rank
    )
    parts = [Part(folders[name], str(weight)) for name, weight in zip(folders, weights, strict=True)]
    made = approximate(parts, tmp_path / "out", "ties", density=density, rank=rank)
    assert made.rank == rank
    for name, found in deltas_of(made.path).items():
        close(
            found, together.base_model.model.get_submodule(name).get_delta_weight("merged").detach().double()
        )


@pytest.mark.parametrize("density", [0.4, 1])
def test_knots_is_ties_on_the_aligned_deltas(parts: list[Part], tmp_path: Path, density: float) -> None:
    made = deltas_of(approximate(parts, tmp_path / "out", "knots", density=density, rank=100).path)
    for name in SPECS[0].ranks:
        each = [spec.delta(name) for spec in SPECS]
        width = SIZES[name][0]
        u, s, v = torch.linalg.svd(torch.cat(each, dim=1), full_matrices=False)
        live = int((s > 1e-9 * s[0]).sum())
        aligned = [v[:live, i * width : (i + 1) * width] for i in range(len(each))]
        order = sorted(range(len(each)), key=lambda i: read_adapter(parts[i].folder).digest)
        weights = torch.tensor([float(WEIGHTS[i]) for i in order], dtype=torch.float64)
        merged = elected([aligned[i] for i in order], weights, density)
        close(made[name], (u[:, :live] * s[:live]) @ merged)


def elected(tensors: list[torch.Tensor], weights: torch.Tensor, density: float) -> torch.Tensor:
    """Written out, to say what density 1 means."""
    if density < 1:
        return ties(tensors, weights, density)
    stacked = torch.stack(tensors)
    agree = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    return (stacked * weights[:, None, None] * agree).sum(0) / agree.sum(0).clamp(min=1)


def test_dare_at_density_one_is_the_sum_and_in_the_mean_always(parts: list[Part], tmp_path: Path) -> None:
    exact = deltas_of(compose(parts, tmp_path / "exact").path)
    whole = approximate(parts, tmp_path / "whole", "dare", density=1, rank=100)
    assert whole.error < 1e-6
    for name, found in deltas_of(whole.path).items():
        close(found, exact[name])
    drawn = [deltas_of(_other_names(parts, tmp_path, i)) for i in range(60)]
    for name in exact:
        mean = torch.stack([one[name] for one in drawn]).mean(0)
        # Each entry's standard deviation at density 0.5 is that of its terms.
        spread = sum((float(w) * s.delta(name)).square() for w, s in zip(WEIGHTS, SPECS, strict=True)).sqrt()
        assert ((mean - exact[name]).abs() <= 5 * spread / 60**0.5 + 1e-5).all()


def _other_names(parts: list[Part], tmp_path: Path, i: int) -> Path:
    """The same deltas under other digests (a scaled A and B), so that other entries are drawn."""
    moved: list[Part] = []
    for k, (spec, part) in enumerate(zip(SPECS, parts, strict=True)):
        alphas = {name: alpha / (i + 2) for name, alpha in spec.alphas.items()}
        other = Spec(spec.ranks, alphas, spec.seed)
        moved.append(Part(other.write(tmp_path / f"draw{i}-{k}"), str(Decimal(str(part.weight)) * (i + 2))))
    return approximate(moved, tmp_path / f"drawn{i}", "dare", density=0.5, rank=100).path


@pytest.mark.parametrize("method", sorted(METHODS))
def test_order_never_matters_the_rank_is_kept_and_the_error_is_what_it_says(
    parts: list[Part], tmp_path: Path, method: str
) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    made = approximate(parts, tmp_path / "a", method, density=Decimal("0.5"), rank=2)
    torch.manual_seed(99)
    again = approximate(parts[::-1], tmp_path / "b", method, density=Decimal("0.5"), rank=2)
    assert (made.digest, contents(made.path)) == (again.digest, contents(again.path))
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert made.rank == read_adapter(made.path).rank == 2
    exact, found = deltas_of(compose(parts, tmp_path / "exact").path), deltas_of(made.path)
    far = sum(float((found[name] - exact[name]).square().sum()) for name in exact)
    size = sum(float(value.square().sum()) for value in exact.values())
    assert made.error == pytest.approx((far / size) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "density", "rank", "said"),
    [
        ("sum", 0.5, 2, "a method of ties, dare, knots"),
        ("ties", 0, 2, r"density in \(0, 1\]"),
        ("ties", 1.5, 2, r"density in \(0, 1\]"),
        ("ties", float("nan"), 2, r"density in \(0, 1\]"),
        ("dare", 0.5, 0, "rank from 1"),
        ("ties", 1e-9, 2, "nothing to keep"),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(
    parts: list[Part], tmp_path: Path, method: str, density: float, rank: int, said: str
) -> None:
    with pytest.raises(CompositionError, match=said):
        approximate(parts, tmp_path / "out", method, density=density, rank=rank)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part0", "part1", "part2"]
