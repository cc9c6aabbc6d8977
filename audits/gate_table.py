"""Which figure of which group each threshold bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .types import FORGET_SIDE, GROUPS, Group


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
