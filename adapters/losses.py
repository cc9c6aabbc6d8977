"""From the answers of one forward to its loss: the objective's tensors by name, the retain term, their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .answers import Answers
from .encode import Encoded
from .lora import reference_head
from .objectives import OBJECTIVES, Dual, control_vector, retain_kl, retain_nll, rmu_retain
from .reference import Reference
from .settings import TrainSettings
from .steps import Step


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one forward. ``total`` is differentiable; the rest are its parts and the rows' mean probabilities.

    ``retain`` and ``retain_probability`` are zero where no retain rows are read.
    """

    total: Tensor
    forget: Tensor
    retain: Tensor
    forget_probability: float
    retain_probability: float


def losses(
    found: Answers, step: Step, reference: Reference, settings: TrainSettings, dual: Dual | None
) -> Losses:
    """The losses of ``step``, whose forget, alternate and retain rows ``found`` holds in that order."""
    n, m = len(step.forget), len(step.forget) + len(step.alternates)
    forget_rows = found.rows(0, n)
    forget = forget_loss(forget_rows, found.rows(n, m), step, reference, settings) * step.forget_share
    if not step.retain:
        zero = torch.zeros((), device=forget.device)
        return Losses(settings.gamma * forget, forget.detach(), zero, forget_rows.probability(), 0.0)
    retain_rows = found.rows(m, len(found.lengths))
    retain = retain_loss(retain_rows, step.retain, reference, settings) * step.retain_share
    if dual is None:
        total = settings.gamma * forget + settings.alpha * retain
    else:
        total = dual.loss(settings.gamma * forget, retain)
    return Losses(
        total, forget.detach(), retain.detach(), forget_rows.probability(), retain_rows.probability()
    )


def forget_loss(
    rows: Answers, alternates: Answers, step: Step, reference: Reference, settings: TrainSettings
) -> Tensor:
    """The objective of ``settings`` on the tensors that its function names."""
    objective, count = OBJECTIVES[settings.objective], settings.alternates
    # AltPO compares a row with several answers at once: [B, K]. The others meet K = 1 a forward.
    shape = (len(step.forget), count) if settings.objective == "altpo" else (-1,)
    by_row = objective.level == "sequence"
    tensors: Mapping[str, Callable[[], Tensor]] = {
        "logps": lambda: rows.logps.sums if by_row else rows.logps.logps,
        "mask": lambda: rows.logps.mask,
        "lengths": lambda: rows.lengths,
        "ref_logps": lambda: _stacked(reference.sums, step.forget, rows),
        "alternate_logps": lambda: alternates.logps.sums.reshape(shape) if by_row else alternates.logps.logps,
        "alternate_mask": lambda: alternates.logps.mask,
        "ref_alternate_logps": lambda: _stacked(reference.sums, step.alternates, rows).reshape(shape),
        "logits": lambda: rows.logits,
        "targets": lambda: rows.targets,
        "ref_logits": lambda: reference_head(rows.head)(_joined(reference.hidden, step.forget, rows)),
        "hidden": lambda: rows.layer,
        "control": lambda: control_vector(
            rows.layer.shape[-1], seed=settings.seed, scale=settings.control_scale
        ),
    }
    return objective.function(*(tensors[name]() for name in objective.inputs), **settings.parameters)


def retain_loss(
    rows: Answers, asked: Sequence[Encoded], reference: Reference, settings: TrainSettings
) -> Tensor:
    """The retain term of ``settings``, a mean over the answers' tokens."""
    if settings.retain_term == "kl":
        return retain_kl(rows.logits, reference_head(rows.head)(_joined(reference.hidden, asked, rows)))
    if settings.retain_term == "hidden":
        return rmu_retain(rows.layer, _joined(reference.layer, asked, rows))
    return retain_nll(rows.logps.logps, rows.logps.mask)


def _stacked(values: Mapping[Encoded, Tensor], asked: Sequence[Encoded], beside: Answers) -> Tensor:
    return torch.stack([values[row] for row in asked]).to(beside.hidden.device)


def _joined(values: Mapping[Encoded, Tensor], asked: Sequence[Encoded], beside: Answers) -> Tensor:
    return torch.cat([values[row] for row in asked]).to(beside.hidden.device)
