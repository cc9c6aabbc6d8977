"""Cheap looks at a model in training, and what the stop rules make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from peft import PeftModel
from torch import Tensor

from .answers import answers
from .encode import Encoded
from .generate import continuations
from .settings import StopRules

Stopped = Literal["steps", "forgotten", "retain", "distinct"]
"""Why a run ended: all steps done, targets met, the retain budget spent, or answers turned repetitive."""

_BATCH = 16
_ASKED = 4
_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a probe after ``step`` found, each a mean over its rows, in [0, 1].

    ``forget_probability`` and ``retain_probability``: exp(mean answer log-probability). ``extraction_strength``
    of forget answers, as `efface.audits.extraction_strength`. ``distinct``: bigrams of greedy answers that occur
    once, of all (0 for answers too short to have any). Without retain rows ``retain_probability`` is 0.
    """

    step: int
    forget_probability: float
    extraction_strength: float
    retain_probability: float
    distinct: float


@dataclass(frozen=True, slots=True)
class Prober:
    """The rows that every probe of a run looks at, evenly spread over those given."""

    forget: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]
    pad_id: int
    eos_id: int | None

    @staticmethod
    def of(
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        rules: StopRules,
        pad_id: int,
        eos_id: int | None,
    ) -> Prober:
        """At most ``rules.rows`` of each side."""
        return Prober(_spread(forget, rules.rows), _spread(retain, rules.rows), pad_id, eos_id)

    @torch.no_grad()
    def look(self, model: PeftModel, step: int) -> ProbeReport:
        """Probe ``model`` as it stands."""
        model.eval()
        forget, strength = _teacher_forced(model, self.forget, self.pad_id)
        retain, _ = _teacher_forced(model, self.retain, self.pad_id) if self.retain else (0.0, 0.0)
        asked = [row.prompt for row in _spread(self.forget, _ASKED)]
        said = continuations(model, asked, pad_id=self.pad_id, eos_id=self.eos_id, max_new_tokens=_NEW_TOKENS)
        return ProbeReport(step, forget, strength, retain, sum(map(distinct_bigrams, said)) / len(said))


@dataclass(frozen=True, slots=True)
class Verdict:
    """``stop``: end the run, for this reason. ``keep``: this probe's weights are the best within the budgets."""

    stop: Stopped | None
    keep: bool


def judge(rules: StopRules, probes: Sequence[ProbeReport], origin: ProbeReport | None = None) -> Verdict:
    """What to do after the last of ``probes``, the first of which was before the run's first step.

    ``origin``: the probe before an earlier run that this one goes on from; budgets are held against it, and the
    run's own start may be the best that there is.
    """
    before, now = origin or probes[0], probes[-1]
    judged = probes if origin else probes[1:]
    within = [probe for probe in judged if over_budget(rules, before, probe) is None]
    keep = bool(within) and min(within, key=lambda probe: _merit(rules, probe)) is now
    if len(probes) == 1:
        return Verdict(None, keep)
    reason = over_budget(rules, before, now)
    if reason is None:
        return Verdict("forgotten" if _target_met(rules, now) else None, keep)
    recent = probes[1:][-rules.patience :]
    out = len(recent) == rules.patience and all(over_budget(rules, before, probe) for probe in recent)
    return Verdict(reason if out else None, keep)


def over_budget(rules: StopRules, before: ProbeReport, probe: ProbeReport) -> Stopped | None:
    """Which budget ``probe`` has spent, if one."""
    if rules.retain_drop is not None:
        lowest = (1.0 - rules.retain_drop) * before.retain_probability
        if probe.retain_probability < lowest:
            return "retain"
    if rules.distinct is not None and probe.distinct < rules.distinct * before.distinct:
        return "distinct"
    return None


def extraction_strength(hits: Tensor) -> float:
    """1 - k/T of one answer's bool argmax matches [T]: k leading tokens after which all are right (2012.07805)."""
    right = hits.flip(0).long().cumprod(0).sum()
    return float(right) / len(hits)


def distinct_bigrams(tokens: Sequence[int]) -> float:
    """Distinct bigrams of ``tokens``, of all its bigrams (arXiv 1510.03055); 0 where there are none, so that a
    model that falls silent is seen as one that stammers."""
    pairs = list(pairwise(tokens))
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _target_met(rules: StopRules, probe: ProbeReport) -> bool:
    targets = [
        (probe.forget_probability, rules.forget_probability),
        (probe.extraction_strength, rules.extraction_strength),
    ]
    given = [(value, target) for value, target in targets if target is not None]
    return bool(given) and all(value <= target for value, target in given)


def _merit(rules: StopRules, probe: ProbeReport) -> tuple[bool, float, int]:
    """Lower is better: targets met, then what is still known; of equals the earlier probe."""
    by_strength = rules.extraction_strength is not None and rules.forget_probability is None
    known = probe.extraction_strength if by_strength else probe.forget_probability
    return (not _target_met(rules, probe), known, probe.step)


def _teacher_forced(model: PeftModel, rows: Sequence[Encoded], pad_id: int) -> tuple[float, float]:
    """Mean answer probability and mean extraction strength of ``rows``."""
    probabilities, strengths = list[float](), list[float]()
    for start in range(0, len(rows), _BATCH):
        found = answers(model, rows[start : start + _BATCH], pad_id)
        probabilities += (found.logps.sums / found.lengths).exp().tolist()
        hits = (found.logits.argmax(-1) == found.targets).split(found.lengths.tolist())
        strengths += map(extraction_strength, hits)
    return sum(probabilities) / len(rows), sum(strengths) / len(rows)


def _spread(rows: Sequence[Encoded], count: int) -> tuple[Encoded, ...]:
    unique = tuple(dict.fromkeys(rows))
    count = min(count, len(unique))
    return tuple(unique[i * len(unique) // count] for i in range(count)) if count else ()
