"""The records of an audit: row scores, an evaluation, its aggregates, and the findings of its gates.

All are frozen and check themselves. Texts (prompt, reference, answer) live in memory only: they are left out
of `repr`, and out of `to_json` unless the caller says `reveal=True`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

from .errors import RecordError

Group = Literal["forget", "paraphrase", "heldout", "entailed", "format", "neighbour", "unrelated", "retain"]
"""What a row is measured for: `FORGET_SIDE` must be gone, `KEEP_SIDE` must stand (docs/audits.md, Scope)."""
Outcome = Literal["passed", "failed", "noted", "not measured"]
"""*noted*: measured and reported, and no gate asked for it, so that it decides nothing."""
Verdict = Literal["pass", "fail"]
Json = dict[str, object]

GROUPS: tuple[Group, ...] = get_args(Group)
FORGET_SIDE: tuple[Group, ...] = ("forget", "paraphrase", "heldout", "entailed", "format")
KEEP_SIDE: tuple[Group, ...] = ("neighbour", "unrelated", "retain")


@dataclass(frozen=True, slots=True)
class Membership:
    """Membership scores of one row (`membership.py`), higher = less like a training row; Min-K at k = 0.4.

    Raises RecordError for figures that are not finite, or below 0 where that cannot be.
    """

    loss: float
    zlib: float
    min_k: float
    min_k_plus_plus: float

    def __post_init__(self) -> None:
        for name in ("loss", "zlib", "min_k"):
            _in_range(f"membership: {name}", getattr(self, name), 0.0)
        _in_range("membership: min_k_plus_plus", self.min_k_plus_plus, -math.inf)

    def to_json(self, *, reveal: bool = False) -> Json:
        """Plain JSON types. Without `reveal` no zlib score: beside the loss it tells the answer's compressed length."""
        names = [name for name in self.__slots__ if reveal or name != "zlib"]
        return {name: float(getattr(self, name)) for name in names}


@dataclass(frozen=True, slots=True)
class RowScore:
    """Figures of one question under one composition.

    `id` names the row in reports, masked ones included: it must not carry personal data. `request` is the
    forget request it belongs to, None for rows shared by all. `n_tokens` counts the reference's tokens.
    `mentioned`: whether the generated answer names a keyword; None for a row that has no keywords. `fluency`
    is `metrics.ngram_entropy` in bits; `perplexity` is the unadapted base's of the generated answer, None
    only where the model said nothing (a document row is not asked anything). `membership` is always there in
    what `evaluate` measures; a row put together from other figures may go without.

    Raises RecordError when a figure is outside its range; the message names the row, never its text.
    """

    id: str
    request: str | None
    group: Group
    n_tokens: int
    probability: float
    extraction_strength: float
    exact_memorization: float
    rouge_l: float
    mentioned: bool | None
    fluency: float
    perplexity: float | None
    prompt: str = field(repr=False)
    reference: str = field(repr=False)
    answer: str = field(repr=False)
    membership: Membership | None = None

    def __post_init__(self) -> None:
        where = f"row {self.id!r}"
        _require(self.id != "", "row: expected a non-empty id")
        _require(self.group in GROUPS, f"{where}: expected group in {list(GROUPS)}, got {self.group!r}")
        _require(self.n_tokens >= 1, f"{where}: expected n_tokens >= 1, got {self.n_tokens}")
        for name in ("probability", "extraction_strength", "exact_memorization", "rouge_l"):
            _in_range(f"{where}: {name}", getattr(self, name), 0.0, 1.0)
        _in_range(f"{where}: fluency", self.fluency, 0.0)
        if self.perplexity is None:
            _require(self.answer == "", f"{where}: expected a perplexity for an answer with text, got None")
        else:
            _in_range(f"{where}: perplexity", self.perplexity, 1.0)

    @property
    def key(self) -> tuple[str | None, Group, str]:
        """What makes it the same question in another evaluation: (request, group, id)."""
        return (self.request, self.group, self.id)

    def to_json(self, *, reveal: bool = False) -> Json:
        """Plain JSON types. Without `reveal` no text of any group is written, not even its length."""
        figures: Json = {
            "id": self.id,
            "request": self.request,
            "group": self.group,
            "n_tokens": int(self.n_tokens),
            "probability": float(self.probability),
            "extraction_strength": float(self.extraction_strength),
            "exact_memorization": float(self.exact_memorization),
            "rouge_l": float(self.rouge_l),
            "mentioned": None if self.mentioned is None else bool(self.mentioned),
            "fluency": float(self.fluency),
            "perplexity": None if self.perplexity is None else float(self.perplexity),
            "membership": None if self.membership is None else self.membership.to_json(reveal=reveal),
        }
        texts: Json = {"prompt": self.prompt, "reference": self.reference, "answer": self.answer}
        return figures | texts if reveal else figures


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All rows scored under one composition at one precision.

    `label` is what a reader calls it ("base", "+ request 1"), unique in a report; `composition` its digest;
    `precision` as in `efface model` ("nf4", "bf16", …); `seconds` the wall time of the run. `active` are the
    requests whose adapters the composition holds; None (unknown) makes the gates hold every request in the
    rows to its forgetting.

    Raises RecordError on an empty label, no rows, or two rows with the same (request, group, id).
    """

    label: str
    composition: str
    precision: str
    seed: int
    rows: tuple[RowScore, ...]
    seconds: float
    active: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _require(self.label != "", "evaluation: expected a non-empty label")
        where = f"evaluation {self.label!r}"
        _require(len(self.rows) > 0, f"{where}: expected at least one row, got none")
        twice = [key for key, count in Counter(row.key for row in self.rows).items() if count > 1]
        _require(not twice, f"{where}: expected distinct rows, got {twice[:3]} more than once; give them ids")
        _require(self.seed >= 0, f"{where}: expected seed >= 0, got {self.seed}")
        _in_range(f"{where}: seconds", self.seconds, 0.0)

    def to_json(self, *, reveal: bool = False) -> Json:
        """Plain JSON types; see `RowScore.to_json` for `reveal`."""
        return {
            "label": self.label,
            "composition": self.composition,
            "active": None if self.active is None else list(self.active),
            "precision": self.precision,
            "seed": int(self.seed),
            "seconds": float(self.seconds),
            "rows": [row.to_json(reveal=reveal) for row in self.rows],
        }


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % percentile bootstrap interval over rows."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Figures of one (request, group) under one composition: means over `n` rows.

    `mention_rate` and its interval are over the `n_mention` rows that have keywords, `perplexity` over the
    `n_perplexity` rows that were answered; None when there is no such row. `perplexity` is a geometric mean,
    since one gibberish answer would own an arithmetic one.
    """

    group: Group
    request: str | None
    n: int
    probability: float
    probability_ci: Interval
    extraction_strength: float
    extraction_strength_ci: Interval
    exact_memorization: float
    rouge_l: float
    rouge_l_ci: Interval
    n_mention: int
    mention_rate: float | None
    mention_rate_ci: Interval | None
    fluency: float
    n_perplexity: int
    perplexity: float | None

    def to_json(self) -> Json:
        """Plain JSON types; intervals as [low, high]."""
        plain: Json = {}
        for name in self.__slots__:
            value = getattr(self, name)
            plain[name] = [value.low, value.high] if isinstance(value, Interval) else value
        return plain


@dataclass(frozen=True, slots=True)
class Finding:
    """What one gate says about one (request, group).

    `value` is None when there was nothing to compare: the group has no rows, or the figure before is 0.
    Such a finding is "failed" where the evidence was required, else "not measured". One that no gate asked for is
    "noted".
    """

    gate: str
    group: Group
    request: str | None
    value: float | None
    threshold: float
    outcome: Outcome
    text: str

    def __post_init__(self) -> None:
        where = f"finding {self.gate!r} on {self.group!r}"
        _in_range(f"{where}: threshold", self.threshold, 0.0)
        if self.value is not None:
            _in_range(f"{where}: value", self.value, 0.0)
        _require(
            self.value is not None or self.outcome not in ("passed", "noted"),
            f"{where}: expected a value with outcome {self.outcome!r}, got None",
        )
        _require(
            self.value is None or self.outcome != "not measured",
            f"{where}: expected no value with outcome 'not measured', got {self.value}",
        )

    @property
    def passed(self) -> bool:
        """True only for a gate that was measured and met."""
        return self.outcome == "passed"

    def to_json(self) -> Json:
        """Plain JSON types."""
        return {
            "gate": self.gate,
            "group": self.group,
            "request": self.request,
            "value": None if self.value is None else float(self.value),
            "threshold": float(self.threshold),
            "outcome": self.outcome,
            "text": self.text,
        }


def verdict_of(findings: tuple[Finding, ...]) -> Verdict:
    """Return "pass" when at least one gate passed and none failed; findings of other outcomes pass nothing."""
    measured = any(finding.passed for finding in findings)
    failed = any(finding.outcome == "failed" for finding in findings)
    return "pass" if measured and not failed else "fail"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise RecordError(message)


def _in_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    bound = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
    _require(
        math.isfinite(value) and low <= value <= high,
        f"{name}: expected a finite number {bound}, got {value}",
    )
