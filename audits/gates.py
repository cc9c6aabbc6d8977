"""Gates: which change between "before" and "after" an audit accepts.

`Thresholds` are numbers a recipe may set; `check` turns two evaluations into findings, one per gate, group
and request. It fails closed: forgetting that was not measured has failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .aggregate import Subject, aggregate, subject_order
from .attack import AttackKind
from .errors import IncomparableError
from .gate_bounds import FEW_CONFIDENCE, bounded
from .gate_table import GATES, Gate
from .types import FORGET_SIDE, KEEP_SIDE, Aggregate, Evaluation, Finding, Group, Outcome

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Rows = Annotated[float, Field(ge=0.0, le=1e6, multiple_of=1, allow_inf_nan=False)]
AttackKey = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/%+-]{0,63}$")]


class Thresholds(BaseModel):
    """Bounds of the gates; None leaves a gate out. Ratios are after / before of the group's mean.

    The defaults suit a short-answer audit of some ten rows a group, where one slip weighs 0.1. They are
    starting points: set them from what a model that never saw the rows scores, where you have one.

    A bound that you set yourself must be measurable: without rows for it the audit fails. A default bound
    without rows is reported as "not measured", but a request whose forgetting no gate measured has failed.
    So it is with few rows, where the bound of the figure counts (``few_rows``): what it does not show is "not measured"
    by default, and has failed where you asked for it or where it is the rows to be forgotten.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_mention_rate_forget: Share | None = Field(
        0.1, description="answers that still name a keyword, rows trained on"
    )
    max_mention_rate_paraphrase: Share | None = Field(0.2, description="the same, wordings never trained on")
    max_probability_ratio_forget: Ratio | None = Field(0.5, description="answer probability, forget rows")
    max_extraction_strength_forget: Share | None = Field(
        None, description="absolute; off by default: the end of a short answer is predictable to any model"
    )
    max_rouge_ratio_forget: Ratio | None = Field(None, description="ROUGE-L recall, forget rows")
    max_mention_rate_heldout: Share | None = Field(
        0.2, description="answers that name a keyword, rows of the forget scope never trained on"
    )
    max_mention_rate_entailed: Share | None = Field(
        0.3, description="the same, questions that follow from them"
    )
    max_mention_rate_format: Share | None = Field(0.3, description="the same, translations and other formats")
    max_probability_ratio_heldout: Ratio | None = Field(None, description="answer probability, held-out rows")
    min_probability_ratio_retain: Ratio | None = Field(0.8, description="answer probability, retain rows")
    min_probability_ratio_neighbour: Ratio | None = Field(
        0.7, description="answer probability, neighbour rows"
    )
    min_probability_ratio_unrelated: Ratio | None = Field(
        0.8, description="answer probability, unrelated rows"
    )
    min_mention_ratio_retain: Ratio | None = Field(
        0.9, description="rate of naming the right keyword, retain rows"
    )
    min_mention_ratio_neighbour: Ratio | None = Field(0.8, description="the same, neighbour rows")
    min_fluency_ratio: Ratio | None = Field(0.7, description="n-gram entropy of the answers, each group")
    max_perplexity_ratio: Ratio | None = Field(
        10.0, description="the base's perplexity of the answers, each group; gibberish costs hundreds"
    )
    max_retain_drop: Share | None = Field(
        None, description="1 - after / before of answer probability, retain rows"
    )
    max_rebound: Share | None = Field(
        None, description="rise of extraction strength since a request's best release, each active request"
    )
    max_recovered: dict[AttackKey, Ratio] = Field(
        default_factory=dict,
        description="share of what was taken that an attack brings back, by its name or kind",
    )
    min_ignorance_ratio: Ratio | None = Field(
        None,
        description="forget answers' probability over what a model gives that does not know; over-unlearning",
    )
    max_ignorance_ratio: Ratio | None = Field(
        None, description="the same from above; needs a reference model that never saw the rows"
    )
    max_gibberish_share: Share | None = Field(
        None, description="answers to forget questions that are no language"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] | None = Field(
        None, description="judge by one-sided bounds of this confidence and not by what the rows at hand show"
    )
    few_rows: Rows = Field(
        20, description="fewer rows than this are judged by 95 % bounds without being asked; 0 turns it off"
    )

    @field_validator("max_recovered")
    @classmethod
    def _known_attacks(cls, value: dict[str, float]) -> dict[str, float]:
        known = attack_keys()
        for name in value:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"no attack {name!r}: expected one of {', '.join(known)}{hint}")
        return value

    def level(self, n: int) -> float | None:
        """The confidence of the bound that a figure over ``n`` rows is judged by; None: by the figure itself."""
        return self.confidence or (FEW_CONFIDENCE if n < self.few_rows else None)

    def flat(self) -> dict[str, float | None]:
        """Every bound by name, ``max_recovered.<attack>`` one by one."""
        rest = {name: getattr(self, name) for name in type(self).model_fields if name != "max_recovered"}
        return rest | {f"max_recovered.{name}": bound for name, bound in self.max_recovered.items()}

    def stricter(self, other: Mapping[str, float]) -> Thresholds:
        """These bounds and the flat ``other``, the stricter of each. What ``other`` has must then be measured.

        Raises pydantic's `ValidationError` for names and values that are no bounds.
        """
        flat = self.flat()
        mine = {
            name: bound for name, bound in flat.items() if name.partition(".")[0] in self.model_fields_set
        }
        for name, bound in other.items():
            own = flat.get(name)
            pick = min if name.startswith("max_") else max
            mine[name] = bound if own is None else pick(own, bound)
        return Thresholds.model_validate(nested(mine))

    @model_validator(mode="after")
    def _asks_for_forgetting(self) -> Thresholds:
        forget = [name for name in type(self).model_fields if name.endswith("_forget")]
        if all(getattr(self, name) is None for name in forget):
            raise ValueError(
                f"expected at least one of {', '.join(forget)}: without it an audit shows no forgetting"
            )
        return self


_RECOVERED = "max_recovered."
SCOPE = ("min_ignorance_ratio", "max_ignorance_ratio", "max_gibberish_share")
"""Bounds of `scope.ScopeBounds`: reported by the larger suites anyway, decisive only where they are set."""
ELSEWHERE = ("max_rebound", "max_recovered", *SCOPE, "confidence", "few_rows")
"""What `GATES` does not have: see `gate_attacks`, `gate_scope` and `bounds`."""


def check(before: Evaluation, after: Evaluation, thresholds: Thresholds) -> tuple[Finding, ...]:
    """Every gate that `thresholds` sets, on every request and group it concerns.

    Gates of the forget side (`FORGET_SIDE`) hold for the requests in `after.active` (all in the rows when that is None)
    and for rows without a request; those of the keep side hold for all rows, whatever is active.

    Raises IncomparableError when the two differ in rows or precision: a 4-bit "after" needs a 4-bit "before",
    since quantization alone changes the figures (arXiv 2410.16454).
    """
    _require_comparable(before, after)
    old = {(item.request, item.group): item for item in aggregate(before)}
    new = {(item.request, item.group): item for item in aggregate(after)}
    judged = [
        _judged(gate, subject, before, after, old.get(subject), new.get(subject), thresholds)
        for gate in GATES
        if getattr(thresholds, gate.threshold) is not None
        for subject in _subjects(gate.group, after)
        if subject in new or not (gate.style or _spared(gate, thresholds))
    ]
    shown = {one.subject for one in judged if one.value is not None and not one.gate.style}
    return tuple(_finding(one, thresholds, shown) for one in judged)


def _spared(gate: Gate, thresholds: Thresholds) -> bool:
    return gate.optional and gate.threshold not in thresholds.model_fields_set


def _require_comparable(before: Evaluation, after: Evaluation) -> None:
    if before.precision != after.precision:
        raise IncomparableError(
            f"expected before and after at one precision, got {before.precision!r} and {after.precision!r}; "
            f"evaluate {before.label!r} again at {after.precision!r}"
        )
    differing = {row.key for row in before.rows} ^ {row.key for row in after.rows}
    if differing:
        named = sorted(differing, key=str)[:3]
        raise IncomparableError(
            f"expected the same rows in {before.label!r} and {after.label!r}, got {len(differing)} "
            f"in one only, e.g. {named}; evaluate both on one set"
        )


def _subjects(group: Group, after: Evaluation) -> list[Subject]:
    """The (request, group) pairs to judge; never empty unless `active` says that nothing is suppressed."""
    present = {row.request for row in after.rows if row.group == group}
    named = {row.request for row in after.rows if row.group == "forget"} - {None}
    active = named if after.active is None else set(after.active)
    forgotten = active | (present & {None})
    kept = present if None in present else present | active
    requests = forgotten if group in FORGET_SIDE else kept
    if not requests and (after.active is None or group in KEEP_SIDE):
        requests = {None}
    return sorted(((request, group) for request in requests), key=subject_order)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A gate's ``value`` and how it came about; None where there is none, or where few rows do not show enough."""

    gate: Gate
    subject: Subject
    value: float | None
    reason: str
    words: str = ""


def _finding(one: _Judged, thresholds: Thresholds, shown: set[Subject]) -> Finding:
    gate, value = one.gate, one.value
    threshold = float(getattr(thresholds, gate.threshold))
    if value is None:
        unproven = gate.group == "forget" and one.subject not in shown
        required = unproven or gate.threshold in thresholds.model_fields_set
        outcome: Outcome = "failed" if required else "not measured"
        text = f"not measured: {one.reason}{one.words}" + (", and this gate requires it" if required else "")
    else:
        outcome = "passed" if _holds(gate, value, threshold) else "failed"
        text = f"{one.reason}, {gate.bound} {threshold:g}{one.words}"
    return Finding(
        gate.threshold, gate.group, one.subject[0], value, threshold, outcome, f"{gate.label} {text}"
    )


def _measure(gate: Gate, old: Aggregate | None, new: Aggregate | None) -> tuple[float | None, str]:
    """The value of the gate and how it came about, or None and why there is none."""
    if old is None or new is None:
        return None, f"no {gate.group} rows (n = 0)"
    (was, _), (now, n) = _figure(gate, old), _figure(gate, new)
    if was is None or now is None:
        return (
            None,
            f"none of the {new.n} rows {'has keywords' if gate.metric == 'mention_rate' else 'is answered'}",
        )
    if not gate.ratio:
        return now, f"{was:.3g} → {now:.3g} (n = {n})"
    if was == 0.0:
        return None, f"it is 0 before, so there is no ratio (n = {n})"
    if gate.drop:
        return max(0.0, 1.0 - now / was), f"{was:.3g} → {now:.3g}, {1.0 - now / was:.3g} less (n = {n})"
    return now / was, f"{was:.3g} → {now:.3g}, ratio {now / was:.3g} (n = {n})"


def _judged(
    gate: Gate,
    subject: Subject,
    before: Evaluation,
    after: Evaluation,
    old: Aggregate | None,
    new: Aggregate | None,
    thresholds: Thresholds,
) -> _Judged:
    """What the rows at hand show or, with a confidence or few of them, its bound."""
    value, reason = _measure(gate, old, new)
    level = None if value is None or new is None else thresholds.level(_figure(gate, new)[1])
    threshold = float(getattr(thresholds, gate.threshold))
    if value is None or level is None or not _holds(gate, value, threshold):
        return _Judged(gate, subject, value, reason)  # no bound makes good what these very rows show
    # What is lost at most is what is left at least.
    asked, left = ("at least", 1.0 - threshold) if gate.drop else (gate.bound, threshold)
    found = bounded(before, after, subject, gate.metric, asked, level, ratio=gate.ratio, threshold=left)
    few = thresholds.confidence is None
    if found.value is None:
        return _Judged(gate, subject, None, f"{reason}; {found.name}")
    edge = max(0.0, 1.0 - found.value) if gate.drop else found.value
    edge = max(edge, value) if gate.bound == "at most" else min(edge, value)
    words = f" (few rows: {found.words})" if few else ""
    reason = f"{reason}; {found.name} {edge:.3g}"
    if few and not _holds(gate, edge, threshold) and not _must_show(gate, thresholds):
        return _Judged(gate, subject, None, f"{reason}, {gate.bound} {threshold:g}", words)
    return _Judged(gate, subject, edge, reason, words)


def _must_show(gate: Gate, thresholds: Thresholds) -> bool:
    """Whether few rows that do not show enough have failed, and are not only too few to say."""
    return gate.threshold in thresholds.model_fields_set or (gate.group == "forget" and not gate.style)


def nested(flat: Mapping[str, object]) -> dict[str, object]:
    """``max_recovered.prompt`` and the like as `Thresholds` takes them."""
    found: dict[str, object] = {
        name: value for name, value in flat.items() if not name.startswith(_RECOVERED)
    }
    inner = {name.removeprefix(_RECOVERED): v for name, v in flat.items() if name.startswith(_RECOVERED)}
    return found | ({"max_recovered": inner} if inner else {})


def attack_keys() -> tuple[str, ...]:
    """What ``max_recovered`` may name: the kinds of attacks, and each of `ATTACKS`."""
    from .attacks import ATTACKS  # which imports what trains

    return (*get_args(AttackKind), *ATTACKS)


def _figure(gate: Gate, item: Aggregate) -> tuple[float | None, int]:
    value: float | None = getattr(item, gate.metric)
    rows = {"mention_rate": item.n_mention, "perplexity": item.n_perplexity}
    return value, rows.get(gate.metric, item.n)


def _holds(gate: Gate, value: float, threshold: float) -> bool:
    return value <= threshold if gate.bound == "at most" else value >= threshold
