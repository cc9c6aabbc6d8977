"""Contrast: the directions are generalised eigenvectors, quiet on retain inputs, loud as PEFT's on forget inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM

from efface.adapters import (
    Encoded,
    TrainingError,
    TrainSettings,
    attach,
    detach,
    initialise_contrast,
    load_base,
    train,
)
from efface.adapters.contrast import contrast
from efface.adapters.lora import TRAINED
from efface.adapters.settings import Stacking


def drawn(seed: int, forget: int, retain: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = torch.randn(n, n, generator=draw)
    return torch.randn(forget, n, generator=draw) @ shape, torch.randn(retain, n, generator=draw) @ shape


def loudness(inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (inputs @ rows.T).square().mean(0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 60), st.integers(4, 12), st.integers(1, 3))
def test_the_rows_are_the_leading_generalised_eigenvectors(seed: int, count: int, n: int, rank: int) -> None:
    forget, retain = drawn(seed, count, 2 * count, n)
    rows = contrast(forget, retain, rank, shrinkage=0.01)
    second = (retain.T @ retain / len(retain)).double()
    second += 0.01 * second.diagonal().mean() * torch.eye(n)
    first = (forget.T @ forget / len(forget)).double()
    values = scipy.linalg.eigh(first.numpy(), second.numpy(), eigvals_only=True)[::-1][:rank]
    found = [float((v @ first @ v) / (v @ second @ v)) for v in rows.double()]
    np.testing.assert_allclose(found, values, rtol=2e-2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_forget_rows_are_answered_as_loudly_as_by_pefts_start(seed: int, rank: int) -> None:
    forget, retain = drawn(seed, 50, 80, 10)
    rows = contrast(forget, retain, rank, shrinkage=0.01)
    plain = forget.square().sum(1).mean() / 30
    torch.testing.assert_close(loudness(forget, rows), plain.expand(rank), rtol=1e-3, atol=0.0)


def test_a_direction_of_forget_rows_alone_is_found_and_is_silent_on_retain_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    retain = torch.cat([torch.randn(200, 7, generator=draw), torch.zeros(200, 1)], 1)
    forget = torch.randn(100, 8, generator=draw)
    (row,) = contrast(forget, retain, 1, shrinkage=1e-4)
    assert abs(float(row[7] / row.norm())) > 0.99
    assert loudness(retain, row[None]) < 1e-3 * loudness(forget, row[None])


def test_fewer_inputs_than_ranks_leave_finite_rows_of_full_rank() -> None:
    forget, retain = drawn(1, 2, 40, 12)
    rows = contrast(forget, retain, 6, shrinkage=0.01)
    assert rows.isfinite().all()
    assert torch.linalg.matrix_rank(rows) == 6
    assert rows.norm(dim=1).max() < 1e3 * rows.norm(dim=1).min()


def test_inputs_that_are_not_finite_are_named() -> None:
    forget, retain = drawn(1, 5, 5, 4)
    forget[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        contrast(forget, retain, 2, shrinkage=0.01)


def rows(name: str, first: int) -> list[Encoded]:
    return [Encoded(f"{name}{i}", (first, 5 + i), (7, first, 8)) for i in range(4)]


def test_training_on_it_leaves_a_and_starts_at_the_base(tiny_llama: Path) -> None:
    base = load_base(tiny_llama, "fp32")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        bare = base.model(input_ids=ids).logits
    model = attach(base.model, rank=2, alpha=4, seed=0)
    forget, retain = rows("f", 9), rows("r", 3)
    initialise_contrast(model, forget, retain, pad_id=2)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, bare)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if f"lora_A.{TRAINED}" in n}
    again = attach(load_base(tiny_llama, "fp32").model, rank=2, alpha=4, seed=0)
    initialise_contrast(again, forget, retain, pad_id=2)
    same = dict(again.named_parameters())
    assert all(torch.equal(start[name], same[name]) for name in start)
    chosen = TrainSettings(
        objective="npo", steps=2, forget_batch=2, retain_batch=2, stacking=Stacking(freeze_a=True)
    )
    train(model, forget, retain, chosen, pad_id=2, eos_id=None)
    after = dict(model.named_parameters())
    assert all(torch.equal(start[name], after[name]) for name in start)
    detach(model)


def test_what_cannot_be_contrasted(tiny_llama: Path) -> None:
    model = attach(load_base(tiny_llama, "fp32").model, rank=2, alpha=4, seed=0)
    with pytest.raises(TrainingError, match="got 0 and 4"):
        initialise_contrast(model, [], rows("r", 3), pad_id=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"lora_B.{TRAINED}" in name:
                parameter.fill_(1.0)
    with pytest.raises(TrainingError, match="fresh"):
        initialise_contrast(model, rows("f", 9), rows("r", 3), pad_id=2)


def test_a_model_that_folds_batch_and_tokens_together_is_looked_at_alike() -> None:
    """OPT's feed-forward layers get [batch * tokens, width]."""
    config = OPTConfig(
        vocab_size=32,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attach(OPTForCausalLM(config).eval(), rank=2, alpha=4, seed=0)
    initialise_contrast(model, rows("f", 9), rows("r", 3), pad_id=1)
    made = {n: p.detach() for n, p in model.named_parameters() if f"lora_A.{TRAINED}" in n}
    assert {name.split(".")[-4] for name in made} >= {"fc1", "fc2", "q_proj"}
    assert all(value.isfinite().all() for value in made.values())


def test_more_ranks_than_inputs_are_refused(tiny_llama: Path) -> None:
    model = attach(load_base(tiny_llama, "fp32").model, rank=40, alpha=40, seed=0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(TrainingError, match=r"got rank 40 for 32: lower the rank, or start at random"):
        initialise_contrast(model, rows("f", 9), rows("r", 3), pad_id=2)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class Routed(torch.nn.Module):
    """An expert that sees half of the tokens, or a layer that is never called."""

    def __init__(self, layer: torch.nn.Module, seen: bool) -> None:
        super().__init__()
        self.layer, self.seen = layer, seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        if self.seen:
            out[:, ::2] = self.layer(x[:, ::2])
        return out


@pytest.mark.parametrize(
    ("seen", "match"), [(True, "expert that tokens are routed to"), (False, "calls never")]
)
def test_layers_that_do_not_see_every_token_are_refused(tiny_llama: Path, seen: bool, match: str) -> None:
    bare: Any = load_base(tiny_llama, "fp32").model
    attention = bare.model.layers[0].self_attn
    attention.o_proj = Routed(attention.o_proj, seen)
    model = attach(bare, rank=2, alpha=4, seed=0)
    with pytest.raises(TrainingError, match=match):
        initialise_contrast(model, rows("f", 9), rows("r", 3), pad_id=2)
