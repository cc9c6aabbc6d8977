"""What decides a training run besides data and base, as frozen records, and its checks: all problems at once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from .errors import ObjectiveError, TrainingError
from .objectives import OBJECTIVES

RetainTerm = Literal["nll", "kl", "hidden", "none"]
Schedule = Literal["linear", "cosine", "constant"]
Optimizer = Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"]

FORGET_OBJECTIVES = tuple(name for name, row in OBJECTIVES.items() if row.kind != "retain")
"""The names that `TrainSettings.objective` takes."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """PDU's form (arXiv 2506.05314), for any objective: minimise forget subject to retain NLL <= epsilon.

    ``slack``: epsilon as a multiple of the retain NLL before training. ``weight``: the dual variable to start
    from. ``step``: how far it moves at each update, one after every step but the first ``warmup_steps``.
    """

    slack: float = 1.1
    weight: float = 50.0
    step: float = 1.0
    warmup_steps: int = 0


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a run is over before its steps are. Every ``every`` steps a probe looks at ``rows`` rows a side.

    Targets, all of those given: mean ``forget_probability`` and mean ``extraction_strength`` of forget answers,
    at most. Budgets: ``retain_drop``, the relative fall of the mean retain probability; ``distinct``, the share
    of distinct bigrams (arXiv 1510.03055) in greedy answers to forget prompts against what it was, at least.
    A run stops at a probe that meets the targets within the budgets, or when ``patience`` probes in a row are
    out of a budget; either way the best step within the budgets is kept.
    """

    every: int = 5
    rows: int = 32
    forget_probability: float | None = None
    extraction_strength: float | None = None
    retain_drop: float | None = 0.1
    distinct: float | None = 0.5
    patience: int = 2


@dataclass(frozen=True, slots=True)
class Stacking:
    """What a run does so that its adapter adds up with others; all off by default. See `train` for who they are.

    ``orthogonal`` and ``orthogonal_outputs``: weights of the penalties of `efface.adapters.apart` on A and on B.
    ``freeze_a``: train B alone. ``company``: the share of steps in which a random draw of the others is on (see
    `efface.adapters.company`), each draw for ``company_every`` steps.
    """

    orthogonal: float = 0.0
    orthogonal_outputs: float = 0.0
    freeze_a: bool = False
    company: float = 0.0
    company_every: int = 1


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that decides the weights besides data and base. The loss is ``gamma*forget + alpha*retain``.

    ``parameters``: the objective's own, by the names of its function; those left out keep its defaults.
    ``forget_batch`` and ``retain_batch`` are rows of one forward, of which a step has ``accumulation``.
    ``alternates``: other answers a forget row meets a forward, in turn. ``skip_first``: leading answer tokens
    that the forget loss leaves out (arXiv 2503.01224). ``layer`` and ``control_scale``: RMU's layer and c.
    """

    objective: str = "simnpo"
    parameters: Mapping[str, float] = field(default_factory=dict[str, float])
    retain_term: RetainTerm = "nll"
    gamma: float = 1.0
    alpha: float = 1.0
    constraint: Constraint | None = None
    alternates: int = 1
    skip_first: int = 0
    layer: int = 7
    control_scale: float = 2.0
    learning_rate: float = 5e-4
    warmup_steps: int = 0
    schedule: Schedule = "linear"
    optimizer: Optimizer = "adamw_torch"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    steps: int = 40
    forget_batch: int = 8
    retain_batch: int = 8
    accumulation: int = 1
    length_buckets: bool = True
    gradient_checkpointing: bool = False
    stop: StopRules | None = None
    stacking: Stacking = field(default_factory=Stacking)
    seed: int = 0

    @property
    def needs_alternates(self) -> bool:
        """Whether every forget row has to come with another answer."""
        return OBJECTIVES[self.objective].needs_alternates

    @property
    def reads_retain(self) -> bool:
        """Whether retain rows are part of the loss."""
        return self.retain_term != "none" and (self.alpha > 0 or self.constraint is not None)


def check_settings(settings: TrainSettings) -> None:
    """Raise one :class:`TrainingError` with a line for each thing that cannot be meant."""
    if problems := [*_names(settings), *_numbers(settings), *_agreement(settings)]:
        raise TrainingError("\n".join(problems))


def unknown(kind: str, name: str, known: tuple[str, ...]) -> str:
    """A message for a name that does not exist: the nearest one, and all that do."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}: {', '.join(known) or 'none'} exist{hint}"


def _names(s: TrainSettings) -> Iterator[str]:
    for kind, name, known in (
        ("objective", s.objective, FORGET_OBJECTIVES),
        ("retain term", s.retain_term, get_args(RetainTerm)),
        ("schedule", s.schedule, get_args(Schedule)),
        ("optimizer", s.optimizer, get_args(Optimizer)),
    ):
        if name not in known:
            yield unknown(kind, name, known)
    if s.objective in FORGET_OBJECTIVES:
        names = tuple(OBJECTIVES[s.objective].defaults)
        yield from (
            unknown(f"parameter of {s.objective}", key, names) for key in s.parameters if key not in names
        )


def _numbers(s: TrainSettings) -> Iterator[str]:
    counts = {"steps": s.steps, "forget_batch": s.forget_batch, "accumulation": s.accumulation}
    counts["stacking.company_every"] = s.stacking.company_every
    counts |= {"alternates": s.alternates} | ({"retain_batch": s.retain_batch} if s.reads_retain else {})
    stop = s.stop
    if stop is not None:
        counts |= {"stop.every": stop.every, "stop.rows": stop.rows, "stop.patience": stop.patience}
    bad = {name: value for name, value in counts.items() if value < 1}
    if bad:
        yield "expected at least 1 of " + ", ".join(f"{name} (got {value})" for name, value in bad.items())
    weights = {
        "gamma": s.gamma,
        "alpha": s.alpha,
        "warmup_steps": s.warmup_steps,
        "skip_first": s.skip_first,
        "weight_decay": s.weight_decay,
        "layer": s.layer,
        "stacking.orthogonal": s.stacking.orthogonal,
        "stacking.orthogonal_outputs": s.stacking.orthogonal_outputs,
    }
    if s.constraint is not None:
        weights["constraint.weight"] = s.constraint.weight
        weights["constraint.warmup_steps"] = s.constraint.warmup_steps
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            yield f"expected a finite {name} of zero or more, got {value}"
    positive = {"learning_rate": s.learning_rate, "max_grad_norm": s.max_grad_norm}
    positive["control_scale"] = s.control_scale
    if s.constraint is not None:
        positive |= {"constraint.slack": s.constraint.slack, "constraint.step": s.constraint.step}
    for name, value in positive.items():
        if not 0 < value < math.inf:
            yield f"expected a positive, finite {name}, got {value}"


def _agreement(s: TrainSettings) -> Iterator[str]:
    if s.constraint is not None and s.retain_term != "nll":
        yield f"a constraint bounds the retain NLL: expected retain_term nll, got {s.retain_term}"
    if s.alternates > 1 and s.objective in FORGET_OBJECTIVES and s.objective != "altpo":
        yield f"expected alternates=1 with {s.objective}, got {s.alternates}: only altpo takes several at once"
    if not 0 <= s.stacking.company <= 1:
        yield f"expected stacking.company, a share of steps, from 0 to 1, got {s.stacking.company}"
    if s.stacking.freeze_a and s.stacking.orthogonal:
        yield "a frozen A cannot follow stacking.orthogonal: expected one of the two, with freeze_a it is 0"
    if not 0 <= s.seed < 2**32 - 8:
        yield f"expected a seed from 0 to {2**32 - 9}, got {s.seed}"
    known = (
        s.objective in FORGET_OBJECTIVES and s.parameters.keys() <= OBJECTIVES[s.objective].defaults.keys()
    )
    if known and (problem := _refused(s)):
        yield f"parameters of {s.objective}: {problem}"


def _refused(s: TrainSettings) -> str | None:
    """What the objective itself says of its parameters, asked with the smallest tensors that it takes."""
    row = (1,) if OBJECTIVES[s.objective].level == "sequence" else (1, 1)
    other = (1, 1) if s.objective == "altpo" else row
    tensors = {
        "logps": torch.zeros(row),
        "ref_logps": torch.zeros(row),
        "alternate_logps": torch.zeros(other),
        "ref_alternate_logps": torch.zeros(other),
        "mask": torch.ones(1, 1, dtype=torch.bool),
        "alternate_mask": torch.ones(1, 1, dtype=torch.bool),
        "lengths": torch.ones(1, dtype=torch.long),
        "targets": torch.zeros(1, dtype=torch.long),
        "control": torch.zeros(2),
        **{name: torch.zeros(1, 2) for name in ("logits", "ref_logits", "hidden")},
    }
    objective = OBJECTIVES[s.objective]
    try:
        objective.function(*(tensors[name] for name in objective.inputs), **s.parameters)
    except (ObjectiveError, RuntimeError, TypeError) as error:
        return str(error)
    return None
