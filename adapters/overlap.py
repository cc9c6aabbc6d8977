"""How much adapters get in each other's way, from their factors alone: before anything is stacked or measured.

For deltas Δᵢ = wᵢ·sᵢ·Bᵢ·Aᵢ over all modules they share:

    cosine       ⟨Δᵢ, Δⱼ⟩ / (‖Δᵢ‖·‖Δⱼ‖)            1: the same change, -1: its opposite, 0: nothing in common
    projection   ⟨Δᵢ, Δⱼ⟩ / ‖Δᵢ‖²                  what Δⱼ adds along Δᵢ: below 0 it undoes part of it
    inputs       Σ cos²θ / min(rᵢ, rⱼ), θ the principal angles of the row spaces of Aᵢ and Aⱼ: 1 they listen to the same
    outputs      the same of the column spaces of Bᵢ and Bⱼ: 1 they write to the same

All pairs come out of two Gram matrices per module, ⟨Δᵢ, Δⱼ⟩ = Σ (A·Aᵀ ∘ Bᵀ·B) over the block (i, j); no delta is
formed.
A forecast, not a measurement: whether a request rebounds is for the audit of the stack to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .compose import Part, Stack, plan
from .folder import a_key, b_key
from .lora_files import open_tensors

Forecast = Literal["undoes", "strengthens", "shares", "apart"]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two adapters of a composition, by digest and folder. Figures as in the module's text; 0 without a common module.

    ``projection`` is of the second on the first, ``projection_back`` of the first on the second.
    """

    first: str
    second: str
    folders: tuple[Path, Path]
    cosine: float
    projection: float
    projection_back: float
    inputs: float
    outputs: float

    @property
    def worst(self) -> tuple[float, float]:
        """Least first: what is undone of either, then how little they share."""
        return min(self.projection, self.projection_back, 0.0), -min(self.inputs, self.outputs)

    @property
    def forecast(self) -> Forecast:
        """For the worse of the two: `undoes`, `strengthens`, `shares` (the same inputs and outputs) or `apart`."""
        worse = min(self.projection, self.projection_back)
        if worse <= -UNDOES:
            return "undoes"
        if max(self.projection, self.projection_back) >= UNDOES:
            return "strengthens"
        return "shares" if min(self.inputs, self.outputs) >= SHARES else "apart"


UNDOES = 0.05
"""A twentieth of a delta: what weights of 0.95 or 1.05 would do to it."""
SHARES = 0.25
"""Random subspaces of rank 16 in 576 dimensions share 0.03."""


def overlaps(parts: Sequence[Part]) -> list[Overlap]:
    """Every pair of ``parts``, by digest. Raises as `efface.adapters.compose.plan` does; one part has no pairs."""
    stack = plan(parts)
    count = len(stack.parts)
    inner, inputs, outputs, most = (torch.zeros(count, count, dtype=torch.float64) for _ in range(4))
    with ExitStack() as files:
        readers = [files.enter_context(open_tensors(part.adapter.path)) for part in stack.parts]
        for name in sorted({name for part in stack.parts for name in part.adapter.modules}):
            having = [i for i, part in enumerate(stack.parts) if name in part.adapter.modules]
            a = [_scaled_a(stack, i, readers[i](a_key(name)), name) for i in having]
            b = [readers[i](b_key(name)).double() for i in having]
            at = torch.tensor(having)
            grid = (at[:, None], at[None, :])
            inner[grid] += _blocks(_gram([side.T for side in a]) * _gram(b), [len(side) for side in a])
            spans = [(_span(side.T), _span(other)) for side, other in zip(a, b, strict=True)]
            for found, side in ((inputs, [s for s, _ in spans]), (outputs, [s for _, s in spans])):
                found[grid] += _blocks(_gram(side).square(), [s.shape[1] for s in side])
            ranks = torch.tensor([float(len(side)) for side in a], dtype=torch.float64)
            most[grid] += torch.minimum(ranks[:, None], ranks[None, :])
    return [_pair(stack, i, j, inner, inputs, outputs, most) for i, j in combinations(range(count), 2)]


def _pair(
    stack: Stack, i: int, j: int, inner: Tensor, inputs: Tensor, outputs: Tensor, most: Tensor
) -> Overlap:
    both, own, other = (float(value) for value in (inner[i, j], inner[i, i], inner[j, j]))
    shared = float(most[i, j])
    return Overlap(
        first=stack.parts[i].adapter.digest,
        second=stack.parts[j].adapter.digest,
        folders=(stack.parts[i].adapter.path, stack.parts[j].adapter.path),
        cosine=both / (own * other) ** 0.5 if own and other else 0.0,
        projection=both / own if own else 0.0,
        projection_back=both / other if other else 0.0,
        inputs=float(inputs[i, j]) / shared if shared else 0.0,
        outputs=float(outputs[i, j]) / shared if shared else 0.0,
    )


def _scaled_a(stack: Stack, index: int, a: Tensor, name: str) -> Tensor:
    part = stack.parts[index]
    return a.double() * (float(part.weight) * part.adapter.modules[name].scaling)


def _gram(columns: Sequence[Tensor]) -> Tensor:
    """Inner products of all columns of all parts."""
    joined = torch.cat(list(columns), dim=1)
    return joined.T @ joined


def _blocks(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """The sum of each block of a matrix whose rows and columns come in groups of ``sizes``."""
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    member = torch.nn.functional.one_hot(owner, len(sizes)).to(values.dtype)
    return member.T @ values @ member


def _span(columns: Tensor) -> Tensor:
    """An orthonormal basis of the column space; directions that are zero to float32 do not count."""
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, s > s.max().clamp(min=1e-300) * 1e-6]
