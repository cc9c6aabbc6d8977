"""Teacher-forced passes: one forward of a row under a model serves every figure that is not about what it says.

`teacher_forced` reads one model, `paired` two at the same positions. Logits exist for 256 answer tokens at a time
and are never kept: what the metrics need of them is a few numbers a token.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..adapters.encode import Batch, Encoded, collate, pad_id
from ..adapters.errors import is_out_of_memory
from ..adapters.logprobs import Head, answer_hidden
from ..adapters.lora import disabled
from ..adapters.model import Base
from ..adapters.truncate import Truncation
from .drift import token_kl
from .errors import AuditError, MissingReference, OutOfMemory
from .metrics import BoolArray

Model = PreTrainedModel | PeftModel
Figures = npt.NDArray[np.float32]
# Tokens whose logits are there at a time (bf16, a vocabulary of 49k: 25 MB), and whose float32 copies are: what
# lies in a processor's cache is read six times at the price of two.
_TOKENS, _CACHED = 256, 32


@dataclass(frozen=True, slots=True)
class Method:
    """How rows are measured; two evaluations compare only when their methods agree."""

    chat: bool = True
    max_new_tokens: int = 32
    max_length: int = 512
    truncation: Truncation = "error"
    generate_batch: int = 128
    score_batch: int = 32


@dataclass(frozen=True, slots=True)
class Scored:
    """A teacher-forced row: four figures of each of its T counted answer tokens, shape (T,).

    ``logps``: log-probability of the token; ``hits``: whether it was the argmax; ``means``, ``variances``: of the
    log-probability of a token drawn from the model's own distribution there (for Min-K%++). Nats, float32.
    """

    logps: Figures
    hits: BoolArray
    means: Figures
    variances: Figures


@dataclass(frozen=True, slots=True)
class Paired:
    """A row under two models: ``before`` (the reference), ``after`` (the model), and KL(before || after) of each
    of its T answer positions in nats, shape (T,)."""

    before: Scored
    after: Scored
    kl: Figures


@torch.no_grad()
def teacher_forced(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], method: Method
) -> list[Scored]:
    """One forward per row, batched by length; results in the order of ``rows``.

    Raises `AuditError` for figures that are not finite, naming the row, and `OutOfMemory`.
    """

    def measure(batch: Batch, _rows: Sequence[Encoded]) -> list[Tensor]:
        hidden, targets, head = answer_hidden(model, batch)
        parts = [_figures(head(h), y) for h, y in _parts(hidden, targets)]
        return [torch.cat(column).cpu() for column in zip(*parts, strict=True)]

    return [_scored(columns) for columns in by_length(tokenizer, rows, method, model.device, measure)]


@torch.no_grad()
def paired(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    method: Method,
    *,
    reference: Base | None = None,
) -> list[Paired]:
    """One forward per row and model; results in the order of ``rows``.

    ``reference`` (None: the base of ``model``, its adapters disabled) is compared with at the same positions. Both
    halves are what `teacher_forced` gives for either model alone, so that no row is ever run twice.

    Raises `MissingReference` for a model without adapters and no ``reference``, `AuditError` for a reference
    with another tokenizer and for figures that are not finite, naming the row, and `OutOfMemory`.
    """
    other, without = _reference(model, tokenizer, reference)

    def measure(batch: Batch, _rows: Sequence[Encoded]) -> list[Tensor]:
        after, targets, head = answer_hidden(model, batch)
        with without():
            before, _, judge = answer_hidden(other, batch)
        parts = [
            _two_figures(head, h, judge, b, y, without)
            for h, b, y in zip(*(t.split(_TOKENS) for t in (after, before, targets)), strict=True)
        ]
        return [torch.cat(column).cpu() for column in zip(*parts, strict=True)]

    found = by_length(tokenizer, rows, method, model.device, measure)
    return [Paired(_scored(c[:4]), _scored(c[4:8]), c[8].numpy()) for c in found]


def _reference(
    model: Model, tokenizer: PreTrainedTokenizerBase, reference: Base | None
) -> tuple[Model, Callable[[], AbstractContextManager[None]]]:
    if reference is None:
        if not isinstance(model, PeftModel):
            raise MissingReference(
                "expected a reference model to compare with: this model has no adapter that could be switched off. "
                "Give what it was before, reference=load_base(FOLDER, PRECISION)"
            )
        return model, lambda: disabled(model)
    require_tokenizer(tokenizer, reference.tokenizer)
    return reference.model, nullcontext


def require_tokenizer(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> None:
    """Raise `AuditError` unless both have one vocabulary: their tokens are compared one by one."""
    if other.get_vocab() != tokenizer.get_vocab():
        raise AuditError(
            "expected a reference with the tokenizer of the model that is audited, got another vocabulary: their "
            "tokens cannot be compared one by one. Take a reference of the same family"
        )


def _figures(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Of logits [N, V]: log-probability of ``targets`` [N], hits, mean and variance of log-probabilities."""
    parts = zip(logits.split(_CACHED), targets.split(_CACHED), strict=True)
    return tuple(torch.cat(column) for column in zip(*(_few_figures(*part) for part in parts), strict=True))


def _few_figures(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    z = logits.float()
    normaliser = z.logsumexp(-1)
    logps = z.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    # A token of probability 0 adds nothing to a moment, though its logarithm is -inf: 0 * -1e4 is 0. NaN stays.
    every = (z - normaliser[:, None]).clamp_min_(-1e4)
    share = every.exp()
    means = torch.linalg.vecdot(share, every)
    variances = torch.linalg.vecdot(share, every.sub_(means[:, None]).square_())
    return logps, logits.argmax(-1) == targets, means, variances


def _two_figures(
    head: Head,
    after: Tensor,
    judge: Head,
    before: Tensor,
    targets: Tensor,
    without: Callable[[], AbstractContextManager[None]],
) -> tuple[Tensor, ...]:
    new = head(after)
    with without():
        old = judge(before)
    pairs = zip(old.split(_CACHED), new.split(_CACHED), strict=True)
    kl = torch.cat([token_kl(*pair) for pair in pairs])
    return *_figures(old, targets), *_figures(new, targets), kl


def _parts(hidden: Tensor, targets: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(_TOKENS), targets.split(_TOKENS), strict=True))


def _scored(columns: Sequence[Tensor]) -> Scored:
    logps, hits, means, variances = (column.numpy() for column in columns)
    return Scored(logps, hits, means, variances)


def by_length(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    method: Method,
    device: torch.device,
    measure: Callable[[Batch, Sequence[Encoded]], list[Tensor]],
) -> list[list[Tensor]]:
    """``measure`` over batches of rows of like length; its columns, a figure for each counted answer token of the
    batch, cut into rows, in their order.

    Raises `AuditError` for figures that are not finite, naming the row, and `OutOfMemory`.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    found: dict[int, list[Tensor]] = {}
    for start in range(0, len(order), method.score_batch):
        picked = order[start : start + method.score_batch]
        some = [rows[i] for i in picked]
        batch = collate(some, pad_id(tokenizer)).to(device)
        with memory_named("score_batch", method.score_batch):
            columns = measure(batch, some)
        counts = batch.answer_mask.sum(-1).tolist()
        for i, *cut in zip(picked, *(column.split(counts) for column in columns), strict=True):
            found[i] = cut
    for i, row in enumerate(rows):
        if not all(torch.isfinite(column).all() for column in found[i]):
            raise AuditError(f"row {row.id!r} has log-probabilities that are not finite: the model is broken")
    return [found[i] for i in range(len(rows))]


@contextmanager
def memory_named(setting: str, rows: int) -> Generator[None]:
    """Too little memory is the user's to put right: say with what."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory measuring up to {rows} rows at once: lower max_length or max_new_tokens, take quantization "
            f"nf4, or a Method with a smaller {setting} ({(str(error).splitlines() or ['no memory left'])[0]})"
        ) from error
