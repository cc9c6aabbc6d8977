"""What a report claims of the forgetting, in words that a lawyer can hold against it.

A removable adapter *suppresses*; a merge with the base withdrawn *consolidates*; only retraining or dropping a shard
*erases*. The word is never more than what the evidence shows: anything beyond *suppressed* names its evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from .attack import AttackKind, AttackResult

Claim = Literal["suppressed", "consolidated", "erased"]

CLAIMS: tuple[Claim, ...] = get_args(Claim)
"""From the least to the most."""

MEANING: dict[Claim, str] = {
    "suppressed": (
        "The knowledge is suppressed, not erased. The adapter can be removed: whoever holds the base model and "
        "this adapter recovers everything by switching the adapter off. Only retraining without the data, or "
        "dropping the shard that learned it, erases."
    ),
    "consolidated": (
        "The forgetting is consolidated in the weights: there is no adapter left to switch off. That holds only where "
        "the model before is withdrawn everywhere: whoever has both can put it back. Training may bring it back. "
        "It is not erased."
    ),
    "erased": (
        "The model was trained without the data, or the part of it that learned the data was dropped and made again: "
        "these rows left nothing in the weights. What the model knows from other sources it still knows."
    ),
}
NOTHING = "Nothing is suppressed: this composition holds no adapter. Only what stays known was judged."
_SWITCH = (
    "Whoever reaches the base model without the adapter gets everything back; no attack is needed for that."
)
_BEFORE = "Whoever still holds the model from before the merge has everything."
_KINDS: dict[AttackKind, str] = {
    "relearning": "relearning from a part of the data",
    "precision": "other precisions",
    "prompt": "other wordings and prompts",
    "sampling": "asking many times",
    "adapter": "turning or taking off adapters",
}


def without_attack(claim: Claim) -> list[str]:
    """What needs no attack, for a claim of less than erased."""
    return {"suppressed": [_SWITCH], "consolidated": [_BEFORE], "erased": list[str]()}[claim]


def untested(attacks: Sequence[AttackResult]) -> str:
    """Which kinds of attack nobody tried for this report; "" when all were."""
    tried = {one.kind for one in attacks}
    missing = [words for kind, words in _KINDS.items() if kind not in tried]
    return f"Not tried for this report: {', '.join(missing)}." if missing else ""
