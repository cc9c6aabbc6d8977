"""What is measured of a model: one teacher-forced pass and one greedy answer per question serve every figure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from efface.adapters import Encoded, encode, load_base
from efface.adapters.encode import eos_id
from efface.audits import (
    Method,
    answer_probability,
    answer_rows,
    exact_memorization,
    extraction_strength,
    is_gibberish,
    ngram_entropy,
    perplexity,
    rouge_l_recall,
)
from efface.audits.run import Scored, teacher_forced
from efface.audits.truth import (
    choice_probabilities,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    retain_truth_ratio,
    truth_ratios,
)

from .data import Row, Split

Model = PreTrainedModel | PeftModel

METHOD = Method(chat=True, max_new_tokens=48, generate_batch=128, score_batch=16)


@dataclass(frozen=True, slots=True)
class Answered:
    """One question under one model: its answer scored, the scores of a truth ratio, what it says."""

    row: Row
    answer: Scored
    correct: float
    wrong: tuple[float, ...]
    said: str


def evaluate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    *,
    judge: Path,
    reference: Sequence[float] | None,
) -> dict[str, Any]:
    """Every figure of ``model``, as JSON. ``judge``: the original model, to which the forget answers must read as
    language. ``reference``: the retain-only model's forget truth ratios; None means that this is that model."""
    started = time.monotonic()
    groups = {
        "forget": split.forget,
        "retain": split.retain_seen,
        "authors": split.authors,
        "world": split.world,
    }
    rows = [row for group in groups.values() for row in group]
    scored = {row.id: score(model, tokenizer, row) for row in rows}
    forced = time.monotonic()
    prompts = [encode(tokenizer, row.item(), chat=True).prompt for row in rows]
    ids = dict(zip((row.id for row in rows), answer_rows(model, tokenizer, prompts, METHOD), strict=True))
    said = {name: str(tokenizer.decode(list(a), skip_special_tokens=True)).strip() for name, a in ids.items()}
    generated = time.monotonic()
    found = {
        name: [Answered(row, *scored[row.id], said[row.id]) for row in group]
        for name, group in groups.items()
    }
    ratios = _ratios(found["forget"])
    oddness = _perplexities(judge, [(p, ids[r.id]) for p, r in zip(prompts, split.forget, strict=False)])
    figures = {
        "forget": _forget(found["forget"], ratios, reference, oddness),
        "retain": kept(found["retain"], choice=False),
        "authors": kept(found["authors"], choice=True),
        "world": kept(found["world"], choice=True),
    }
    nine = [
        figures[name][key]
        for name in ("retain", "authors", "world")
        for key in ("probability", "rouge_l", "truth_ratio")
    ]
    return {
        **figures,
        "utility": model_utility(nine),
        "truth_ratios": ratios.tolist(),
        "answers": {row.id: said[row.id] for row in split.forget},
        "seconds": {
            "teacher_forced": forced - started,
            "greedy": generated - forced,
            "rest": time.monotonic() - generated,
        },
    }


def score(
    model: Model, tokenizer: PreTrainedTokenizerBase, row: Row
) -> tuple[Scored, float, tuple[float, ...]]:
    """The answer of ``row``, and the mean log-probabilities of its paraphrase and its wrong answers.

    All of them together: they share the question, which then goes through the model once.
    """
    texts = list(dict.fromkeys([row.answer, row.paraphrase, *row.wrong]))
    rows = [encode(tokenizer, row.item(text), chat=True, end=True) for text in texts]
    scored = dict(zip(texts, teacher_forced(model, tokenizer, rows, METHOD), strict=True))
    means = {text: min(0.0, float(np.mean(found.logps))) for text, found in scored.items()}
    return scored[row.answer], means[row.paraphrase], tuple(means[text] for text in row.wrong)


def quick(model: Model, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> dict[str, float]:
    """The teacher-forced figures of the answers alone: what `tune` ranks by, and how memorising is checked."""
    encoded = [encode(tokenizer, row.item(), chat=True, end=True) for row in rows]
    scored = teacher_forced(model, tokenizer, encoded, METHOD)
    return {
        "probability": _mean(answer_probability(s.logps) for s in scored),
        "extraction_strength": _mean(extraction_strength(s.hits) for s in scored),
    }


def _forget(
    found: Sequence[Answered], ratios: np.ndarray, reference: Sequence[float] | None, oddness: Sequence[float]
) -> dict[str, Any]:
    pairs = list(zip(found, oddness, strict=True))
    return {
        "n": len(found),
        "probability": _mean(answer_probability(a.answer.logps) for a in found),
        "extraction_strength": _mean(extraction_strength(a.answer.hits) for a in found),
        "exact_memorization": _mean(exact_memorization(a.answer.hits) for a in found),
        "rouge_l": _mean(rouge_l_recall(a.row.answer, a.said) for a in found),
        "truth_ratio": forget_truth_ratio(ratios),
        "quality": asdict(forget_quality(ratios, ratios if reference is None else reference)),
        "fluency": _mean(ngram_entropy(a.said) for a in found),
        "perplexity": float(np.median(oddness)),
        "gibberish": _mean(float(is_gibberish(a.said, odd)) for a, odd in pairs),
    }


def kept(found: Sequence[Answered], *, choice: bool) -> dict[str, Any]:
    """TOFU's three figures; ``choice``: the probability against the wrong answers, as TOFU has it for facts that
    were not trained on."""
    correct, wrong = _score_arrays(found)
    plain = [answer_probability(a.answer.logps) for a in found]
    return {
        "n": len(found),
        "probability": float(choice_probabilities(correct, wrong).mean()) if choice else _mean(plain),
        "rouge_l": _mean(rouge_l_recall(a.row.answer, a.said) for a in found),
        "truth_ratio": retain_truth_ratio(truth_ratios(correct, wrong)),
    }


def _perplexities(judge: Path, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """How odd the original model finds each (prompt, answer); loaded for this and let go."""
    base = load_base(judge, "bf16")
    eos = eos_id(base.tokenizer)
    end = () if eos is None else (eos,)
    rows = [
        Encoded(
            f"answer {i}", tuple(prompt), (*answer, *(end if len(answer) < METHOD.max_new_tokens else ()))
        )
        for i, (prompt, answer) in enumerate(pairs)
    ]
    return [perplexity(found.logps) for found in teacher_forced(base.model, base.tokenizer, rows, METHOD)]


def _ratios(found: Sequence[Answered]) -> np.ndarray:
    return truth_ratios(*_score_arrays(found))


def _score_arrays(found: Sequence[Answered]) -> tuple[list[float], list[tuple[float, ...]]]:
    return [a.correct for a in found], [a.wrong for a in found]


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
