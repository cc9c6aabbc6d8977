"""Greedy answers against a loop that takes one argmax at a time."""

from pathlib import Path

import pytest
import torch
from model_kit import FORGET, RETAIN, encoded, fill_lora, logits, taught

from efface.adapters.generate import greedy, sampled
from efface.adapters.lora import attach, disabled
from efface.adapters.model import Base, load_base

EOS = 2


@pytest.fixture(scope="module")
def known(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(taught(tiny_llama, tmp_path_factory.mktemp("generate") / "taught"), "fp32")


@pytest.fixture(scope="module")
def prompts(tiny_llama: Path) -> list[tuple[int, ...]]:
    extra = [(5,), (1, 3, 23, 22, 21, 20, 19, 18, 17, 16, 15), (9, 9)]
    return [row.prompt for row in encoded(tiny_llama, FORGET + RETAIN)] + extra


def by_hand(model: torch.nn.Module, prompt: tuple[int, ...], limit: int) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(limit):
        best = int(logits(model, torch.tensor([ids]))[0, -1].argmax())
        if best == EOS:
            break
        ids.append(best)
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
@pytest.mark.parametrize("limit", [1, 3, 12])
def test_each_answer_is_the_argmax_loops_in_the_order_given(
    known: Base, prompts: list[tuple[int, ...]], batch_size: int, limit: int
) -> None:
    found = greedy(known.model, known.tokenizer, prompts, max_new_tokens=limit, batch_size=batch_size)
    assert found == [by_hand(known.model, prompt, limit) for prompt in prompts]
    assert all(EOS not in answer and len(answer) <= limit for answer in found)


def test_the_taught_model_says_what_it_was_taught_and_stops(
    known: Base, prompts: list[tuple[int, ...]]
) -> None:
    found = greedy(known.model, known.tokenizer, prompts[:6], max_new_tokens=12)
    assert [known.tokenizer.decode(list(answer)) for answer in found] == [
        i.completion for i in FORGET + RETAIN
    ]


def test_no_prompts_no_answers_and_rows_are_counted(known: Base, prompts: list[tuple[int, ...]]) -> None:
    assert greedy(known.model, known.tokenizer, []) == []
    seen: list[int] = []
    greedy(known.model, known.tokenizer, prompts, max_new_tokens=1, batch_size=4, on_batch=seen.append)
    assert seen == [4, 4, 1]


def test_an_adapter_answers_and_is_silent_when_disabled(tiny_llama: Path, known: Base) -> None:
    base = load_base(known.path, "fp32")
    worn = attach(base.model, rank=4)
    fill_lora(worn, seed=1, size=0.5)
    asked = [row.prompt for row in encoded(tiny_llama, FORGET)]
    adapted = greedy(worn, base.tokenizer, asked, max_new_tokens=6)
    assert adapted == [by_hand(worn, prompt, 6) for prompt in asked]
    with disabled(worn):
        bare = greedy(worn, base.tokenizer, asked, max_new_tokens=6)
    assert bare == greedy(known.model, known.tokenizer, asked, max_new_tokens=6) != adapted


def test_the_head_sees_contiguous_states_while_generating_and_is_left_as_it_was(known: Base) -> None:
    # Otherwise torch copies the head's weights once per row (three times slower at 49k tokens).
    head = known.model.get_output_embeddings()
    hooks, seen = len(head._forward_pre_hooks), []
    spy = head.register_forward_hook(lambda _module, args, _out: seen.append(args[0].is_contiguous()))
    greedy(known.model, known.tokenizer, [(5, 6, 7), (8, 9)], max_new_tokens=3)
    spy.remove()
    assert seen and all(seen)
    assert len(head._forward_pre_hooks) == hooks


def test_samples_are_drawn_from_the_seed_alone(known: Base, prompts: list[tuple[int, ...]]) -> None:
    def draw(seed: int, temperature: float = 2.0, **more: int) -> list[tuple[int, ...]]:
        return sampled(
            known.model, known.tokenizer, prompts, temperature=temperature, top_p=1.0, seed=seed, **more
        )

    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    assert draw(1) == draw(1) != draw(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({tuple(draw(seed)) for seed in range(5)}) == 5
    assert draw(1, temperature=1e-4) == greedy(known.model, known.tokenizer, prompts)
    assert draw(1, max_new_tokens=1) == [answer[:1] for answer in draw(1)]


def test_a_narrow_nucleus_is_the_argmax(known: Base, prompts: list[tuple[int, ...]]) -> None:
    found = sampled(known.model, known.tokenizer, prompts, temperature=1.0, top_p=1e-6, seed=0)
    assert found == greedy(known.model, known.tokenizer, prompts)
