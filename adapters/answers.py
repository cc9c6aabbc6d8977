"""One forward over rows of several roles, as the tensors that the objectives name."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from .encode import Encoded, collate
from .logprobs import (
    AnswerLogprobs,
    Head,
    answer_hidden,
    hidden_logprobs,
    token_logprobs,
    unflatten,
)
from .objectives import layer_module


@dataclass(frozen=True)
class Answers:
    """Rows under a model. ``hidden`` [N, H] are the last hidden states that predict the N counted answer tokens,
    ``targets`` int64 [N] those tokens, ``lengths`` int64 [B] how many of them are each row's.

    ``layer`` [N, H]: the outputs of one decoder layer at the same positions; empty if none was asked for.
    """

    hidden: Tensor
    targets: Tensor
    lengths: Tensor
    head: Head
    layer: Tensor

    @cached_property
    def logits(self) -> Tensor:
        """[N, V], in the head's dtype."""
        return self.head(self.hidden)

    @cached_property
    def logps(self) -> AnswerLogprobs:
        """Log-probabilities of the answer tokens, by row; without keeping logits that nobody else asked for."""
        if "logits" in self.__dict__:
            return unflatten(token_logprobs(self.logits, self.targets), self.lengths)
        return unflatten(hidden_logprobs(self.hidden, self.head, self.targets), self.lengths)

    def rows(self, start: int, end: int) -> Answers:
        """Rows ``start`` to ``end`` alone."""
        a, b = int(self.lengths[:start].sum()), int(self.lengths[:end].sum())
        return Answers(
            self.hidden[a:b], self.targets[a:b], self.lengths[start:end], self.head, self.layer[a:b]
        )

    def probability(self) -> float:
        """exp(mean answer log-probability), averaged over rows; without gradient."""
        with torch.no_grad():
            return float((self.logps.sums / self.lengths).exp().mean())


def answers(model: PeftModel, rows: Sequence[Encoded], pad_id: int, *, layer: int | None = None) -> Answers:
    """One forward of ``model`` as it stands over ``rows``."""
    batch = collate(rows, pad_id).to(model.device)
    with _listening(model, layer) as heard:
        hidden, targets, head = answer_hidden(model, batch, pack=layer is None)
    lengths = batch.answer_mask.sum(-1)
    if layer is None:
        return Answers(hidden, targets, lengths, head, hidden.new_empty(0))
    # The last call is the one with the answers: a shared prefix is run before it, and left out of it.
    output, predicted = heard[-1], batch.answer_mask[:, 1:]
    start = batch.input_ids.shape[1] - output.shape[1]
    return Answers(hidden, targets, lengths, head, output[:, :-1][predicted[:, start:]])


@contextmanager
def _listening(model: PeftModel, layer: int | None) -> Generator[list[Tensor]]:
    """The outputs of decoder layer ``layer``, forward by forward."""
    heard: list[Tensor] = []
    if layer is None:
        yield heard
        return

    def hear(_module: Any, _inputs: Any, output: Any) -> None:
        heard.append(output if isinstance(output, Tensor) else output[0])

    hook: Any = layer_module(model, layer).register_forward_hook(hear)
    try:
        yield heard
    finally:
        hook.remove()
