"""Kept apart: exact laws of the bases, the null space and the penalty, and what the trainer makes of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_files import contents
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import PAD, fill_lora, logits
from peft import PeftModel
from safetensors.torch import load_file

from efface.adapters import Stacking, initialise_null_space
from efface.adapters.apart import extended, null_space_start, project_out, shared, span, squeezed
from efface.adapters.encode import Encoded
from efface.adapters.errors import BaseMismatch, TrainingError
from efface.adapters.fila import initialise_fila
from efface.adapters.lora import attach, save
from efface.adapters.lora_files import WEIGHTS_NAME
from efface.adapters.model import load_base, state_digest
from efface.adapters.settings import TrainSettings
from efface.adapters.trainer import train

Rows = tuple[Encoded, ...]
BASE = "sha256:" + "00" * 32
SETTINGS = TrainSettings(learning_rate=1e-2, steps=6, forget_batch=3, retain_batch=3)
EPS = torch.finfo(torch.float32).eps


def worn(folder: Path, quantization: str = "fp32", **options: object) -> PeftModel:
    return attach(load_base(folder, quantization).model, **({"rank": 4, "alpha": 8, "seed": 1} | options))  # type: ignore[arg-type]


def lora(model: torch.nn.Module, side: str = "lora_") -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if side in name}


@pytest.fixture(scope="module")
def others(known: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters: two of rank 4 on every layer, one of rank 2 on q_proj alone."""
    place, folders = tmp_path_factory.mktemp("others"), []
    for i, options in enumerate(({}, {}, {"rank": 2, "targets": ["q_proj"]})):
        model = worn(known, seed=20 + i, **options)
        fill_lora(model, seed=30 + i, size=0.3)
        save(model, place / str(i), base=BASE)
        folders.append(place / str(i))
    return folders


def matrix(draw: st.DrawFn, rows: int, columns: int) -> torch.Tensor:
    seed, size = draw(st.integers(0, 2**32)), draw(st.sampled_from([1e-6, 1.0, 1e6]))
    return size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@st.composite
def families(draw: st.DrawFn) -> tuple[list[torch.Tensor], int]:
    """Matrices [r, n] of one n, some of lower rank than r, some equal, some zero."""
    n = draw(st.integers(1, 24))
    found: list[torch.Tensor] = []
    for _ in range(draw(st.integers(0, 4))):
        a = matrix(draw, draw(st.integers(1, 6)), n)
        kind = draw(st.sampled_from(["plain", "repeated", "zero", "again"]))
        if kind == "repeated":
            a = torch.cat([a, a[:1] * 2])
        found.append(torch.zeros_like(a) if kind == "zero" else found[-1] if kind == "again" and found else a)
    return found, n


def joint(rows: list[torch.Tensor], n: int) -> torch.Tensor:
    basis = torch.zeros(0, n, dtype=torch.float64)
    for one in rows:
        basis = extended(basis, one)
    return basis


# --- pure laws


@settings(deadline=None, max_examples=60)
@given(families())
def test_the_joint_basis_is_orthonormal_and_spans_every_row(family: tuple[list[torch.Tensor], int]) -> None:
    rows, n = family
    basis = joint(rows, n)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-8)
    for one in rows:
        assert project_out(one, basis).norm() <= 1e-6 * one.norm()
    scaled = [one.double() / one.norm().clamp(min=1e-30) for one in rows]
    if rows:
        assert len(basis) == int(torch.linalg.matrix_rank(torch.cat(scaled), rtol=1e-6))


@settings(deadline=None, max_examples=60)
@given(families(), st.integers(1, 6), st.integers(0, 2**32))
def test_in_the_null_space_inputs_do_not_overlap_and_the_rank_stays(
    family: tuple[list[torch.Tensor], int], rank: int, seed: int
) -> None:
    rows, n = family
    basis = joint(rows, n)
    if n - len(basis) < rank:
        return
    a = torch.randn(rank, n, generator=torch.Generator().manual_seed(seed))
    start = null_space_start(a, basis)
    for one in rows:
        assert (one.double() @ start.double().T).norm() <= 8 * EPS * one.double().norm() * start.norm()
    torch.testing.assert_close(start.norm(dim=1), a.norm(dim=1), rtol=1e-5, atol=0)
    assert int(torch.linalg.matrix_rank(start)) == rank
    assert start.dtype == a.dtype


def test_a_start_without_others_is_what_was_drawn() -> None:
    a = torch.randn(3, 5)
    torch.testing.assert_close(null_space_start(a, torch.zeros(0, 5, dtype=torch.float64)), a, rtol=0, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(2, 8), st.integers(0, 2**32))
def test_the_gradient_of_the_penalty_is_that_of_finite_differences(r: int, k: int, n: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(r, n, generator=draw, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(k, n, generator=draw, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: shared(x, rows), (a,))
    a = a.detach()
    by_hand = sum(float(x @ y) ** 2 for x in a for y in rows)
    torch.testing.assert_close(float(shared(a, rows)), by_hand, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shared(a, squeezed(rows)), shared(a, rows), rtol=1e-10, atol=1e-12)
    assert len(squeezed(rows)) <= max(n, min(k, n))


def test_the_penalty_does_not_see_the_size_of_the_other_adapter() -> None:
    a, other = torch.randn(3, 9, dtype=torch.float64), torch.randn(2, 9)
    torch.testing.assert_close(shared(a, span(other)), shared(a, span(1000 * other)), rtol=1e-6, atol=0)
    # All of ``a`` lies within its own space.
    torch.testing.assert_close(shared(a, span(a)), a.square().sum(), rtol=1e-10, atol=0)


# --- a start in the null space


def overlaps(model: PeftModel, folder: Path, side: str) -> dict[str, float]:
    """The largest entry of A_i·Aᵀ (or B_iᵀ·B) of each layer that both have, over the sizes."""
    theirs, found = load_file(folder / WEIGHTS_NAME), {}
    for name, ours in lora(model, side).items():
        key = name.replace(".default.weight", ".weight")
        if key in theirs:
            pair = (theirs[key], ours) if side == "lora_A" else (theirs[key].T, ours.T)
            product = pair[0].double() @ pair[1].double().T
            found[key] = float(product.abs().max() / (pair[0].norm() * pair[1].norm()).clamp(min=1e-12))
    assert found
    return found


def test_a_frozen_start_reads_nothing_that_others_read_until_the_end(
    known: Path, forget: Rows, retain: Rows, others: list[Path], tmp_path: Path
) -> None:
    model = worn(known)
    fresh, before = state_digest(model), logits(model)
    initialise_null_space(model, others)
    start = lora(model)
    assert torch.equal(logits(model), before)
    assert state_digest(model) == fresh
    chosen = replace(SETTINGS, stacking=Stacking(freeze_a=True), weight_decay=0.1, objective="npo")
    result = train(model, forget, retain, chosen, pad_id=PAD)
    assert result.steps[-1].forget_probability < 0.9 * result.steps[0].forget_probability
    after = lora(model)
    assert all(torch.equal(after[name], start[name]) == (".lora_A." in name) for name in start)
    assert max(overlap for other in others for overlap in overlaps(model, other, "lora_A").values()) < 1e-6
    assert all(p.requires_grad for name, p in model.named_parameters() if "lora_" in name)
    save(model, tmp_path / "saved", base=BASE)
    assert contents(tmp_path / "saved")


def test_an_a_that_is_free_leaves_the_null_space(
    known: Path, forget: Rows, retain: Rows, others: list[Path]
) -> None:
    model = worn(known)
    initialise_null_space(model, others)
    train(model, forget, retain, SETTINGS, pad_id=PAD)
    assert max(overlaps(model, others[0], "lora_A").values()) > 1e-4


def test_the_order_of_the_others_and_no_others_change_nothing_that_matters(
    known: Path, others: list[Path]
) -> None:
    one, other, none = (worn(known) for _ in range(3))
    drawn = lora(none)
    initialise_null_space(one, others)
    initialise_null_space(other, others[::-1])
    initialise_null_space(none, [])
    for name, value in lora(one).items():
        torch.testing.assert_close(lora(other)[name], value, rtol=0, atol=1e-5)
        assert torch.equal(lora(none)[name], drawn[name])


def test_a_null_space_that_is_used_up_is_an_error_that_says_what_is_left(
    known: Path, others: list[Path]
) -> None:
    model = worn(known, rank=25)
    width = model.config.hidden_size
    before = lora(model)
    assert width == 32
    with pytest.raises(TrainingError) as caught:
        initialise_null_space(model, others)
    assert "expected 25 input directions (the rank) that none of 3 other adapters reads" in str(caught.value)
    assert f"q_proj has {width - 10} of {width} left" in str(caught.value)
    assert f"lower rank to at most {width - 10}, consolidate" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in lora(model).items())


def test_only_a_fresh_adapter_is_moved(known: Path, forget: Rows, retain: Rows, others: list[Path]) -> None:
    model = worn(known)
    initialise_fila(model, forget, retain, pad_id=PAD)
    with pytest.raises(TrainingError, match="expected a fresh adapter"):
        initialise_null_space(model, others)


# --- the penalty in training


@pytest.mark.parametrize(("key", "side"), [("orthogonal", "lora_A"), ("orthogonal_outputs", "lora_B")])
def test_the_penalty_drives_the_overlap_down(
    known: Path, forget: Rows, retain: Rows, others: list[Path], key: str, side: str
) -> None:
    found = {}
    for weight in (0.0, 30.0):
        model = worn(known)
        chosen = replace(SETTINGS, steps=25, max_grad_norm=100.0, stacking=Stacking(**{key: weight}))
        train(model, forget, retain, chosen, pad_id=PAD, apart_from=others if weight else ())
        found[weight] = sum(sum(overlaps(model, other, side).values()) for other in others)
    assert found[30.0] < 0.5 * found[0.0]


def test_the_loss_of_a_step_is_the_plain_one_and_the_penalty(
    known: Path, forget: Rows, retain: Rows, others: list[Path]
) -> None:
    one = replace(SETTINGS, steps=1)
    plain = train(worn(known), forget, retain, one, pad_id=PAD).steps[0]
    model = worn(known)
    expected = 0.0
    for folder in others:
        theirs = load_file(folder / WEIGHTS_NAME)
        for name, a in lora(model, "lora_A").items():
            key = name.replace(".default.weight", ".weight")
            if key in theirs:
                q = torch.linalg.qr(theirs[key].double().T).Q
                expected += float((a.double() @ q).square().sum())
    chosen = replace(one, stacking=Stacking(orthogonal=0.5))
    for changes in ({}, {"accumulation": 3}):
        result = train(worn(known), forget, retain, replace(chosen, **changes), pad_id=PAD, apart_from=others)
        assert result.steps[0].loss == pytest.approx(plain.loss + 0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("start", ["default", "fila"])
@pytest.mark.parametrize(("gamma", "accumulation"), [(0.0, 1), (0.0, 2), (1e-30, 1)])
def test_a_penalty_does_not_hide_a_run_whose_losses_reach_nothing(
    known: Path, forget: Rows, retain: Rows, others: list[Path], start: str, gamma: float, accumulation: int
) -> None:
    """Its own gradient at A (and, from a FILA start, at B) looks like one."""
    model = worn(known)
    if start == "fila":
        initialise_fila(model, forget, retain, pad_id=PAD)
    before = lora(model)
    silent = replace(
        SETTINGS,
        gamma=gamma,
        alpha=0.0,
        accumulation=accumulation,
        stacking=Stacking(orthogonal=0.5, orthogonal_outputs=0.5),
    )
    with pytest.raises(TrainingError, match="no gradient reached the LoRA weights in the first step"):
        train(model, forget, retain, silent, pad_id=PAD, apart_from=others)
    assert all(torch.equal(before[name], value) for name, value in lora(model).items())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_asking_the_losses_for_their_own_gradient_changes_no_bit(
    known: Path, forget: Rows, retain: Rows, others: list[Path], checkpointing: bool
) -> None:
    """A penalty of next to nothing trains the very weights that no penalty does."""
    chosen = replace(
        SETTINGS, steps=3, stacking=Stacking(orthogonal=0.5), gradient_checkpointing=checkpointing
    )
    found = []
    for weight in (0.5, 1e-30):
        model = worn(known)
        train(
            model,
            forget,
            retain,
            replace(chosen, stacking=Stacking(orthogonal=weight)),
            pad_id=PAD,
            apart_from=others,
        )
        found.append(lora(model))
    plain = worn(known)
    train(plain, forget, retain, replace(chosen, stacking=Stacking()), pad_id=PAD)
    expected = lora(plain)
    assert all(torch.equal(found[1][name], expected[name]) for name in expected)
    assert not all(torch.equal(found[0][name], expected[name]) for name in expected)


# --- what is refused


def test_others_that_do_not_fit_or_stand_twice_are_refused(
    known: Path, forget: Rows, retain: Rows, others: list[Path], tmp_path: Path
) -> None:
    model = worn(known)
    with pytest.raises(TrainingError, match="expected each other adapter once"):
        initialise_null_space(model, [others[0], others[1], others[0]])
    narrow = {"targets": ["q_proj"]}
    foreign = worn(known, **narrow)
    save(foreign, tmp_path / "foreign", base=BASE)
    tensors = (tmp_path / "foreign" / WEIGHTS_NAME).read_bytes()
    (tmp_path / "foreign" / WEIGHTS_NAME).write_bytes(tensors.replace(b"layers.0.", b"layers.7."))
    config = tmp_path / "foreign" / "adapter_config.json"
    config.write_text(config.read_text().replace("layers.0.", "layers.7."))
    with pytest.raises(BaseMismatch, match=r"layers\.7"):
        initialise_null_space(model, [tmp_path / "foreign"])
    with pytest.raises(TrainingError, match=r"apart_from names 3 adapters: expected stacking.orthogonal"):
        train(model, forget, retain, SETTINGS, pad_id=PAD, apart_from=others)


@pytest.mark.parametrize(
    ("stacking", "said"),
    [
        (Stacking(orthogonal=-1.0), "finite stacking.orthogonal of zero or more"),
        (Stacking(orthogonal_outputs=float("nan")), "finite stacking.orthogonal_outputs of zero or more"),
        (Stacking(freeze_a=True, orthogonal=1.0), "a frozen A cannot follow stacking.orthogonal"),
    ],
)
def test_settings_that_cannot_be_meant(
    known: Path, forget: Rows, retain: Rows, stacking: Stacking, said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        train(worn(known), forget, retain, replace(SETTINGS, stacking=stacking), pad_id=PAD)
