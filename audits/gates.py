"""Gates: which change between "before" and "after" an audit accepts.

`Thresholds` are numbers a recipe may set; `check` turns two evaluations into findings, one per gate, group
and request. It fails closed: forgetting that was not measured has failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .aggregate import Subject, aggregate, subject_order
from .attack import AttackKind
from .errors import IncomparableError
from .gate_bounds import bounded
from .types import FORGET_SIDE, GROUPS, KEEP_SIDE, Aggregate, Evaluation, Finding, Group, Outcome

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
AttackKey = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/%+-]{0,63}$")]


class Thresholds(BaseModel):
    """Bounds of the gates; None leaves a gate out. Ratios are after / before of the group's mean.

    The defaults suit a short-answer audit of some ten rows a group, where one slip weighs 0.1. They are
    starting points: set them from what a model that never saw the rows scores, where you have one.

    A bound that you set yourself must be measurable: without rows for it the audit fails. A default bound
    without rows is reported as "not measured", but a request whose forgetting no gate measured has failed.
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


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound: which figure of which group, relative to "before" or absolute, at most or at least."""

    threshold: str
    group: Group
    metric: str
    label: str
    bound: Literal["at most", "at least"]
    ratio: bool
    style: bool = False
    """How answers read, not what they know: no proof of forgetting, and not reported where absent."""
    drop: bool = False
    """The figure is what is lost of it: 1 less the ratio."""
    optional: bool = False
    """Of a group that few requests bring: not reported where it is absent, unless the bound was set."""


_RECOVERED = "max_recovered."
SCOPE = ("min_ignorance_ratio", "max_ignorance_ratio", "max_gibberish_share")
"""Bounds of `scope.ScopeBounds`: reported by the larger suites anyway, decisive only where they are set."""
ELSEWHERE = ("max_rebound", "max_recovered", *SCOPE, "confidence")
"""What `GATES` does not have: see `gate_attacks`, `gate_scope` and `bounds`."""
GATES: tuple[Gate, ...] = (
    Gate("max_mention_rate_forget", "forget", "mention_rate", "mention rate", "at most", ratio=False),
    Gate("max_mention_rate_paraphrase", "paraphrase", "mention_rate", "mention rate", "at most", ratio=False),
    Gate(
        "max_probability_ratio_forget", "forget", "probability", "answer probability", "at most", ratio=True
    ),
    Gate(
        "max_extraction_strength_forget",
        "forget",
        "extraction_strength",
        "extraction strength",
        "at most",
        ratio=False,
    ),
    Gate("max_rouge_ratio_forget", "forget", "rouge_l", "ROUGE-L recall", "at most", ratio=True),
    *(
        Gate(
            f"max_mention_rate_{group}",
            group,
            "mention_rate",
            "mention rate",
            "at most",
            ratio=False,
            optional=True,
        )
        for group in FORGET_SIDE[2:]
    ),
    Gate(
        "max_probability_ratio_heldout",
        "heldout",
        "probability",
        "answer probability",
        "at most",
        ratio=True,
        optional=True,
    ),
    Gate(
        "min_probability_ratio_unrelated",
        "unrelated",
        "probability",
        "answer probability",
        "at least",
        ratio=True,
        optional=True,
    ),
    Gate(
        "min_probability_ratio_retain", "retain", "probability", "answer probability", "at least", ratio=True
    ),
    Gate(
        "max_retain_drop",
        "retain",
        "probability",
        "lost answer probability",
        "at most",
        ratio=True,
        drop=True,
    ),
    Gate(
        "min_probability_ratio_neighbour",
        "neighbour",
        "probability",
        "answer probability",
        "at least",
        ratio=True,
    ),
    Gate("min_mention_ratio_retain", "retain", "mention_rate", "mention rate", "at least", ratio=True),
    Gate("min_mention_ratio_neighbour", "neighbour", "mention_rate", "mention rate", "at least", ratio=True),
    # A group without rows is reported by the gates above, once.
    *(
        Gate("min_fluency_ratio", group, "fluency", "fluency", "at least", ratio=True, style=True)
        for group in GROUPS
    ),
    *(
        Gate("max_perplexity_ratio", group, "perplexity", "perplexity", "at most", ratio=True, style=True)
        for group in GROUPS
    ),
)


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
    measured = [
        (
            gate,
            subject,
            *_judged(gate, subject, before, after, old.get(subject), new.get(subject), thresholds),
        )
        for gate in GATES
        if getattr(thresholds, gate.threshold) is not None
        for subject in _subjects(gate.group, after)
        if subject in new or not (gate.style or _spared(gate, thresholds))
    ]
    shown = {subject for gate, subject, value, _ in measured if value is not None and not gate.style}
    return tuple(
        _finding(gate, subject, value, reason, thresholds, shown) for gate, subject, value, reason in measured
    )


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


def _finding(
    gate: Gate,
    subject: Subject,
    value: float | None,
    reason: str,
    thresholds: Thresholds,
    shown: set[Subject],
) -> Finding:
    threshold = float(getattr(thresholds, gate.threshold))
    if value is None:
        unproven = gate.group == "forget" and subject not in shown
        required = unproven or gate.threshold in thresholds.model_fields_set
        outcome: Outcome = "failed" if required else "not measured"
        text = f"not measured: {reason}" + (", and this gate requires it" if required else "")
    else:
        outcome = "passed" if _holds(gate, value, threshold) else "failed"
        text = f"{reason}, {gate.bound} {threshold:g}"
    return Finding(gate.threshold, gate.group, subject[0], value, threshold, outcome, f"{gate.label} {text}")


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
) -> tuple[float | None, str]:
    """What the rows at hand show or, with a confidence, its bound; None where there is no figure to bound."""
    value, reason = _measure(gate, old, new)
    if thresholds.confidence is None or value is None:
        return value, reason
    # What is lost at most is what is left at least.
    asked = "at least" if gate.drop else gate.bound
    found, name = bounded(before, after, subject, gate.metric, asked, thresholds.confidence, ratio=gate.ratio)
    if found is None:
        return None, f"{reason}; {name}"
    shown = max(0.0, 1.0 - found) if gate.drop else found
    return shown, f"{reason}; {name} {shown:.3g}"


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
