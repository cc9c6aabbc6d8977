"""Distillation of a stack into one LoRA: whose answers are learnt, by what, and what stays as it was."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_kit import PAD, fill_lora, full_logps, logits
from peft import PeftModel
from safetensors.torch import load_file, save_file

from efface.adapters import AdapterError, Encoded, TrainingError, attach, collate, detach, load_base, save
from efface.adapters.compose import Part, compose
from efface.adapters.compress import compress
from efface.adapters.distil import (
    DistilSettings,
    ask_teacher,
    check_distil,
    distil,
    divergence,
    start_from,
    student_alone,
)
from efface.adapters.lora import STACKED, lora_tensors
from efface.adapters.model import state_digest
from efface.adapters.reference import ReferenceCache

QUICK = DistilSettings(steps=60, batch=6, learning_rate=1e-2)


@pytest.fixture(scope="module")
def base(known: Path) -> Any:
    return load_base(known, "fp32").model


@pytest.fixture(scope="module")
def stack(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random LoRAs of rank 2 that move the model's answers, as one folder of rank 4."""
    folder = tmp_path_factory.mktemp("stack")
    parts = []
    for seed in (1, 2):
        model = attach(base, rank=2, alpha=4, seed=seed)
        fill_lora(model, seed, 0.3)
        save(model, folder / str(seed), base="sha256:" + "a" * 64)
        detach(model)
        parts.append(Part(folder / str(seed)))
    return compose(parts, folder / "both").path


@pytest.fixture
def student(base: Any, stack: Path) -> Iterator[PeftModel]:
    model = attach(base, rank=4, alpha=8, stacked_on=stack, seed=3)
    yield model
    detach(model)


@pytest.fixture
def rows(forget: tuple[Encoded, ...], retain: tuple[Encoded, ...]) -> tuple[Encoded, ...]:
    return (*forget, *retain)


def kl(model: PeftModel, rows: tuple[Encoded, ...]) -> float:
    return divergence(model, rows, ask_teacher(model, rows, pad_id=PAD), pad_id=PAD)


def test_the_divergence_is_the_mean_kl_of_whole_distributions(
    base: Any, stack: Path, student: PeftModel, rows: tuple[Encoded, ...]
) -> None:
    """Against all logits of every position, in float64, each model worn alone."""
    batch = collate(rows, PAD)
    asked = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    tuner: Any = student.base_model
    found = []
    with torch.no_grad():
        for name in (STACKED, "default"):
            tuner.set_adapter([name], inference_mode=True)
            found.append(student(**asked).logits.double().log_softmax(-1)[:, :-1][batch.answer_mask[:, 1:]])
    theirs, ours = found
    expected = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert expected > 0.01
    assert kl(student, rows) == pytest.approx(expected, rel=1e-4)


def test_a_student_comes_close_to_the_stack(student: PeftModel, rows: tuple[Encoded, ...]) -> None:
    before = kl(student, rows)
    done = distil(student, rows, QUICK, pad_id=PAD)
    assert len(done.losses) == QUICK.steps
    assert kl(student, rows) < 0.1 * before
    assert done.losses[-1] < 0.2 * done.losses[0]


def test_base_and_stack_stay_and_the_student_is_on_alone(
    base: Any, student: PeftModel, rows: tuple[Encoded, ...]
) -> None:
    stack, weights = lora_tensors(student, STACKED), state_digest(base)
    distil(student, rows, replace(QUICK, steps=3), pad_id=PAD)
    assert all(torch.equal(value, stack[key]) for key, value in lora_tensors(student, STACKED).items())
    assert student.active_adapters == ["default"]
    learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(".default." in name for name in learning)
    with student.disable_adapter():
        assert state_digest(base) == weights


def test_the_same_seed_gives_the_same_bytes(
    base: Any, stack: Path, rows: tuple[Encoded, ...], tmp_path: Path
) -> None:
    """Also where the teacher's answers were kept from before."""
    cache = ReferenceCache("sha256:" + "c" * 64)
    digests = []
    for i, seed in enumerate((5, 5, 6)):
        model = attach(base, rank=2, alpha=4, stacked_on=stack, seed=seed)
        distil(model, rows, replace(QUICK, steps=4, seed=seed), pad_id=PAD, cache=cache)
        save(model, tmp_path / str(i), base="sha256:" + "a" * 64)
        detach(model)
        digests.append((tmp_path / str(i) / "adapter_model.safetensors").read_bytes())
    assert digests[0] == digests[1] != digests[2]
    assert cache.kept


def without_a_layer(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    kept = {name: tensor for name, tensor in tensors.items() if ".layers.1." not in name}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, weights, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = [name for name in config["target_modules"] if ".layers.1." not in name]
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_starting_from_a_lora_is_that_lora(
    base: Any, stack: Path, student: PeftModel, rows: tuple[Encoded, ...], tmp_path: Path
) -> None:
    """Whatever the student learnt before, also on a layer that the LoRA is not on."""
    smaller = compress([Part(stack)], tmp_path / "small", rank=3)
    without_a_layer(smaller.path)
    for name, parameter in student.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(parameter)
    start_from(student, smaller.path)
    student_alone(student)
    student.eval()
    same = logits(student)
    detached = detach(student)
    alone = PeftModel.from_pretrained(detached, str(smaller.path))
    alone.eval()
    torch.testing.assert_close(same, logits(alone), rtol=0, atol=1e-5)
    detach(alone)


def test_a_lossless_start_has_nothing_left_to_learn(
    stack: Path, student: PeftModel, rows: tuple[Encoded, ...], tmp_path: Path
) -> None:
    start_from(student, compress([Part(stack)], tmp_path / "small", rank=4).path)
    assert abs(kl(student, rows)) < 1e-5


def test_what_does_not_fit_is_named(base: Any, stack: Path) -> None:
    narrow = attach(base, rank=2, alpha=4, targets=["q_proj"], stacked_on=stack)
    with pytest.raises(AdapterError, match="not among the student's modules"):
        start_from(narrow, stack)
    detach(narrow)
    low = attach(base, rank=2, alpha=4, stacked_on=stack)
    with pytest.raises(AdapterError, match="has rank 4, the student 2"):
        start_from(low, stack)
    detach(low)


def test_without_a_stack_or_rows_there_is_nothing_to_learn(
    base: Any, student: PeftModel, rows: tuple[Encoded, ...]
) -> None:
    with pytest.raises(TrainingError, match="got none"):
        distil(student, (), QUICK, pad_id=PAD)
    detach(student)
    bare = attach(base, rank=2, alpha=4)
    with pytest.raises(AdapterError, match="stacked_on"):
        distil(bare, rows, QUICK, pad_id=PAD)
    detach(bare)


def test_a_kl_that_is_not_finite_names_rows(student: PeftModel, rows: tuple[Encoded, ...]) -> None:
    fill_lora(student, 1, 1e30)
    with pytest.raises(TrainingError, match="not finite"):
        distil(student, rows, replace(QUICK, steps=1), pad_id=PAD)


def test_all_that_cannot_be_meant_is_said_at_once() -> None:
    bad = DistilSettings(steps=0, batch=0, learning_rate=float("nan"), warmup=1.0, max_grad_norm=0.0, seed=-1)
    with pytest.raises(TrainingError) as caught:
        check_distil(bad)
    assert len(str(caught.value).splitlines()) == 6
    check_distil(DistilSettings())


def test_full_logps_agree_that_the_student_answers_like_the_stack(
    base: Any, stack: Path, rows: tuple[Encoded, ...], tmp_path: Path
) -> None:
    """Worn alone on the bare base, from its files: what a server has."""
    model = attach(base, rank=4, alpha=8, stacked_on=stack, seed=3)
    distil(model, rows, replace(QUICK, steps=150), pad_id=PAD)
    save(model, tmp_path / "out", base="sha256:" + "a" * 64)
    detach(model)
    batch, found = collate(rows, PAD), []
    for folder in (stack, tmp_path / "out"):
        worn = PeftModel.from_pretrained(base, str(folder))
        found.append(full_logps(worn, batch)[batch.answer_mask].exp())
        detach(worn)
    assert float((found[0] - found[1]).abs().mean()) < 0.05
