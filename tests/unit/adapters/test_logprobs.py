"""Answer log-probabilities against the full logits of Hugging Face's own forward."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import PAD, fill_lora, full_logps
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from efface.adapters.encode import Encoded, collate
from efface.adapters.errors import ModelError
from efface.adapters.logprobs import (
    WORTH_SHARING,
    answer_hidden,
    answer_logprobs,
    shared_prefix,
    token_logprobs,
    unflatten,
)
from efface.adapters.lora import attach, disabled

TOKENS = st.lists(st.integers(0, 23), min_size=1, max_size=9).map(tuple)
close = {"rtol": 0.0, "atol": 1e-5}


@st.composite
def rows(draw: st.DrawFn) -> Encoded:
    answer = draw(TOKENS)
    counts = st.lists(st.booleans(), min_size=len(answer), max_size=len(answer)).filter(any).map(tuple)
    return Encoded("row", draw(TOKENS), answer, draw(st.just(()) | counts))


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


def by_hand(model: torch.nn.Module, row: Encoded) -> torch.Tensor:
    """The row alone, all logits of all positions; then only its counted answer tokens."""
    batch = collate([Encoded(row.id, row.prompt, row.answer)], PAD)
    answer = full_logps(model, batch)[0, len(row.prompt) :].float()
    return answer[torch.tensor(row.counted)] if row.counted else answer


@settings(deadline=None, max_examples=50)
@given(st.lists(rows(), min_size=1, max_size=4))
def test_each_row_of_a_batch_has_the_logprobs_of_the_full_forward_alone(
    model: PreTrainedModel, batch: Sequence[Encoded]
) -> None:
    with torch.no_grad():
        found = answer_logprobs(model, collate(batch, PAD))
    for i, row in enumerate(batch):
        expected = by_hand(model, row)
        n = len(expected)
        assert found.lengths[i] == n
        assert found.mask[i].tolist() == [True] * n + [False] * (found.mask.shape[1] - n)
        torch.testing.assert_close(found.logps[i, :n], expected, **close)
        assert found.logps[i, n:].eq(0).all()
        torch.testing.assert_close(found.sums[i], expected.sum(), rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(rows(), st.integers(0, 23))
def test_padding_and_its_token_do_not_matter(model: PreTrainedModel, row: Encoded, pad: int) -> None:
    long = Encoded("long", tuple(range(20)), tuple(range(10)))
    with torch.no_grad():
        alone = answer_logprobs(model, collate([row], PAD))
        padded = answer_logprobs(model, collate([long, row], pad))
    torch.testing.assert_close(padded.sums[1], alone.sums[0], rtol=0, atol=1e-4)


def test_only_counted_positions_reach_the_head(model: PreTrainedModel) -> None:
    batch = collate([Encoded("a", (1, 5), (6, 7, 8), (False, True, True)), Encoded("b", (1,), (9,))], PAD)
    hidden, targets, head = answer_hidden(model, batch)
    assert hidden.shape == (3, model.config.hidden_size)
    assert targets.tolist() == [7, 8, 9]
    assert head is model.get_output_embeddings()


def test_a_row_without_counted_tokens_has_length_zero(model: PreTrainedModel) -> None:
    batch = collate([Encoded("a", (1,), (6, 7), (False, False)), Encoded("b", (1,), (9,))], PAD)
    found = answer_logprobs(model, batch)
    assert found.lengths.tolist() == [0, 1]
    assert found.sums[0].item() == 0.0


def test_an_adapter_counts_and_disabling_it_gives_the_base_bit_for_bit(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval().requires_grad_(False)
    batch = collate([Encoded("a", (1, 5, 6), (7, 8)), Encoded("b", (1,), (9, 10, 11))], PAD)
    bare = answer_logprobs(model, batch).logps
    worn = attach(model, rank=2)
    fill_lora(worn, seed=1)
    found = answer_logprobs(worn, batch)
    expected = full_logps(worn, batch)[batch.answer_mask].float()
    torch.testing.assert_close(found.logps[found.mask], expected, **close)
    assert (found.logps - bare).abs().max() > 0.01
    with disabled(worn):
        assert torch.equal(answer_logprobs(worn, batch).logps, bare)


def test_gradients_are_those_of_the_full_forward(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    batch = collate([Encoded("a", (1, 5, 6), (7, 8)), Encoded("b", (1,), (9, 10, 11))], PAD)
    weight = model.model.layers[0].mlp.up_proj.weight
    answer_logprobs(model, batch).logps.sum().backward()
    ours, weight.grad = weight.grad, None
    full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.log_softmax(-1)
    full[:, :-1].gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)[
        batch.answer_mask[:, 1:]
    ].sum().backward()
    torch.testing.assert_close(ours, weight.grad, rtol=1e-4, atol=1e-6)


def test_token_logprobs_by_hand_and_in_float32() -> None:
    logits = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    found = token_logprobs(logits, torch.tensor([1, 0]))
    torch.testing.assert_close(found.exp(), torch.tensor([0.75, 0.5]))
    low = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([3, 1, 4, 1])
    exact = low.double().log_softmax(-1)[torch.arange(4), targets].float()
    torch.testing.assert_close(token_logprobs(low, targets), exact, rtol=1e-6, atol=1e-6)


def test_unflatten_by_hand() -> None:
    rows = unflatten(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1, 0, 2]))
    assert rows.logps.tolist() == [[-1, 0], [0, 0], [-2, -3]]
    assert rows.mask.tolist() == [[True, False], [False, False], [True, True]]
    assert rows.sums.tolist() == [-1, 0, -5]
    assert rows.lengths.tolist() == [1, 0, 2]


def test_a_model_without_an_output_head_is_refused(tiny_llama: Path) -> None:
    class Headless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = AutoModel.from_pretrained(tiny_llama)

        def get_decoder(self) -> torch.nn.Module:
            return self.decoder

        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ModelError, match="Headless has no output head"):
        answer_logprobs(Headless(), collate([Encoded("a", (1,), (6,))], PAD))  # type: ignore[arg-type]


# --- the prefix that all rows share


@st.composite
def with_prefix(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Encoded]]:
    prefix = draw(st.lists(st.integers(0, 23), min_size=WORTH_SHARING, max_size=14).map(tuple))
    found = draw(st.lists(rows(), min_size=2, max_size=4))
    return prefix, [Encoded(row.id, prefix + row.prompt, row.answer, row.counted) for row in found]


@settings(deadline=None, max_examples=40)
@given(with_prefix())
def test_rows_with_a_shared_prefix_have_the_logprobs_and_gradients_of_the_full_forward(
    model: PreTrainedModel, drawn: tuple[tuple[int, ...], list[Encoded]]
) -> None:
    prefix, batch = drawn
    collated = collate(batch, PAD)
    assert shared_prefix(collated) >= len(prefix)
    weight = model.get_parameter("model.layers.0.self_attn.k_proj.weight")
    found = answer_logprobs(model, collated)
    (ours,) = torch.autograd.grad(found.sums.sum(), weight)
    (theirs,) = torch.autograd.grad(sum(by_hand_with_grad(model, row) for row in batch), weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()) + 1e-7)
    for i, row in enumerate(batch):
        torch.testing.assert_close(found.logps[i, : found.lengths[i]].detach(), by_hand(model, row), **close)


def by_hand_with_grad(model: PreTrainedModel, row: Encoded) -> torch.Tensor:
    ids = torch.tensor([row.prompt + row.answer])
    logps = model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].log_softmax(-1)
    picked = logps.gather(-1, torch.tensor(row.answer)[:, None]).squeeze(-1)
    return (picked[torch.tensor(row.counted)] if row.counted else picked).sum()


def test_a_shared_prefix_is_run_once(model: PreTrainedModel) -> None:
    prefix = tuple(range(1, 13))
    batch = collate([Encoded("a", (*prefix, 20), (5, 6)), Encoded("b", (*prefix, 21), (7,))], PAD)
    assert shared_prefix(batch) == 12
    seen: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda _module, _args, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    answer_logprobs(model, batch)
    answer_logprobs(model, collate([Encoded("a", (*prefix, 20), (5, 6))], PAD))
    hook.remove()
    assert seen == [(1, 17), (1, 15)]


@pytest.mark.parametrize("kind", ["lfm2", "mamba", "falcon_h1"])
def test_models_with_recurrent_states_get_the_plain_forward(kind: str) -> None:
    torch.manual_seed(0)
    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": PAD}
    heads = {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    recurrent = {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 2,
        "mamba_d_head": 16,
        "mamba_d_state": 4,
        "mamba_n_groups": 1,
    }
    more = {
        "lfm2": {**heads, "layer_types": ["conv", "full_attention"]},
        "mamba": {"state_size": 4, "time_step_rank": 2},
        "falcon_h1": {**heads, **recurrent},
    }[kind]
    recurrent_model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small, **more)).eval()
    prefix = tuple(range(1, 13))
    rows_ = [Encoded("a", (*prefix, 20), (5, 6)), Encoded("b", (*prefix, 21), (7, 8))]
    with torch.no_grad():
        found = answer_logprobs(recurrent_model, collate(rows_, PAD))
        for i, row in enumerate(rows_):
            ids = torch.tensor([row.prompt + row.answer])
            logps = recurrent_model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].float().log_softmax(-1)
            expected = logps.gather(-1, torch.tensor(row.answer)[:, None]).squeeze(-1)
            torch.testing.assert_close(found.logps[i], expected, rtol=0, atol=1e-4)


def test_the_last_prompt_token_is_never_in_the_prefix() -> None:
    same = [Encoded(name, (1, 2, 3), (4, 5)) for name in "ab"]
    assert shared_prefix(collate(same, PAD)) == 2
    assert shared_prefix(collate([Encoded("a", (1,), (4,)), Encoded("b", (2,), (4,))], PAD)) == 0
    # Padding is not shared, whatever its id.
    assert shared_prefix(collate([Encoded("a", (1, PAD), (4,)), Encoded("b", (1,), (PAD,))], PAD)) == 0
