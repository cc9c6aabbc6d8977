"""Keep a new adapter out of the subspaces that other adapters use: orthogonal by penalty, or by where it starts.

An adapter with factors A [r, in] and B [out, r] reads the row space of A and writes the column space of B. Against
adapters i with orthonormal bases Qᵢ [kᵢ, in] of their row spaces:

    penalty      Σᵢ ‖A Qᵢᵀ‖², summed over layers: O-LoRA's (arXiv 2310.14152, eq. 6, squared as printed; its code sums
                 absolute values) with Aᵢ made orthonormal, so that the size that an adapter happens to have does not
                 weigh. The same of Bᵀ and their column spaces on request: interference may sit there (arXiv 2604.16826)
    null space   A starts as PEFT draws it, less its part in all Qᵢ together, each row at its drawn length: Aᵢ·Aᵀ = 0
                 at first, and throughout when A is frozen (as LoRI does with random A, arXiv 2504.07448)

Orthogonal row spaces keep the factors apart, not the activations: every adapter still answers every input that has a
part in its row space. Whether that helps a stack is measured, not implied: docs/guide.md, "Adapters that stack".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from .errors import TrainingError
from .folder import AdapterFolder, a_key, b_key, read_adapter
from .lora import TRAINED, require_fit
from .lora_files import open_tensors

_FLOOR = 1e-7
"""Of the largest singular value (1 for a basis): below it a direction is rounding of float32 weights."""

Reader = Callable[[str], Tensor]


def span(rows: Tensor) -> Tensor:
    """An orthonormal basis of the row space of ``rows`` [r, n]: float64 [k, n], k its rank in float32."""
    _, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
    return v[s > s.max().clamp(min=1e-300) * _FLOOR]


def extended(basis: Tensor, rows: Tensor) -> Tensor:
    """``basis`` [k, n] (orthonormal) and what ``rows`` [r, n] add to its space, orthonormal too."""
    _, s, v = torch.linalg.svd(project_out(span(rows), basis), full_matrices=False)
    new = project_out(v[s > _FLOOR], basis)
    return torch.cat([basis, new / new.norm(dim=1, keepdim=True)])


def project_out(rows: Tensor, basis: Tensor) -> Tensor:
    """``rows`` [r, n] without their part in the space of ``basis`` [k, n] (orthonormal), float64.

    Twice: once leaves rounding of the size of the part that went, which may be all of it.
    """
    found = rows.double()
    for _ in range(2):
        found = found - (found @ basis.T) @ basis
    return found


def null_space_start(a: Tensor, basis: Tensor) -> Tensor:
    """``a`` [r, n] moved into the orthogonal complement of ``basis`` [k, n], each row at the length it had.

    ``a``'s own dtype. The caller sees to it that n - k >= r; a random ``a`` keeps its rank then.
    """
    found = project_out(a, basis)
    length = a.double().norm(dim=1, keepdim=True) / found.norm(dim=1, keepdim=True)
    return (found * length).to(a.dtype)


def shared(a: Tensor, rows: Tensor) -> Tensor:
    """‖``a`` ``rows``ᵀ‖² of ``a`` [r, n] and ``rows`` [k, n]: over orthonormal rows, the squared length of ``a`` in
    their space. A differentiable float []."""
    return (a @ rows.T).square().sum()


def squeezed(rows: Tensor) -> Tensor:
    """At most n rows with the Gram matrix RᵀR of ``rows`` [k, n], so that `shared` with them is the same."""
    return rows if rows.shape[0] <= rows.shape[1] else torch.linalg.qr(rows, mode="r").R


def read_others(model: torch.nn.Module, folders: Sequence[Path]) -> list[AdapterFolder]:
    """The adapters in ``folders`` (of PEFT), checked against ``model``.

    Raises `InvalidAdapter`, `BaseMismatch`, and :class:`TrainingError` for an adapter that is named twice.
    """
    found = [read_adapter(Path(folder)) for folder in folders]
    first: dict[str, Path] = {}
    for adapter in found:
        if adapter.digest in first:
            raise TrainingError(
                f"expected each other adapter once, got {adapter.digest} in {first[adapter.digest]} and in "
                f"{adapter.path}: leave one out"
            )
        first[adapter.digest] = adapter.path
        require_fit(model, adapter)
    return found


@torch.no_grad()
def initialise_null_space(model: PeftModel, folders: Sequence[Path]) -> None:
    """Start A of the fresh adapter of ``model`` in the null space of the row spaces of the adapters in ``folders``.

    Layers that none of them has keep the start they had. Raises :class:`TrainingError`, changing nothing, when a
    layer has fewer free input directions than the adapter has ranks, or for an adapter that is not fresh; and what
    `read_others` raises.
    """
    require_fresh(model)
    others = read_others(model.get_base_model(), folders)
    starts: list[tuple[Tensor, Tensor]] = []
    short: dict[str, tuple[int, int]] = {}
    with ExitStack() as files:
        readers = [(other, files.enter_context(open_tensors(other.path))) for other in others]
        for name, layer in _trained_layers(model):
            a: Tensor = layer.lora_A[TRAINED].weight
            basis = torch.zeros(0, a.shape[1], dtype=torch.float64)
            for rows in _rows(readers, a_key(name), name):
                basis = extended(basis, rows)
            free = a.shape[1] - len(basis)
            if free < a.shape[0]:
                short[name] = (free, a.shape[1])
            elif len(basis):
                starts.append((a, null_space_start(a.cpu(), basis)))
    if short:
        raise _used_up(short, len(others), model.peft_config[TRAINED])
    for a, start in starts:
        a.copy_(start)


@dataclass(frozen=True, slots=True)
class Apart:
    """The penalty of a run: matrices in training beside the rows that they are kept from, layer by layer."""

    inputs: tuple[tuple[Tensor, Tensor], ...]
    outputs: tuple[tuple[Tensor, Tensor], ...]
    input_weight: float
    output_weight: float

    def penalty(self) -> Tensor:
        """The weighted sum over layers and adapters, a differentiable float []."""
        found = [self.input_weight * shared(a, rows) for a, rows in self.inputs]
        found += [self.output_weight * shared(b.T, rows) for b, rows in self.outputs]
        return torch.stack(found).sum() if found else torch.zeros(())


def kept_apart(
    model: PeftModel, others: Sequence[AdapterFolder], *, inputs: float, outputs: float
) -> Apart | None:
    """The penalty that keeps the adapter in training of ``model`` apart from ``others``; None without any weight.

    ``inputs`` weighs A against their row spaces, ``outputs`` B against their column spaces. Its rows are held in
    float32 on the model's device: at most in² (out²) values a layer, however many adapters there are.
    """
    if not others or not (inputs or outputs):
        return None
    sides: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
    with ExitStack() as files:
        readers = [(other, files.enter_context(open_tensors(other.path))) for other in others]
        for name, layer in _trained_layers(model):
            if inputs:
                rows = [span(a) for a in _rows(readers, a_key(name), name)]
                _add(sides[0], layer.lora_A[TRAINED].weight, rows)
            if outputs:
                rows = [span(b.T) for b in _rows(readers, b_key(name), name)]
                _add(sides[1], layer.lora_B[TRAINED].weight, rows)
    return Apart(tuple(sides[0]), tuple(sides[1]), inputs, outputs)


def require_fresh(model: PeftModel) -> None:
    """Raise :class:`TrainingError` unless the adapter in training adds nothing yet."""
    if any(bool(layer.lora_B[TRAINED].weight.any()) for _, layer in _trained_layers(model)):
        raise TrainingError("expected a fresh adapter, got one that is trained or initialised otherwise")


def _add(pairs: list[tuple[Tensor, Tensor]], learning: Tensor, rows: Sequence[Tensor]) -> None:
    if rows:
        pairs.append((learning, squeezed(torch.cat(list(rows))).to(learning)))


def _rows(readers: Sequence[tuple[AdapterFolder, Reader]], key: str, module: str) -> list[Tensor]:
    """Tensor ``key`` of each adapter that has ``module``."""
    return [read(key) for other, read in readers if module in other.modules]


def _trained_layers(model: PeftModel) -> list[tuple[str, Any]]:
    """The layers that the adapter in training is on, by their names in the base."""
    return [
        (name, layer)
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and TRAINED in layer.lora_A
    ]


def _used_up(short: dict[str, tuple[int, int]], others: int, config: Any) -> TrainingError:
    name, (free, width) = min(short.items(), key=lambda item: item[1])
    more = f" (and {len(short) - 1} layers more have too few)" if len(short) > 1 else ""
    ways = [f"lower rank to at most {free}"] if free else []
    ways += ["consolidate the other adapters into fewer", "give fewer of them", "start as PEFT does"]
    return TrainingError(
        f"the null space is used up: expected {config.r} input directions (the rank) that none of {others} other "
        f"adapters reads, but {name} has {free} of {width} left{more}: {', '.join(ways[:-1])}, or {ways[-1]} "
        "(initialisation default, with stacking.orthogonal as a penalty)"
    )
