"""Log-probabilities of answer tokens, computed at answer positions only.

With a 49k-token vocabulary the output matrix costs more than a layer; prompts and padding never reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .encode import Batch
from .errors import ModelError

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class AnswerLogprobs:
    """``logps`` float32 [B, A], zero where ``mask`` bool [B, A] is False; A = the longest answer's tokens."""

    logps: Tensor
    mask: Tensor

    @property
    def sums(self) -> Tensor:
        """Sequence log-probabilities s(y) = sum_t log p(y_t | x, y_<t), float32 [B]."""
        return self.logps.sum(-1)

    @property
    def lengths(self) -> Tensor:
        """Answer lengths |y| in tokens, int64 [B]."""
        return self.mask.sum(-1)


def answer_hidden(model: PreTrainedModel | PeftModel, batch: Batch) -> tuple[Tensor, Tensor, Head]:
    """One forward through the decoder: hidden states [N, H] that predict the N answer tokens, their ids [N],
    and the output head that turns hidden states into logits.

    Tokens that all rows begin with go through the decoder once (see :func:`shared_prefix`).
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder, head = causal.get_decoder(), causal.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError(f"{type(causal).__name__} has no output head: expected a causal language model")
    hidden, start = _decode(decoder, batch)
    targets = batch.answer_mask[:, 1:]
    return hidden[:, :-1][targets[:, start:]], batch.input_ids[:, 1:][targets], head


def shared_prefix(batch: Batch) -> int:
    """How many tokens every row of ``batch`` begins with, at most all before the first answer's context.

    A chat template with a system prompt makes them a third of a short row.
    """
    same = ((batch.input_ids == batch.input_ids[:1]) & batch.attention_mask.bool()).all(0)
    # The last prompt token is needed in each row: it predicts the first answer token.
    first_answer = int(batch.answer_mask.any(0).int().argmax())
    return max(0, min(int(same.int().cumprod(0).sum()), first_answer - 1))


def _decode(decoder: Any, batch: Batch) -> tuple[Tensor, int]:
    """Last hidden states [B, T - start, H], and ``start``: the length of the prefix they leave out.

    The shared prefix is run once for all rows, and gradients come back to it from each: the function of a plain
    forward, up to the order of floating-point sums.
    """
    start = shared_prefix(batch) if len(batch.input_ids) > 1 else 0
    recomputes = getattr(decoder, "gradient_checkpointing", False) and decoder.training
    if start >= WORTH_SHARING and not recomputes:
        prefix = decoder(input_ids=batch.input_ids[:1, :start], use_cache=True)
        cache = getattr(prefix, "past_key_values", None)
        if _repeatable(cache, start):
            cache.batch_repeat_interleave(len(batch.input_ids))
            rest = batch.input_ids[:, start:]
            out = decoder(
                input_ids=rest, attention_mask=batch.attention_mask, past_key_values=cache, use_cache=True
            )
            return out[0], start
    return decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)[0], 0


def _repeatable(cache: Any, length: int) -> TypeGuard[DynamicCache]:
    """Whether ``cache`` is keys and values of ``length`` tokens and nothing else: recurrent and hybrid models keep
    states that cannot be repeated for more rows. They get the plain forward."""
    return (
        type(cache) is DynamicCache
        and bool(cache.layers)
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and cache.get_seq_length() == length
    )


# A second forward has costs of its own.
WORTH_SHARING = 8


def answer_logprobs(model: PreTrainedModel | PeftModel, batch: Batch) -> AnswerLogprobs:
    """Teacher-forced log-probability of each answer token of ``batch`` under ``model`` as it stands."""
    hidden, targets, head = answer_hidden(model, batch)
    return unflatten(token_logprobs(head(hidden), targets), batch.answer_mask.sum(-1))


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(``logits`` [N, V])[``targets`` [N]] in float32, [N]."""
    logits = logits.float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - torch.logsumexp(logits, -1)


def unflatten(flat: Tensor, lengths: Tensor) -> AnswerLogprobs:
    """Rows of ``lengths`` [B] taken from ``flat`` [N] in order, padded to [B, A]."""
    mask = torch.arange(int(lengths.max()), device=flat.device)[None] < lengths[:, None]
    padded = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device)
    return AnswerLogprobs(padded.masked_scatter(mask, flat), mask)
