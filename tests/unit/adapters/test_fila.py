"""FILA: the base stays, the start is the base's own function, and what is saved is the difference of rank 2r."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kit import PAD, logits, wide
from peft import PeftModel

from efface.adapters.checkpoint import Checkpoints
from efface.adapters.encode import Encoded, collate
from efface.adapters.errors import TrainingError
from efface.adapters.fila import initialise_fila
from efface.adapters.folder import read_adapter
from efface.adapters.lora import attach, detach, load, save
from efface.adapters.model import load_base, state_digest
from efface.adapters.settings import TrainSettings
from efface.adapters.trainer import train
from efface.adapters.watch import StepReport

Rows = tuple[Encoded, ...]
SETTINGS = TrainSettings(learning_rate=1e-2, steps=10, forget_batch=3, retain_batch=3)


def lora(model: torch.nn.Module, name: str) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters() if f".{name}." in key}


def fila(folder: Path, forget: Rows, retain: Rows, *, rslora: bool = False) -> PeftModel:
    model = attach(load_base(folder, "fp32").model, rank=4, alpha=8, rslora=rslora)
    initialise_fila(model, forget, retain, pad_id=PAD)
    return model


def importance(folder: Path, rows: Rows, name: str) -> torch.Tensor:
    """The slow way: autograd through the weight itself, row by row."""
    model = load_base(folder, "fp32").model.requires_grad_(True)
    weight, total = model.get_submodule(name).weight, 0.0  # type: ignore[union-attr]
    for row in rows:
        batch = collate([row], PAD)
        logps = model(input_ids=batch.input_ids).logits[0, :-1].log_softmax(-1)
        picked = logps.gather(-1, batch.input_ids[0, 1:, None])[batch.answer_mask[0, 1:]]
        (grad,) = torch.autograd.grad(-picked.sum(), weight)  # type: ignore[arg-type]
        total = total + grad.square() / len(rows)
    return total  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
def test_the_start_is_the_weighted_low_rank_part_of_each_weight(
    known: Path, forget: Rows, retain: Rows, name: str
) -> None:
    model = fila(known, forget, retain)
    layer = model.get_base_model().get_submodule(name)
    ratio = importance(known, forget, name) / (importance(known, retain, name) + 1e-5)
    d = ratio.sum(1).sqrt()
    weight = layer.base_layer.weight  # type: ignore[union-attr]
    u, s, v = torch.linalg.svd(d[:, None] * weight, full_matrices=False)  # type: ignore[operator]
    expected = (u[:, :4] * s[:4]) @ v[:4] / d[:, None]
    b0, a0 = (lora_of["default"].weight for lora_of in (layer.lora_B, layer.lora_A))  # type: ignore[index,union-attr]
    torch.testing.assert_close(2.0 * b0 @ a0, expected, rtol=1e-3, atol=1e-4)


def test_the_output_is_the_bases_at_first_and_the_base_is_untouched(
    known: Path, forget: Rows, retain: Rows
) -> None:
    base = load_base(known, "fp32")
    fresh, before = state_digest(base.model), logits(base.model)
    model = attach(base.model, rank=4, alpha=8)
    initialise_fila(model, forget, retain, pad_id=PAD)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=2e-4)
    train(model, forget, retain, replace(SETTINGS, steps=3), pad_id=PAD)
    assert state_digest(model) == fresh
    assert torch.equal(logits(detach(model)), before)


@pytest.mark.parametrize("changes", [{"objective": "npo"}, {"retain_term": "kl"}])
def test_the_anchor_stays_where_a_reference_is_asked(
    known: Path, forget: Rows, retain: Rows, changes: dict[str, str]
) -> None:
    """PEFT switches the gradients of all active adapters on when it switches them on again."""
    model = fila(known, forget, retain)
    anchor = lora(model, "anchor")
    train(model, forget, retain, replace(SETTINGS, steps=3, **changes), pad_id=PAD)  # type: ignore[arg-type]
    assert all(torch.equal(anchor[key], value) for key, value in lora(model, "anchor").items())
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == set(lora(model, "default"))


def test_a_resumed_run_has_its_anchor(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    def crash(report: StepReport) -> None:
        if report.step == 5:
            raise KeyError

    chosen = replace(SETTINGS, objective="npo", steps=8)
    whole = fila(known, forget, retain)
    train(whole, forget, retain, chosen, pad_id=PAD)
    run = Checkpoints(tmp_path / "run", "sha256:run", every=2)
    with pytest.raises(KeyError):
        train(fila(known, forget, retain), forget, retain, chosen, pad_id=PAD, checkpoints=run, on_step=crash)
    resumed = fila(known, forget, retain)
    for parameter in lora(resumed, "anchor"):  # as another machine might have found it
        resumed.get_parameter(parameter).data.mul_(1.01)
    train(resumed, forget, retain, chosen, pad_id=PAD, checkpoints=replace(run, resume=True))
    for name in ("default", "anchor"):
        ours, theirs = lora(resumed, name), lora(whole, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_is_the_trained_difference_of_twice_the_rank(
    known: Path, forget: Rows, retain: Rows, tmp_path: Path, rslora: bool
) -> None:
    model = fila(known, forget, retain, rslora=rslora)
    anchor = lora(model, "anchor")
    result = train(model, forget, retain, SETTINGS, pad_id=PAD)
    assert result.steps[-1].forget_probability < 0.5 * result.steps[0].forget_probability
    assert all(torch.equal(anchor[key], value) for key, value in lora(model, "anchor").items())
    save(model, tmp_path / "saved", base="sha256:" + "00" * 32)
    assert read_adapter(tmp_path / "saved").rank == 8
    loaded = load(load_base(known, "fp32").model, tmp_path / "saved")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-4)


def test_the_start_is_the_same_every_time_and_on_nf4(
    tiny_llama: Path, tmp_path: Path, forget: Rows, retain: Rows
) -> None:
    folder = wide(tiny_llama, tmp_path / "wide")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # what happened before must not matter
        model = attach(load_base(folder, "nf4").model, rank=4, alpha=8)
        initialise_fila(model, forget, retain, pad_id=PAD)
        found.append(lora(model, "default") | lora(model, "anchor"))
    one, other = found
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(value.isfinite().all() for value in one.values())


def test_what_cannot_be_compared_is_refused(known: Path, forget: Rows, retain: Rows) -> None:
    model = attach(load_base(known, "fp32").model, rank=4, alpha=8)
    for f, r in (((), retain), (forget, ())):
        with pytest.raises(TrainingError, match="FILA compares forget and retain rows"):
            initialise_fila(model, f, r, pad_id=PAD)
    assert "anchor" not in model.peft_config
    initialise_fila(model, forget, retain, pad_id=PAD)
    with pytest.raises(TrainingError, match="expected a fresh adapter"):
        initialise_fila(model, forget, retain, pad_id=PAD)
