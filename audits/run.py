"""Measure a model as it stands: one teacher-forced pass and one greedy answer per row serve every metric."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..adapters.encode import Encoded, Item, collate, encode_all, eos_id, pad_id
from ..adapters.errors import is_out_of_memory
from ..adapters.generate import greedy
from ..adapters.logprobs import answer_hidden, token_logprobs
from ..adapters.lora import disabled
from ..adapters.truncate import Truncation
from .errors import AuditError, OutOfMemory
from .metrics import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    mentions,
    ngram_entropy,
    perplexity,
    rouge_l_recall,
)
from .types import Evaluation, Group, RowScore


@dataclass(frozen=True, slots=True)
class Probe:
    """One row to measure: which request it speaks for (None: all of them) and in which role."""

    item: Item
    group: Group
    request: str | None = None


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
    """A teacher-forced row: log-probability of each answer token and whether the argmax was that token."""

    logps: np.ndarray
    hits: np.ndarray


Model = PreTrainedModel | PeftModel
OnRows = Callable[[int], None]


def evaluate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Probe],
    *,
    label: str,
    composition: str,
    precision: str,
    active: Sequence[str] | None = None,
    method: Method | None = None,
    answers: Sequence[tuple[int, ...]] | None = None,
    on_rows: OnRows = lambda _rows: None,
) -> Evaluation:
    """Measure ``model`` with its adapters as they are on every probe, in the order given.

    ``active`` are the requests that the composition suppresses. ``answers`` are greedy answers that this very
    model gave already (token ids, one per probe); without them they are generated, and ``on_rows(n)`` is
    called as rows are answered. Perplexity of the answers is judged by the base alone, adapters disabled.
    Deterministic on CPU. Raises :class:`AuditError` for no probes and for log-probabilities that are not
    finite, naming the row; :class:`ModelError` naming every row longer than ``method.max_length`` that
    ``method.truncation`` may not cut.
    """
    method = method or Method()
    if not probes:
        raise AuditError("nothing to measure: expected at least one row")
    started = time.monotonic()
    items = [probe.item for probe in probes]
    encoded = encode_all(
        tokenizer, items, chat=method.chat, max_length=method.max_length, truncation=method.truncation
    )
    asked = [question_ids(row) for row in encoded]
    if answers is None:
        answers = answer_rows(model, tokenizer, asked, method, on_rows)
    if len(answers) != len(probes):
        raise AuditError(f"expected one answer per row, got {len(answers)} answers for {len(probes)} rows")
    scores = teacher_forced(model, tokenizer, encoded, method)
    with disabled(model):
        judged = _judge(model, tokenizer, asked, answers, method)
    said = [str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip() for answer in answers]
    rows = tuple(map(_row, probes, scores, said, judged))
    seconds = time.monotonic() - started
    requests = None if active is None else tuple(active)
    return Evaluation(label, composition, precision, 0, rows, seconds, requests)


def question_ids(row: Encoded) -> tuple[int, ...]:
    """What the model is given to answer: the prompt, or the first half of a document that has none (as in
    MUSE's verbatim memorization, arXiv 2407.06460).
    """
    return row.prompt + row.answer[: len(row.answer) // 2] if row.document else row.prompt


def answer_rows(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    method: Method,
    on_rows: OnRows = lambda _rows: None,
) -> list[tuple[int, ...]]:
    """Greedy answers of ``model`` to each prompt, token ids. Raises `OutOfMemory`."""
    with _memory_named("generate_batch", method.generate_batch):
        return greedy(
            model,
            tokenizer,
            prompts,
            max_new_tokens=method.max_new_tokens,
            batch_size=method.generate_batch,
            on_batch=on_rows,
        )


@torch.no_grad()
def teacher_forced(
    model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], method: Method
) -> list[Scored]:
    """One forward per row, batched by length; results in the order of ``rows``.

    Raises `AuditError` for log-probabilities that are not finite, naming the row, and `OutOfMemory`.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].answer))
    found: dict[int, Scored] = {}
    for start in range(0, len(order), method.score_batch):
        picked = order[start : start + method.score_batch]
        batch = collate([rows[i] for i in picked], pad_id(tokenizer)).to(model.device)
        with _memory_named("score_batch", method.score_batch):
            hidden, targets, head = answer_hidden(model, batch)
            logits = head(hidden)
            logps, hits = token_logprobs(logits, targets).cpu(), (logits.argmax(-1) == targets).cpu()
        ends = np.cumsum([len(rows[i].answer) for i in picked]).tolist()
        for i, begin, end in zip(picked, [0, *ends], ends, strict=False):
            found[i] = Scored(logps[begin:end].numpy(), hits[begin:end].numpy())
    for i, row in enumerate(rows):
        if not np.isfinite(found[i].logps).all():
            raise AuditError(f"row {row.id!r} has log-probabilities that are not finite: the model is broken")
    return [found[i] for i in range(len(rows))]


@contextmanager
def _memory_named(setting: str, rows: int) -> Generator[None]:
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


def _judge(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[int, ...]],
    answers: Sequence[tuple[int, ...]],
    method: Method,
) -> list[float]:
    """Perplexity of each answer, its end included where the model chose to end (an empty answer is an end)."""
    eos = eos_id(tokenizer)
    end = () if eos is None else (eos,)
    rows = [
        Encoded(f"answer {i}", prompt, answer + (end if len(answer) < method.max_new_tokens else ()))
        for i, (prompt, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    return [perplexity(score.logps) for score in teacher_forced(model, tokenizer, rows, method)]


def _row(probe: Probe, score: Scored, answer: str, judged: float) -> RowScore:
    item = probe.item
    return RowScore(
        id=item.id,
        request=probe.request,
        group=probe.group,
        n_tokens=len(score.logps),
        probability=answer_probability(score.logps),
        extraction_strength=extraction_strength(score.hits),
        exact_memorization=exact_memorization(score.hits),
        rouge_l=rouge_l_recall(item.completion, answer),
        mentioned=mentions(item.keywords, answer) if item.keywords else None,
        fluency=ngram_entropy(answer),
        perplexity=judged,
        prompt=item.text,
        reference=item.completion,
        answer=answer,
    )
