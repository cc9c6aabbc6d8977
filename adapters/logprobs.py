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
from .packed import can_pack, decode

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


def answer_hidden(
    model: PreTrainedModel | PeftModel, batch: Batch, *, pack: bool = True
) -> tuple[Tensor, Tensor, Head]:
    """One forward through the decoder: hidden states [N, H] that predict the N answer tokens, their ids [N],
    and the output head that turns hidden states into logits.

    Tokens that all rows begin with go through the decoder once (see :func:`shared_prefix`), and padding not at
    all where `packed` knows the model; ``pack=False`` keeps [B, T, H] inside it, for hooks on its layers.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder, head = causal.get_decoder(), causal.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError(f"{type(causal).__name__} has no output head: expected a causal language model")
    hidden, start = _decode(decoder, batch, pack)
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


def _decode(decoder: Any, batch: Batch, pack: bool) -> tuple[Tensor, int]:
    """Last hidden states [B, T - start, H], and ``start``: the length of the prefix they leave out.

    The shared prefix is run once for all rows, and gradients come back to it from each: the function of a plain
    forward, up to the order of floating-point sums.
    """
    start = shared_prefix(batch) if len(batch.input_ids) > 1 else 0
    if pack and can_pack(decoder):
        start = start if start >= WORTH_SHARING else 0
        return decode(decoder, batch, start), start
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


def hidden_logprobs(hidden: Tensor, head: Any, targets: Tensor) -> Tensor:
    """:func:`token_logprobs` of ``head(hidden)``, hidden states [N, H], without keeping logits [N, V].

    For a head that is a frozen linear layer the derivative by each hidden state is one vector, found in the same
    pass; anything else takes the plain way.
    """
    bias: Any = getattr(head, "bias", None)
    if type(head) is not torch.nn.Linear or bias is not None or head.weight.requires_grad:
        return token_logprobs(head(hidden), targets)
    return _HiddenLogprobs.apply(hidden, head.weight, targets)


class _HiddenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        found, slopes = torch.empty(len(hidden), device=hidden.device), torch.empty_like(hidden)
        for i in range(0, len(hidden), 128):
            part = slice(i, i + 128)
            z, y = (hidden[part] @ weight.t()).float(), targets[part, None]
            normaliser = z.logsumexp(-1, keepdim=True)
            found[part] = (z.gather(-1, y) - normaliser).squeeze(-1)
            if ctx.needs_input_grad[0]:
                p = z.sub_(normaliser).exp_().to(hidden.dtype)
                slopes[part] = weight[targets[part]] - p @ weight
        ctx.save_for_backward(slopes)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        return (grad[:, None] * slopes).to(slopes.dtype), None, None
