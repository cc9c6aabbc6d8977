"""Training on a CUDA device: every objective, the stop rules, resume, stacks. Skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_kit import FORGET, PAD, RETAIN, encoded, fill_lora, taught
from peft import PeftModel

from efface.adapters.checkpoint import Checkpoints
from efface.adapters.encode import Encoded, Item
from efface.adapters.fila import initialise_fila
from efface.adapters.lora import attach, save
from efface.adapters.model import load_base
from efface.adapters.settings import FORGET_OBJECTIVES, StopRules, TrainSettings
from efface.adapters.trainer import train
from efface.adapters.watch import StepReport

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
Rows = tuple[Encoded, ...]
SETTINGS = TrainSettings(learning_rate=3e-3, steps=4, forget_batch=3, retain_batch=3, layer=0)


@pytest.fixture(scope="module")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tiny_llama, tmp_path_factory.mktemp("gpu") / "taught")


@pytest.fixture(scope="module")
def forget(tiny_llama: Path) -> Rows:
    return encoded(tiny_llama, FORGET)


@pytest.fixture(scope="module")
def retain(tiny_llama: Path) -> Rows:
    return encoded(tiny_llama, RETAIN)


def worn(folder: Path, quantization: str = "fp32", **options: object) -> PeftModel:
    base = load_base(folder, quantization, device="cuda")
    return attach(base.model, **({"rank": 4, "alpha": 8} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", FORGET_OBJECTIVES)
@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_every_objective_trains(
    known: Path, tiny_llama: Path, forget: Rows, retain: Rows, objective: str, quantization: str
) -> None:
    items = [Item(item.id, item.prompt, "a city") for item in FORGET]
    others = {row: (other,) for row, other in zip(forget, encoded(tiny_llama, tuple(items)), strict=True)}
    term = "hidden" if objective == "rmu" else "kl"
    chosen = replace(
        SETTINGS, objective=objective, retain_term=term, stop=StopRules(every=2, retain_drop=None)
    )
    result = train(
        worn(known, quantization), forget, retain, chosen, pad_id=PAD, eos_id=PAD, alternates=others
    )
    assert len(result.steps) == 4


def test_an_ended_run_goes_on(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    def crash(report: StepReport) -> None:
        if report.step == 3:
            raise KeyError

    run = Checkpoints(tmp_path / "run", "sha256:run", every=2)
    chosen = replace(SETTINGS, objective="npo", retain_term="kl", gradient_checkpointing=True)
    with pytest.raises(KeyError):
        train(worn(known), forget, retain, chosen, pad_id=PAD, checkpoints=run, on_step=crash)
    seen: list[int] = []
    resumed = replace(run, resume=True)
    train(
        worn(known),
        forget,
        retain,
        chosen,
        pad_id=PAD,
        checkpoints=resumed,
        on_step=lambda report: seen.append(report.step),
    )
    assert seen == [3, 4]


def test_stacks_fila_and_a_paged_optimizer(known: Path, forget: Rows, retain: Rows, tmp_path: Path) -> None:
    below = worn(known, seed=5)
    fill_lora(below.cpu(), seed=9)
    save(below, tmp_path / "below", base="sha256:" + "00" * 32)
    model = worn(known, stacked_on=tmp_path / "below")
    initialise_fila(model, forget, retain, pad_id=PAD)
    chosen = replace(SETTINGS, objective="npo", retain_term="kl", optimizer="paged_adamw_8bit")
    first, *_ = train(model, forget, retain, chosen, pad_id=PAD).steps
    assert first.retain_loss == pytest.approx(0.0, abs=1e-4)
