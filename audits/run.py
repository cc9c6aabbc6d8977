"""Measure a model as it stands: one teacher-forced pass and one greedy answer per row serve every metric."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..adapters.encode import Encoded, Item, encode_all, eos_id
from ..adapters.generate import greedy
from ..adapters.lora import disabled
from .errors import AuditError, MetricError
from .forced import Method, Model, Scored, memory_named, teacher_forced
from .membership import loss_score, min_k_plus_plus_score, min_k_score, zlib_score
from .metrics import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    mentions,
    ngram_entropy,
    perplexity,
    rouge_l_recall,
)
from .types import Evaluation, Group, Membership, RowScore


@dataclass(frozen=True, slots=True)
class Probe:
    """One row to measure: which request it speaks for (None: all of them) and in which role."""

    item: Item
    group: Group
    request: str | None = None


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
    scores: Sequence[Scored] | None = None,
    on_rows: OnRows = lambda _rows: None,
) -> Evaluation:
    """Measure ``model`` with its adapters as they are on every probe, in the order given.

    ``active`` are the requests that the composition suppresses. ``answers`` are greedy answers that this very
    model gave already (token ids, one per probe); without them they are generated, and ``on_rows(n)`` is
    called as rows are answered. ``scores`` are what `teacher_forced` or `paired` gave for these very rows already.
    Perplexity of the answers is judged by the base alone, adapters disabled. Deterministic on CPU.

    Raises :class:`AuditError` for no probes, for a row given twice and for log-probabilities that are not finite,
    naming the row; :class:`ModelError` naming every row longer than ``method.max_length`` that
    ``method.truncation`` may not cut.
    """
    method = method or Method()
    if not probes:
        raise AuditError("nothing to measure: expected at least one row")
    _require_distinct(probes)
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
    if scores is None:
        scores = teacher_forced(model, tokenizer, encoded, method)
    if [len(score.logps) for score in scores] != [len(row.answer) for row in encoded]:
        raise AuditError("expected scores of these rows in this order, got others: measure them again")
    texts = [str(tokenizer.decode(list(row.answer), skip_special_tokens=True)) for row in encoded]
    with disabled(model):
        judged = _judge(model, tokenizer, asked, answers, method)
    said = [str(tokenizer.decode(list(answer), skip_special_tokens=True)).strip() for answer in answers]
    rows = tuple(map(_row, probes, scores, texts, said, judged))
    seconds = time.monotonic() - started
    requests = None if active is None else tuple(active)
    return Evaluation(label, composition, precision, 0, rows, seconds, requests)


def _require_distinct(probes: Sequence[Probe]) -> None:
    """Before anything is measured: an evaluation with a row twice would be refused at the end."""
    counted = Counter((probe.request, probe.group, probe.item.id) for probe in probes)
    twice = [key for key, count in counted.items() if count > 1]
    if twice:
        raise AuditError(
            f"expected distinct rows, got {len(twice)} more than once, {twice[0]} first: drop them or give them ids"
        )


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
    with memory_named("generate_batch", method.generate_batch):
        return greedy(
            model,
            tokenizer,
            prompts,
            max_new_tokens=method.max_new_tokens,
            batch_size=method.generate_batch,
            on_batch=on_rows,
        )


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


def _row(probe: Probe, score: Scored, text: str, answer: str, judged: float) -> RowScore:
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
        membership=_membership(probe, score, text),
    )


def _membership(probe: Probe, score: Scored, text: str) -> Membership:
    try:
        return membership_of(score, text)
    except MetricError as error:  # an answer of special tokens alone, say
        raise AuditError(f"row {probe.item.id!r} cannot be scored: {error}") from error


def membership_of(score: Scored, text: str) -> Membership:
    """The membership scores of a row; ``text``: the answer's tokens as they were scored (a cut row has fewer)."""
    return Membership(
        loss=loss_score(score.logps),
        zlib=zlib_score(score.logps, text),
        min_k=min_k_score(score.logps),
        min_k_plus_plus=min_k_plus_plus_score(score.logps, score.means, score.variances),
    )
