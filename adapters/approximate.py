"""Merges that resolve conflicts between adapters instead of adding them: opt-in, approximate, audited on their own.

    ties    each delta keeps the entries largest in size (a share ``density``), each entry of the sum the sign with more
            weight, and the mean of what agrees with it (arXiv 2306.01708, per module as PEFT does)
    dare    each delta keeps a random share ``density`` of its entries, times 1/density; then the sum (arXiv 2311.03099)
    knots   [Δ₁ … Δₙ] = U·S·[V₁ … Vₙ], TIES on the Vᵢ, and back: U·S·V (arXiv 2410.19735); never forms a delta

and then the closest LoRA of the rank given. They were made for adapters of different *skills*, where a mean is wanted:
the sum of N that forget becomes about an Nth of it. The exact stack is the default here; ``error`` says how far from it
one of these is, which for TIES can be near 1. PEFT's own functions do the merging; its ``ties_svd`` is the oracle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch
from peft.utils.merge_utils import dare_linear, ties
from torch import Tensor

from .compose import Part, Stack, plan
from .compress import Factors, Svd, factors, relative_error, signed, svd_of, write_factors
from .errors import CompositionError
from .folder import a_key, b_key, digest_files
from .lora_files import open_tensors
from .staging import new_folder, require_free

Merge = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, float], Svd]
"""Scaled A (r, in) and B (out, r) of each adapter in float64, their weights, the density → the merged delta."""


@dataclass(frozen=True, slots=True)
class Approximated:
    """An approximate merge on disk. ``error`` is ‖W' - W‖ / ‖W‖ against the exact weighted sum, over all modules."""

    path: Path
    rank: int
    error: float
    digest: str


def approximate(
    parts: Sequence[Part], out: Path, method: str, *, density: Decimal | float, rank: int
) -> Approximated:
    """Merge ``parts`` by ``method`` (a key of `METHODS`) into the new LoRA folder ``out`` of ``rank`` at most.

    The result depends on the set of (adapter, weight) alone: what DARE drops is drawn from the adapters' digests.
    Raises as `efface.adapters.compose.compose` does, and `CompositionError` for another method, rank or density.
    """
    require_free(out)
    stack = plan(parts)
    kept, lost = merged(stack, method, density=density, rank=rank)
    with new_folder(out) as staging:
        files = write_factors(stack, kept, staging)
    return Approximated(out, max(a.shape[0] for a, _ in kept.values()), lost, digest_files(files))


def merged(stack: Stack, method: str, *, density: Decimal | float, rank: int) -> tuple[Factors, float]:
    """The factors that `approximate` writes, and their error; raises as it does, nothing is written."""
    if method not in METHODS:
        raise CompositionError(f"expected a method of {', '.join(METHODS)}, got {method!r}; choose one")
    if not 0 < density <= 1 or rank < 1:
        raise CompositionError(
            f"expected a density in (0, 1] and a rank from 1, got {density} and {rank}; correct it"
        )
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as files, torch.random.fork_rng(devices=[]):
        readers = [files.enter_context(open_tensors(part.adapter.path)) for part in stack.parts]
        for name in sorted(stack.modules):
            having = [i for i, part in enumerate(stack.parts) if name in part.adapter.modules]
            scales = [stack.parts[i].adapter.modules[name].scaling for i in having]
            a = [readers[i](a_key(name)).double() * scale for i, scale in zip(having, scales, strict=True)]
            b = [readers[i](b_key(name)).double() for i in having]
            weights = torch.tensor([float(stack.parts[i].weight) for i in having], dtype=torch.float64)
            torch.manual_seed(_seed(name, [stack.parts[i].adapter.digest for i in having]))
            svd = METHODS[method](a, b, weights, float(density))
            if most := min(rank, len(svd.s)):
                kept[name] = factors(svd, most)
    if not kept:
        raise CompositionError("expected a merge that changes something, got zero; there is nothing to keep")
    return kept, relative_error(stack, kept)


def _ties(a: Sequence[Tensor], b: Sequence[Tensor], weights: Tensor, density: float) -> Svd:
    return _svd(_elected([right @ left for left, right in zip(a, b, strict=True)], weights, density))


def _dare(a: Sequence[Tensor], b: Sequence[Tensor], weights: Tensor, density: float) -> Svd:
    deltas = [right @ left for left, right in zip(a, b, strict=True)]
    return _svd(
        dare_linear(deltas, weights, density)
        if density < 1
        else (torch.stack(deltas) * _wide(weights)).sum(0)
    )


def _knots(a: Sequence[Tensor], b: Sequence[Tensor], weights: Tensor, density: float) -> Svd:
    """With Bᵢ = Q·Rᵢ and Aᵢ = Lᵢ·Pᵢ (P with orthonormal rows) the SVD is that of the small [R₁·L₁ … Rₙ·Lₙ]."""
    q, r = torch.linalg.qr(torch.cat(list(b), dim=1))
    thin = [torch.linalg.qr(side.T) for side in a]
    blocks = torch.split(r, [side.shape[0] for side in a], dim=1)
    u, s, w = torch.linalg.svd(
        torch.cat([rs @ p.R.T for rs, p in zip(blocks, thin, strict=True)], 1), full_matrices=False
    )
    parts = torch.split(w, [p.Q.shape[1] for p in thin], dim=1)
    aligned = [part @ p.Q.T for part, p in zip(parts, thin, strict=True)]
    return svd_of((q @ u) * s, _elected(aligned, weights, density))


METHODS: dict[str, Merge] = {"ties": _ties, "dare": _dare, "knots": _knots}


def _elected(tensors: Sequence[Tensor], weights: Tensor, density: float) -> Tensor:
    """PEFT's TIES; at density 1 nothing is trimmed, of which PEFT would warn."""
    return ties(list(tensors), weights, density) if density < 1 else _untrimmed(tensors, weights)


def _untrimmed(tensors: Sequence[Tensor], weights: Tensor) -> Tensor:
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge

    stacked = torch.stack(list(tensors))
    return disjoint_merge(stacked * _wide(weights), calculate_majority_sign_mask(stacked))


def _wide(weights: Tensor) -> Tensor:
    return weights[:, None, None]


def _svd(delta: Tensor) -> Svd:
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    live = int((s > s.max() * 2.0**-40).sum())
    return signed(u[:, :live], s[:live], v[:live])


def _seed(module: str, digests: Sequence[str]) -> int:
    text = "\n".join([module, *digests]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
