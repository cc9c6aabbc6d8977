"""Log-probabilities of answer tokens, computed at answer positions only.

With a 49k-token vocabulary the output matrix costs more than a layer; prompts and padding never reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

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
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder, head = causal.get_decoder(), causal.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ModelError(f"{type(causal).__name__} has no output head: expected a causal language model")
    hidden = decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)[0]
    targets = batch.answer_mask[:, 1:]
    return hidden[:, :-1][targets], batch.input_ids[:, 1:][targets], head


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
