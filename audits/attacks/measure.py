"""What an attacker's model gives away: figures of rows, and the result of an attack in words."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ...adapters.encode import Encoded, Item, encode_all
from ...adapters.errors import is_out_of_memory
from ..attack import AttackKind, AttackResult, Point, Setting
from ..errors import AttackError, OutOfMemory
from ..metrics import (
    answer_probability,
    bootstrap_ci,
    exact_memorization,
    extraction_strength,
    mentions,
    rouge_l_recall,
)
from ..names import metric_name
from ..run import Method, Model, Probe, answer_rows, question_ids, teacher_forced
from ..types import RowScore
from .target import Target, items, scores

Forced = Literal["probability", "extraction_strength", "exact_memorization"]
Told = Literal["mention_rate", "rouge_l"]
Figure = Literal["probability", "extraction_strength", "exact_memorization", "mention_rate", "rouge_l"]


class Watcher(Protocol):
    """Who is told how far an attack is; `efface.recipes.progress.Progress` is one."""

    def phase(self, title: str, total: int | None = None) -> None:
        """A new phase begins, of ``total`` units."""
        ...

    def advance(self, amount: int = 1, note: str = "") -> None:
        """``amount`` more units are done."""
        ...


class Unwatched:
    """Nobody is told."""

    def phase(self, title: str, total: int | None = None) -> None:
        """Ignore the phase."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Ignore the step."""


def encoded(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Item], method: Method) -> list[Encoded]:
    """``rows`` as the audit measures them."""
    return list(
        encode_all(
            tokenizer, rows, chat=method.chat, max_length=method.max_length, truncation=method.truncation
        )
    )


def figures(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Item],
    metric: Figure,
    method: Method,
) -> list[float]:
    """``metric`` of each row under ``model`` as it stands; answers are generated only where it needs them."""
    require_keywords(rows, metric)
    ready = encoded(tokenizer, rows, method)
    if metric in ("mention_rate", "rouge_l"):
        said = answer_rows(model, tokenizer, [question_ids(row) for row in ready], method)
        texts = [text_of(tokenizer, ids) for ids in said]
        return [told(item, text, metric) for item, text in zip(rows, texts, strict=True)]
    forced = teacher_forced(model, tokenizer, ready, method)
    if metric == "probability":
        return [answer_probability(row.logps) for row in forced]
    one = extraction_strength if metric == "extraction_strength" else exact_memorization
    return [one(row.hits) for row in forced]


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Token ids of an answer as text."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def told(item: Item, answer: str, metric: str) -> float:
    """What ``answer`` gives away of ``item``: 1 where it names a keyword, or its ROUGE-L recall."""
    if metric == "mention_rate":
        return float(mentions(item.keywords, answer))
    return rouge_l_recall(item.completion, answer)


def figure_of(row: RowScore, metric: str) -> float:
    """``metric`` of a row that the audit measured."""
    if metric == "mention_rate":
        if row.mentioned is None:
            raise AttackError(f"row {row.id!r} has no keywords: expected some, or the metric rouge_l")
        return float(row.mentioned)
    return float(getattr(row, metric))


def told_by(rows: Sequence[Item]) -> Told:
    """How answers to ``rows`` are judged: by keywords where every row has some, else by ROUGE-L recall."""
    return "mention_rate" if all(row.keywords for row in rows) else "rouge_l"


def require_keywords(rows: Sequence[Item], metric: str) -> None:
    """Raise `AttackError` naming the rows that ``metric`` cannot judge."""
    lacking = [row.id for row in rows if not row.keywords]
    if metric == "mention_rate" and lacking:
        raise AttackError(
            f"expected keywords in every row, got none in {', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}: "
            "give them, or take the metric rouge_l"
        )


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return math.fsum(values) / len(values)


def by_request(target: Target, model: Model, metric: Figure) -> dict[str | None, list[float]]:
    """``metric`` of every forget row under ``model``, by request; all rows in one pass."""
    probes = [probe for some in target.requests.values() for probe in some]
    values = iter(figures(model, target.base.tokenizer, items(probes), metric, target.method))
    return {request: [next(values) for _ in some] for request, some in target.requests.items()}


def point(x: float, values: Sequence[float], label: str = "", seed: int = 0) -> Point:
    """A point of a curve: the mean of ``values`` and its bootstrap interval over rows."""
    low, high = bootstrap_ci(values, seed=seed)
    return Point(float(x), mean(values), low, high, label)


@dataclass(frozen=True, slots=True)
class Made:
    """An attack as it was made: its name, what it measures, what it did in words, and with which settings."""

    name: str
    kind: AttackKind
    metric: str
    did: str
    settings: Mapping[str, Setting]
    x_label: str = ""

    def found(
        self, target: Target, request: str | None, probes: Sequence[Probe], points: Sequence[Point]
    ) -> AttackResult:
        """Its record, held against what the audit measured of ``probes``; the worst of ``points`` counts."""
        known = mean([figure_of(row, self.metric) for row in scores(target.before, probes)])
        suppressed = mean([figure_of(row, self.metric) for row in scores(target.after, probes)])
        return self.against(known, suppressed, request, len(probes), points)

    def against(
        self,
        known: float,
        suppressed: float,
        request: str | None,
        n: int,
        points: Sequence[Point],
        words: str | None = None,
    ) -> AttackResult:
        """Its record, held against ``known`` and ``suppressed`` over the same ``n`` rows; ``words`` in place of the
        usual ones."""
        worst = max(points, key=lambda one: one.y)
        attacked = worst.y
        where = f", worst at {self.x_label} {worst.label or f'{worst.x:g}'}" if self.x_label else ""
        return AttackResult(
            name=self.name,
            kind=self.kind,
            request=request,
            metric=self.metric,
            known=known,
            suppressed=suppressed,
            attacked=attacked,
            n=n,
            finding=f"{self.did}: {words or in_words(self.metric, known, suppressed, attacked)} (n = {n}{where})",
            x_label=self.x_label,
            points=tuple(points) if self.x_label else (),
            settings={"metric": self.metric, **self.settings},
        )


@contextmanager
def memory_named(what: str, lower: str) -> Generator[None]:
    """Too little memory is the user's to put right: say with what. Raises `OutOfMemory`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or ["no memory left"])[0]
        raise OutOfMemory(f"out of memory {what}: take {lower} ({first})") from error


def in_words(metric: str, known: float, suppressed: float, attacked: float) -> str:
    """What was found, from its three figures."""
    moved = f"{metric_name(metric)} {suppressed:.2g} → {attacked:.2g} at worst, {known:.2g} before forgetting"
    if known <= suppressed:
        return f"{moved}; there was nothing to bring back"
    back = (attacked - suppressed) / (known - suppressed)
    if back <= 0:
        return f"{moved}; nothing came back"
    return f"{moved}; {back:.0%} of what was suppressed came back"
