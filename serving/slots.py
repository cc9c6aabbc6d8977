"""What a server's LoRA slot holds."""

from __future__ import annotations

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for ``--max-lora-rank``."""


def least_slot(rank: int, largest: int = VLLM_RANKS[-1]) -> int | None:
    """The least of `VLLM_RANKS` that holds ``rank``; None when none does, or ``rank`` is above ``largest``."""
    if not 1 <= rank <= min(largest, VLLM_RANKS[-1]):
        return None
    return next(size for size in VLLM_RANKS if size >= rank)
