"""Greedy and sampled answers in batches of left-padded prompts, sorted by length."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .encode import eos_id, pad_id

_GREEDILY: Mapping[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


@torch.no_grad()
def greedy(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda _rows: None,
) -> list[tuple[int, ...]]:
    """Greedy continuation of each prompt (token ids), without EOS, in the order given.

    Deterministic; sampling settings of the model's generation config are overridden. Results of a row can
    depend on its batch in the last bits (padding changes the order of floating-point sums).
    """
    return _batched(model, tokenizer, prompts, max_new_tokens, batch_size, on_batch, _GREEDILY)


@torch.no_grad()
def sampled(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    top_p: float,
    seed: int,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda _rows: None,
) -> list[tuple[int, ...]]:
    """One sample of each prompt's continuation as `greedy` gives them, by nucleus sampling (arXiv 1904.09751).

    Deterministic for a seed, a batch size and a machine; the caller's random state is left as it was.
    """
    choice = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return _batched(model, tokenizer, prompts, max_new_tokens, batch_size, on_batch, choice)


def _batched(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None],
    choice: Mapping[str, Any],
) -> list[tuple[int, ...]]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        found = continuations(
            model,
            [prompts[i] for i in rows],
            pad_id=pad_id(tokenizer),
            eos_id=eos_id(tokenizer),
            max_new_tokens=max_new_tokens,
            choice=choice,
        )
        for i, answer in zip(rows, found, strict=True):
            answers[i] = answer
        on_batch(len(rows))
    return answers


@torch.no_grad()
def continuations(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    *,
    pad_id: int,
    eos_id: int | None,
    max_new_tokens: int,
    choice: Mapping[str, Any] = _GREEDILY,
) -> list[tuple[int, ...]]:
    """`greedy` for one batch, by token ids alone. ``choice``: another way to choose tokens, as `generate` takes it."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(list(prompt))
        attention[i, width - len(prompt) :] = 1
    with _contiguous_head(model):
        out = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=attention.to(model.device),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            pad_token_id=pad_id,
            eos_token_id=eos_id,
            **choice,
        )
    return [_until(row, eos_id) for row in out[:, width:].tolist()]


@contextmanager
def _contiguous_head(model: PreTrainedModel | PeftModel) -> Generator[None]:
    """Give the output head contiguous hidden states, without which generation is three times slower.

    `generate` slices the last position out of [B, T, H]. For such a view torch's matmul copies the head's
    weights once per row: 7 GB at 128 rows and 49k tokens, two thirds of the time on a CPU (docs/LOG.md).
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(_contiguous_input)
    try:
        yield
    finally:
        hook.remove()


def _contiguous_input(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].contiguous(), *args[1:])


def _until(ids: list[int], eos: int | None) -> tuple[int, ...]:
    return tuple(ids[: ids.index(eos)] if eos in ids else ids)
