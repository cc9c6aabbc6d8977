"""Compression of a composition to fewer ranks: the best approximation there is, and its exact error.

    Σ wᵢ·sᵢ·Bᵢ·Aᵢ = B·A,   B = Q_b·R_b,   Aᵀ = Q_a·R_a,   R_b·R_aᵀ = U·S·Vᵀ   (small: ranks × ranks)
    B' = Q_b·U_r·√S_r,     A' = √S_r·V_rᵀ·Q_aᵀ

W itself is never formed. By Eckart and Young no matrices of these ranks come closer in Frobenius norm. Which ranks:
singular values of all modules compete, so a module with little to say gets few (``rank_pattern`` says so), up to a
cap per module (what a server's slot holds) or down to an error budget for the whole adapter, or both. Directions that
are zero to float32 cost nothing to drop: a stack whose true rank is lower comes out lossless.

A compressed adapter is approximate, so an audit of the stack is no audit of it: audit it again. Its bytes depend on
the machine's LAPACK; its digest names what was made, and ``Compressed.error`` what was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .compose import Part, Stack, plan, require_unchanged, stacked_reader
from .errors import CompositionError
from .folder import LoraModule, a_key, b_key, canonical_config, digest_files, tensor_specs
from .lora_files import CONFIG_NAME, WEIGHTS_NAME, open_tensors
from .peft_config import config_bytes
from .staging import new_folder, require_free
from .tensors import TensorSpec, require_finite, safetensors_chunks, write_atomic

_NOISE = 2.0**-23
"""Singular values this far below ‖B‖·‖A‖ are rounding: the stack's A is float32."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed composition on disk. ``files`` maps names to digests; ``digest`` covers both.

    ``error`` is ‖W' - W‖ / ‖W‖ in Frobenius norm over all modules, measured on the float32 factors that were written;
    ``ranks`` the rank of each module (those of rank 0 are left out); ``was`` the largest rank before.
    """

    path: Path
    rank: int
    was: int
    error: float
    ranks: Mapping[str, int]
    digest: str
    files: Mapping[str, str]


Factors = Mapping[str, tuple[Tensor, Tensor]]
"""By module: A (rank, in) and B (out, rank), float32, to be multiplied with scaling 1."""


@dataclass(frozen=True, slots=True)
class Svd:
    """A module's delta as ``u·diag(s)·v``: (out, k), (k,), (k, in) float64. ``left``: Σ s² of what is not in it."""

    u: Tensor
    s: Tensor
    v: Tensor
    left: float = 0.0


def compress(
    parts: Sequence[Part], out: Path, *, rank: int | None = None, error: float | None = None
) -> Compressed:
    """Write the weighted sum of ``parts`` as one PEFT LoRA folder ``out`` of fewer ranks, whole or not at all.

    ``rank``: at most so many per module. ``error``: the largest relative Frobenius error of the whole, in [0, 1);
    with it, as few ranks as meet it. With neither it drops only what is zero. Memory: ``rank`` directions of each
    module (without a ``rank`` all of them), in float64, and one module. Raises as `compose` does, and
    `CompositionError` for a bad budget, or one that ``rank`` cannot meet.
    """
    require_free(out)
    stack = plan(parts)
    kept, lost = reduced(stack, rank=rank, error=error)
    with new_folder(out) as staging:
        files = write_factors(stack, kept, staging)
    left = {name: a.shape[0] for name, (a, _) in kept.items()}
    return Compressed(out, max(left.values()), stack.rank, lost, left, digest_files(files), files)


def reduced(stack: Stack, *, rank: int | None = None, error: float | None = None) -> tuple[Factors, float]:
    """The factors that `compress` writes, and their relative error; raises as it does, nothing is written."""
    _check(rank, error)
    found, total = _decomposed(stack, rank)
    ranks = _allotted({name: svd.s for name, svd in found.items()}, total, error)
    kept = {name: factors(found[name], ranks[name]) for name in sorted(ranks) if ranks[name]}
    lost = math.sqrt(sum(_lost(svd, ranks[name]) for name, svd in found.items()) / total)
    if error is not None and lost > error + 1e-6:
        raise CompositionError(
            f"expected an error of at most {error:g}, got {lost:.4g} at rank {rank}; allow more rank, or more error"
        )
    return kept, lost


def _check(rank: int | None, error: float | None) -> None:
    if rank is not None and (type(rank) is not int or rank < 1):
        raise CompositionError(f"expected a whole rank of at least 1, got {rank!r}; correct it")
    if error is not None and not 0.0 <= error < 1.0:
        raise CompositionError(f"expected a relative error in [0, 1), got {error!r}; correct it")


def _decomposed(stack: Stack, rank: int | None) -> tuple[dict[str, Svd], float]:
    """The singular value decomposition of each module, as far as ``rank`` can use it, and ‖W‖²."""
    found: dict[str, Svd] = {}
    total = 0.0
    with ExitStack() as files:
        read = stacked_reader(stack, [files.enter_context(open_tensors(p.adapter.path)) for p in stack.parts])
        for name in sorted(stack.modules):
            a, b = _both(read, name)
            svd = svd_of(b, a, rank)
            total += float(svd.s.square().sum()) + svd.left
            found[name] = svd
    if not any(len(svd.s) for svd in found.values()):
        raise CompositionError(
            "expected a composition that changes something, got zero; there is nothing to keep"
        )
    return found, total


def _both(read: Callable[[str], Tensor], name: str) -> tuple[Tensor, Tensor]:
    """A and B of a module in float64. Raises `InvalidAdapter` where the scaled A is beyond float32."""
    a = read(a_key(name))
    require_finite(a_key(name), a)
    return a.double(), read(b_key(name)).double()


def svd_of(b: Tensor, a: Tensor, most: int | None = None) -> Svd:
    """Of ``b @ a``, without forming it: its ``most`` largest directions, those left out that are rounding only."""
    (q_b, r_b), (q_a, r_a) = _qr(b), _qr(a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    live = int((s > _NOISE * r_b.norm() * r_a.norm()).sum())
    kept = min(live, live if most is None else most)
    found = signed(q_b(u[:, :kept]), s[:kept].clone(), q_a(v[:kept].T).T)
    return replace(found, left=float(s[kept:].square().sum()))


def _qr(matrix: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Q as the product with it, and R: Q is never formed, which costs as much as the decomposition itself."""
    reflectors, tau = torch.geqrf(matrix)
    size = len(tau)

    def product(columns: Tensor) -> Tensor:
        below = columns.new_zeros(matrix.shape[0] - size, columns.shape[1])
        return torch.ormqr(reflectors[:, :size], tau, torch.cat([columns, below]))

    return product, reflectors[:size].triu()


def signed(u: Tensor, s: Tensor, v: Tensor) -> Svd:
    """The decomposition with the sign of each pair fixed: u's largest entry is positive."""
    if not len(s):
        return Svd(u, s, v)
    largest = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    return Svd(u * largest, s, v * largest.T)


def _allotted(spectra: Mapping[str, Tensor], total: float, error: float | None) -> dict[str, int]:
    """How many directions each module keeps: the smallest of all modules go first, as far as the budget lets them."""
    ranks = {name: len(s) for name, s in spectra.items()}
    if error is None:
        return ranks
    kept = sum(float(s.square().sum()) for s in spectra.values())
    left = error * error * total - (total - kept)
    values = sorted((float(s), name) for name, spectrum in spectra.items() for s in spectrum)
    for value, name in values[: len(values) - 1]:
        left -= value * value
        if left < 0:
            break
        ranks[name] -= 1
    return ranks


def factors(svd: Svd, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) in float32, with the singular values shared between them."""
    root = svd.s[:rank].sqrt()
    return (root[:, None] * svd.v[:rank]).float(), (svd.u[:, :rank] * root).float()


def _lost(svd: Svd, rank: int) -> float:
    """‖B'A' - BA‖² of a module cut to ``rank``, and rounded to float32, as `factors` does.

    What is cut and what is rounded are orthogonal, but for products of two roundings: no second look at BA is needed.
    """
    root = svd.s[:rank].sqrt()
    exact_a, exact_b = root[:, None] * svd.v[:rank], svd.u[:, :rank] * root
    near_a, near_b = (side.double() for side in factors(svd, rank))
    b, a = torch.cat([near_b - exact_b, near_b], dim=1), torch.cat([exact_a, near_a - exact_a])
    r_b, r_a = (torch.linalg.qr(side, mode="r").R for side in (b, a.T))
    return svd.left + float(svd.s[rank:].square().sum()) + float((r_b @ r_a.T).square().sum())


def relative_error(stack: Stack, kept: Factors) -> float:
    """‖B'A' - BA‖ / ‖BA‖ over all modules, rounding included, for any factors.

    Raises `CompositionError` when ``stack`` sums to zero.
    """
    if not (total := squared_distance(stack, {})):
        raise CompositionError(
            "expected a composition that changes something, got zero; there is nothing to keep"
        )
    return math.sqrt(squared_distance(stack, kept) / total)


def squared_distance(stack: Stack, kept: Factors) -> float:
    """‖B'A' - BA‖²: the norm of ``[B', -B]·[A'; A]``, through its small factors. ‖BA‖² for no factors at all."""
    squares = 0.0
    with ExitStack() as files:
        read = stacked_reader(stack, [files.enter_context(open_tensors(p.adapter.path)) for p in stack.parts])
        for name in stack.modules:
            a, b = _both(read, name)
            if name in kept:
                near_a, near_b = kept[name]
                a, b = torch.cat([near_a.double(), a]), torch.cat([near_b.double(), -b], dim=1)
            r_b, r_a = (torch.linalg.qr(side, mode="r").R for side in (b, a.T))
            squares += float((r_b @ r_a.T).square().sum())
    return squares


def write_factors(stack: Stack, kept: Factors, folder: Path) -> dict[str, str]:
    """Write ``kept`` as the LoRA that stands for ``stack`` into the empty ``folder``; returns name → digest.

    Raises `InvalidAdapter` when a part of ``stack`` changed since it was planned.
    """
    modules = {
        name: LoraModule(
            TensorSpec("F32", tuple(a.shape)),
            TensorSpec("F32", tuple(b.shape)),
            alpha=float(a.shape[0]),
            scaling=1.0,
        )
        for name, (a, b) in kept.items()
    }
    tensors = {a_key(name): a for name, (a, _) in kept.items()} | {b_key(n): b for n, (_, b) in kept.items()}
    largest = float(max(module.rank for module in modules.values()))
    config = replace(stack.config, lora_alpha=largest, use_rslora=False)
    text = config_bytes(canonical_config(config, modules))
    weights = write_atomic(
        folder / WEIGHTS_NAME, safetensors_chunks(tensor_specs(modules), tensors.__getitem__, own=True)
    )
    require_unchanged(stack)
    return {CONFIG_NAME: write_atomic(folder / CONFIG_NAME, [text]), WEIGHTS_NAME: weights}
