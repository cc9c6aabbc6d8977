"""How a composition becomes what a server loads: one word, part of the composition and of its digest.

    cat            one LoRA by rank concatenation: exact
    live           the adapters themselves, active together: exact, nothing is rendered
    svd:R          one LoRA of rank R at most, the best in Frobenius norm
    error:E        one LoRA of as few ranks as keep the relative Frobenius error within E
    ties:D:R       TIES-merging (arXiv 2306.01708) at density D, then the best of rank R
    dare:D:R       DARE (arXiv 2311.03099) at density D, then the best of rank R
    knots:D:R      KnOTS-TIES (arXiv 2410.19735) at density D, then the best of rank R

All but the first two are approximate. As another render makes another composition, an audit of the exact stack never
carries them: each is audited as it is rendered, and its adapter is sealed with the error (`error_bound`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from .errors import InvalidInput

EXACT = ("cat", "live")
_FORM = re.compile(
    r"cat|live|svd:(?P<svd>{rank})|error:(?P<error>{part})|(?:ties|dare|knots):(?P<density>{part}|1):(?P<rank>{rank})".format(
        rank=r"[1-9][0-9]{0,3}", part=r"0\.[0-9]{0,8}[1-9]"
    ),
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Render:
    """A render, read. ``rank`` and ``error`` are the budgets it names, ``density`` what a merge keeps of each delta."""

    method: str
    rank: int | None = None
    error: Decimal | None = None
    density: Decimal | None = None

    @property
    def exact(self) -> bool:
        """True when what is served computes what the adapters together compute."""
        return self.method in EXACT


def parse_render(text: str) -> Render:
    """``text`` as a `Render`; each has one spelling. Raises InvalidInput for anything else."""
    match = _FORM.fullmatch(text) if isinstance(text, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if match is None:
        expected = "render to be one of cat, live, svd:R, error:E, ties:D:R, dare:D:R, knots:D:R"
        then = "Write a rank R from 1 to 9999 and a decimal E or D such as 0.05, without needless zeros."
        raise InvalidInput(expected, "other text", then)
    rank, error, density = match["svd"] or match["rank"], match["error"], match["density"]
    return Render(
        text.partition(":")[0],
        rank=int(rank) if rank else None,
        error=Decimal(error) if error else None,
        density=Decimal(density) if density else None,
    )
