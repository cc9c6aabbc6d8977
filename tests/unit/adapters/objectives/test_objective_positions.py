"""Every objective, called by its table's contract on a real batch: prompts and padding contribute to nothing."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from model_kit import FORGET, PAD, encoded
from objective_kit import JUNK
from torch import Tensor
from transformers import AutoModelForCausalLM

from efface.adapters import Batch, answer_logprobs, collate, token_logprobs
from efface.adapters.logprobs import answer_hidden, unflatten
from efface.adapters.objectives import OBJECTIVES, Objective, control_vector

WIDTH = 24  # tiny_llama's vocabulary fits


def named(logits: Tensor, targets: Tensor, mask: Tensor, *, by_token: bool) -> Mapping[str, Tensor]:
    """Every input that an objective may ask for, made from logits [N, V] at the answer positions of ``mask``."""
    rows = unflatten(token_logprobs(logits, targets), mask.sum(-1))
    sums = rows.sums
    reference = 0.9 * logits.detach() + 0.1
    return {
        "logps": rows.logps if by_token else sums,
        "mask": rows.mask,
        "lengths": rows.lengths,
        "ref_logps": sums.detach() - 0.5,
        "alternate_logps": rows.logps if by_token else sums.flip(0) * 0.5,
        "alternate_mask": rows.mask,
        "ref_alternate_logps": sums.detach().flip(0),
        "logits": logits,
        "targets": targets,
        "ref_logits": reference,
        "hidden": logits,
        "ref_hidden": reference,
        "control": control_vector(logits.shape[-1], seed=0),
    }


def loss_of(objective: Objective, logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    inputs = dict(named(logits, targets, mask, by_token=objective.level == "token"))
    if objective.name == "altpo":
        for name in ("alternate_logps", "ref_alternate_logps"):
            inputs[name] = inputs[name][:, None]
    return objective.function(*(inputs[name] for name in objective.inputs))


def batch_of(tiny: Path) -> Batch:
    return collate(encoded(tiny, FORGET), PAD)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda row: row.name)
@pytest.mark.parametrize("junk", JUNK)
def test_logits_at_prompts_and_padding_are_never_read(
    tiny_llama: Path, objective: Objective, junk: float
) -> None:
    batch = batch_of(tiny_llama)
    predicts = torch.zeros_like(batch.answer_mask)
    predicts[:, :-1] = batch.answer_mask[:, 1:]
    ids = batch.input_ids[:, 1:][batch.answer_mask[:, 1:]]
    draw = torch.Generator().manual_seed(0)
    clean = torch.randn(*predicts.shape, WIDTH, generator=draw)
    losses: list[Tensor] = []
    for full in (clean, clean.masked_fill(~predicts[..., None], junk)):
        full.requires_grad_()
        loss = loss_of(objective, full[predicts], ids, batch.answer_mask)
        loss.backward()
        assert full.grad is not None
        assert (full.grad[~predicts] == 0).all()
        assert full.grad[predicts].abs().sum() > 0
        losses.append(loss.detach())
    assert losses[0].isfinite()
    assert torch.equal(*losses)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda row: row.name)
def test_other_ids_under_the_padding_change_nothing(tiny_llama: Path, objective: Objective) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    batch = batch_of(tiny_llama)
    pads = batch.attention_mask == 0
    assert pads.any()
    other = Batch(batch.input_ids.masked_fill(pads, 7), batch.attention_mask, batch.answer_mask)
    with torch.no_grad():
        losses = []
        for rows in (batch, other):
            hidden, targets, head = answer_hidden(model, rows)
            losses.append(loss_of(objective, head(hidden), targets, rows.answer_mask))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)


def test_the_sequence_levels_sums_are_those_of_answer_logprobs(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    batch = batch_of(tiny_llama)
    with torch.no_grad():
        hidden, targets, head = answer_hidden(model, batch)
        inputs = named(head(hidden), targets, batch.answer_mask, by_token=False)
        torch.testing.assert_close(inputs["logps"], answer_logprobs(model, batch).sums)
