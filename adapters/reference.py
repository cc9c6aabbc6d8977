"""The reference policy, asked once before training: the base plus the adapters that the new one is stacked on.

Never a second model: the adapter in training is switched off (`lora.reference_policy`). What was answered is kept
by digest, so that rounds and further requests on the same base and stack do not ask again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from torch import Tensor

from .answers import Answers, answers
from .encode import Encoded
from .lora import reference_policy
from .objectives import OBJECTIVES
from .settings import TrainSettings
from .steps import Rows, Steps

# Rows of one forward. Part of what decides the low bits of an answer, and so of every adapter.
CHUNK = 16


@dataclass(frozen=True, slots=True)
class Reference:
    """What the losses compare with; empty where they need nothing.

    All on the CPU. ``sums``: sequence log-probability of a row, a float tensor []. ``hidden``: last hidden states
    [|y|, H]; the base's output head is frozen, so they stand for its logits at a hundredth of the size. ``layer``:
    outputs [|y|, H] of the layer that the settings name.
    """

    sums: Mapping[Encoded, Tensor]
    hidden: Mapping[Encoded, Tensor]
    layer: Mapping[Encoded, Tensor]


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """Answers of one reference policy, by the digest of what was asked in one forward.

    ``policy`` is the digest of what answers (base, precision, adapters and weights): a cache is of one policy.
    Whole forwards are kept, not rows: which rows share a forward decides the last bits of the answer, and an
    adapter must not depend on what was trained before it.
    """

    policy: str
    limit: int = 1 << 30
    kept: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def keep(self, key: str, found: tuple[Tensor, ...]) -> None:
        """Take in the answers of one forward; beyond ``limit`` bytes the oldest go."""
        self.kept[key] = found
        while len(self.kept) > 1 and _bytes(self.kept.values()) > self.limit:
            del self.kept[next(iter(self.kept))]


def ask_reference(
    model: PeftModel,
    steps: Steps,
    settings: TrainSettings,
    *,
    pad_id: int,
    cache: ReferenceCache | None = None,
) -> Reference:
    """Run the reference policy over the rows of ``steps`` that the losses of ``settings`` compare with."""
    model.eval()
    cache = ReferenceCache("") if cache is None else cache
    inputs = OBJECTIVES[settings.objective].inputs
    found: dict[str, dict[Encoded, Tensor]] = {"sums": {}, "hidden": {}, "layer": {}}
    for kind, rows, needed in (
        ("sums", steps.forget, "ref_logps" in inputs),
        ("sums", steps.alternates, "ref_alternate_logps" in inputs),
        ("hidden", steps.forget, "ref_logits" in inputs),
        ("hidden", steps.retain, settings.retain_term == "kl"),
        ("layer", steps.retain, settings.retain_term == "hidden"),
    ):
        if needed:
            layer = settings.layer if kind == "layer" else None
            for chunk in chunks(rows, CHUNK):
                found[kind].update(zip(chunk, _ask(model, chunk, kind, layer, pad_id, cache), strict=True))
    return Reference(**found)


def ask_hidden(model: PeftModel, rows: Rows, *, pad_id: int, cache: ReferenceCache) -> dict[Encoded, Tensor]:
    """Last hidden states [|y|, H] of the reference policy at the answers of ``rows``, on the CPU."""
    found: dict[Encoded, Tensor] = {}
    for chunk in chunks(rows, CHUNK):
        found.update(zip(chunk, _ask(model, chunk, "hidden", None, pad_id, cache), strict=True))
    return found


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Consecutive slices of ``rows`` of at most ``size``."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


@torch.no_grad()
def _ask(
    model: PeftModel, rows: Rows, kind: str, layer: int | None, pad_id: int, cache: ReferenceCache
) -> tuple[Tensor, ...]:
    key = _digest(cache.policy, kind, layer, rows)
    if key not in cache.kept:
        with reference_policy(model):
            found = _KINDS[kind](answers(model, rows, pad_id, layer=layer))
        cache.keep(key, found)
        return found
    return cache.kept[key]


def _bytes(kept: Iterable[tuple[Tensor, ...]]) -> int:
    return sum(tensor.nbytes for tensors in kept for tensor in tensors)


def _by_row(values: Tensor, found: Answers) -> tuple[Tensor, ...]:
    return tuple(part.clone() for part in values.cpu().split(found.lengths.tolist()))


_KINDS: Mapping[str, Callable[[Answers], tuple[Tensor, ...]]] = {
    "sums": lambda found: tuple(found.logps.sums.cpu().unbind()),
    "hidden": lambda found: _by_row(found.hidden, found),
    "layer": lambda found: _by_row(found.layer, found),
}


def _digest(policy: str, kind: str, layer: int | None, rows: Rows) -> str:
    asked = [(row.prompt, row.answer, row.counted) for row in rows]
    return hashlib.sha256(repr((policy, kind, layer, asked)).encode()).hexdigest()
