"""Whether a server will hold a stack, before minutes go into training what it would not."""

from __future__ import annotations

from ..adapters.compose import plan
from ..registry import Composition, Registry, parse_render
from ..serving.render import folder_parts, slot_rank


def require_slot(
    registry: Registry, below: Composition, more: int, how: str, *, max_rank: int | None = None
) -> None:
    """Raise `RenderError` where ``below`` and ``more`` rank on every layer, rendered ``how``, is more than it holds.

    Reads headers only. ``max_rank``: the server's ``--max-lora-rank``, vLLM's largest by default. What decides its rank
    by itself (an error budget, a merge) is not known yet and passes here.
    """
    asked = parse_render(how)
    if asked.method == "live" or (not asked.exact and asked.rank is None):
        return
    parts = folder_parts(registry, below)
    rank = more + (plan(parts).rank if parts else 0)
    slot_rank(rank if asked.rank is None else min(asked.rank, rank), max_rank=max_rank)
