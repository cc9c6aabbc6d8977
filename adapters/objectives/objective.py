"""What an objective is and needs, as data.

What a function needs is read off its signature: the positional parameters' names are the contract.

    logps, ref_logps, lengths              [B] summed, of the forget answers
    alternate_logps, ref_alternate_logps   [B] of their alternates (AltPO: [B, K])
    logps, mask                            [B, A] by token (idk_nll: alternate_logps, alternate_mask)
    logits, targets, ref_logits            [N, V], [N], [N, V] at answer positions
    hidden, ref_hidden, control            [N, H], [N, H], [H]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from torch import Tensor

Kind = Literal["preference", "bounded", "weighted", "baseline", "retain"]
Level = Literal["token", "sequence"]
Takes = Literal["logps", "logits", "hidden"]


@dataclass(frozen=True, slots=True)
class Objective:
    """One row of the table.

    ``function``: the pure loss; ``level``: whether one token or a whole answer is what it weighs; ``paper``: an
    arXiv id; ``gamma`` and ``alpha``: the weights of the forget and the retain term to start from (alpha 0: the
    paper trains without retain rows); ``proven``: whether unlearning results with it are published.
    """

    name: str
    kind: Kind
    function: Callable[..., Tensor]
    level: Level
    paper: str
    note: str
    gamma: float = 1.0
    alpha: float = 1.0
    proven: bool = True

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tensors that ``function`` takes, in order."""
        found = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in found if p.kind is p.POSITIONAL_OR_KEYWORD)

    @property
    def defaults(self) -> Mapping[str, float]:
        """The hyperparameters and their defaults."""
        found = inspect.signature(self.function).parameters.values()
        return MappingProxyType({p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY})

    @property
    def needs_reference(self) -> bool:
        """Whether the reference policy must be asked."""
        return any(name.startswith("ref_") for name in self.inputs)

    @property
    def needs_alternates(self) -> bool:
        """Whether each forget row needs another answer (a refusal, or a plausible alternate)."""
        return any(name.startswith("alternate_") for name in self.inputs)

    @property
    def paired(self) -> bool:
        """Whether it compares a forget answer with an alternate of the same row."""
        return {"logps", "alternate_logps"} <= set(self.inputs)

    @property
    def takes(self) -> Takes:
        """What it is a function of: log-probabilities, logits or hidden states."""
        return "hidden" if "hidden" in self.inputs else "logits" if "logits" in self.inputs else "logps"
