"""TOFU's figures (arXiv 2401.06121) as a part of a suite: truth ratio, forget quality, model utility."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..adapters import Base, Item, encode_all
from ..audits import (
    answer_probability,
    choice_probabilities,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    retain_truth_ratio,
    rouge_l_recall,
    truth_ratios,
)
from ..audits.forced import teacher_forced
from .bench import Bench, ask
from .data import Row
from .parts import Figures, Model, NothingToMeasure, Seen


def tofu(seen: Seen, reference: Base | None) -> Figures:
    """Truth ratio and forget quality of the active requests; utility where all three kinds of kept rows are there."""
    if reference is None:
        raise NothingToMeasure("no reference model")
    rows = [row for name in seen.after.active or seen.requests for row in seen.requests[name].forget]
    found: Figures = {}
    expected = _ratios(reference.model, seen.bench, rows)
    for which in ("before", "after"):
        with seen.side(which) as (bench, model, _):
            ratios = _ratios(model, bench, rows)
        found[f"tofu/forget_truth_ratio/{which}"] = forget_truth_ratio(ratios)
        quality = forget_quality(ratios, expected, seed=seen.seed)
        found |= {
            f"tofu/forget_quality_p/{which}": quality.p_value,
            f"tofu/forget_quality_ks/{which}": quality.statistic,
            f"tofu/forget_quality_ks_low/{which}": quality.low,
            f"tofu/forget_quality_ks_high/{which}": quality.high,
        }
    found["tofu/forget_truth_ratio/reference"] = forget_truth_ratio(expected)
    return found | _utility(seen)


def _utility(seen: Seen) -> Figures:
    """Model utility, where there is everything that it is made of."""
    groups = {
        "retain": [row for data in seen.requests.values() for row in data.retain if row.perturbed],
        "real-authors": list(seen.sources.real_authors),
        "world-facts": list(seen.sources.world_facts),
    }
    if lacking := [name for name, rows in groups.items() if not rows]:
        seen.notes["tofu/model_utility"] = (
            f"no {' and no '.join(lacking)} rows with wrong answers: it is made of all three kinds of kept rows"
        )
        return {}
    found: Figures = {}
    for which in ("before", "after"):
        nine: list[float] = []
        with seen.side(which) as (bench, model, composition):
            for name, rows in groups.items():
                three = _kept(
                    bench,
                    model,
                    rows,
                    ask(bench, model, composition, _prompts(bench, rows), seen.progress),
                    choice=name != "retain",
                )
                found |= {f"tofu/{name}/{key}/{which}": value for key, value in three.items()}
                nine += three.values()
        found[f"tofu/model_utility/{which}"] = model_utility(nine)
    return found


def _kept(
    bench: Bench, model: Model, rows: Sequence[Row], answers: Sequence[tuple[int, ...]], *, choice: bool
) -> Figures:
    """TOFU's three; ``choice``: the probability against the wrong answers, for facts that nobody was trained on."""
    correct, wrong = _scores(model, bench, rows)
    texts = [row.completion or "" for row in rows]
    plain = _means(model, bench, [(row, text) for row, text in zip(rows, texts, strict=True)])
    said = [str(bench.base.tokenizer.decode(list(a), skip_special_tokens=True)) for a in answers]
    each = choice_probabilities(correct, wrong) if choice else [answer_probability([one]) for one in plain]
    return {
        "probability": float(np.mean(each)),
        "rouge_l": float(np.mean([rouge_l_recall(t, s) for t, s in zip(texts, said, strict=True)])),
        "truth_ratio": retain_truth_ratio(truth_ratios(correct, wrong)),
    }


def _ratios(model: Model, bench: Bench, rows: Sequence[Row]) -> np.ndarray:
    return truth_ratios(*_scores(model, bench, rows))


def _scores(model: Model, bench: Bench, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Mean log-probability of each row's right answer (in other words, where it has some) and of its wrong ones."""
    k = min(len(row.perturbed) for row in rows)
    texts = [((row.paraphrased_answer or (row.completion or "",))[0], *row.perturbed[:k]) for row in rows]
    flat = _means(model, bench, [(row, text) for row, some in zip(rows, texts, strict=True) for text in some])
    table = np.minimum(0.0, np.asarray(flat)).reshape(len(rows), k + 1)
    return table[:, 0], table[:, 1:]


def _means(model: Model, bench: Bench, pairs: Sequence[tuple[Row, str]]) -> list[float]:
    items = [Item(f"{row.id}/{i}", row.item("?").prompt, text) for i, (row, text) in enumerate(pairs)]
    method = bench.method
    rows = encode_all(
        bench.base.tokenizer,
        items,
        chat=method.chat,
        end=True,
        max_length=method.max_length,
        truncation=method.truncation,
    )
    return [float(np.mean(s.logps)) for s in teacher_forced(model, bench.base.tokenizer, rows, method)]


def _prompts(bench: Bench, rows: Sequence[Row]) -> list[tuple[int, ...]]:
    method = bench.method
    items = [row.item(row.completion or "?") for row in rows]
    found = encode_all(
        bench.base.tokenizer,
        items,
        chat=method.chat,
        max_length=method.max_length,
        truncation=method.truncation,
    )
    return [row.prompt for row in found]
