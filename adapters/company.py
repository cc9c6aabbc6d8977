"""Train an adapter in company: other adapters on, frozen and unmerged, a random draw of them from step to step.

So that it forgets alone and in any stack. The other adapters are tensors beside the model's layers, added to what a
layer puts out while they are on; no layer of the model, PEFT's nor the base's, knows of them. Gradients pass through
them to earlier layers and never into them. Off (in probes, in the reference, after training) nothing of them is left.

The reference policy does not change with company: it stays the base and what the adapter is trained on. So the goal
is the same in every company (the forget rows as far below the base as alone, the retain rows as the base has them); a
reference in company would excuse what the company breaks and ask to forget once more what it forgets already.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import linear

from .errors import TrainingError
from .folder import AdapterFolder, a_key, b_key
from .lora_files import open_tensors

Factors = tuple[Tensor, Tensor]
"""A [r, in] and B [out, r], LoRA's scaling in B."""


def draw(seed: int, step: int, count: int, *, share: float, every: int = 1) -> tuple[int, ...]:
    """Which of ``count`` adapters are on in ``step`` (the first is 0), in order.

    With probability ``share`` there is company: of a size from 1 to ``count``, each as likely, and of that size any
    set as likely; else there is none. The same for ``every`` steps. It depends on nothing but the arguments, so a
    resumed run goes on as the whole one would, and (Python promises that much) on every version of Python.
    """
    draws = random.Random(f"efface/company/{seed}/{step // every}")  # noqa: S311 - a draw, no secret
    if not count or draws.random() >= share:
        return ()
    size = 1 + int(draws.random() * count)
    ranked = sorted(range(count), key=[draws.random() for _ in range(count)].__getitem__)
    return tuple(sorted(ranked[:size]))


@dataclass(slots=True)
class Company:
    """Adapters that may be on in training. ``layers``: by module name in the base, the factors of each that has it,
    by its place among the ``count`` adapters."""

    layers: Mapping[str, Mapping[int, Factors]]
    count: int
    seed: int
    share: float
    every: int
    on: tuple[int, ...] = ()
    _joined: dict[str, Factors | None] = field(default_factory=dict[str, "Factors | None"])

    def come(self, step: int) -> None:
        """Switch on the draw of ``step``, and nothing else."""
        self._switch(draw(self.seed, step, self.count, share=self.share, every=self.every))

    def leave(self) -> None:
        """Switch all off."""
        self._switch(())

    def factors(self, module: str, dtype: torch.dtype) -> Factors | None:
        """What is on at ``module``, side by side as one LoRA in ``dtype``; None where nothing is."""
        if not self.on:
            return None
        if module not in self._joined:
            there = self.layers[module]
            found = [there[i] for i in self.on if i in there]
            self._joined[module] = (
                (torch.cat([a for a, _ in found]).to(dtype), torch.cat([b for _, b in found], 1).to(dtype))
                if found
                else None
            )
        return self._joined[module]

    def _switch(self, on: tuple[int, ...]) -> None:
        if on != self.on:
            self.on = on
            self._joined.clear()


def gathered(
    model: PeftModel, others: Sequence[AdapterFolder], *, seed: int, share: float, every: int
) -> Company | None:
    """``others`` as company for training on ``model``, on its device in float32; None where there are none.

    Raises :class:`TrainingError` for one on the output head: losses read that without running it.
    """
    if not others or not share:
        return None
    base: Any = model.get_base_model()
    head = {name for name, module in base.named_modules() if module is base.get_output_embeddings()}
    layers: dict[str, dict[int, Factors]] = {}
    with ExitStack() as files:
        for i, other in enumerate(others):
            if on_head := head & other.modules.keys():
                raise TrainingError(
                    f"{other.path}: expected company on layers before the output head, got {on_head.pop()}: "
                    "leave it out of the company"
                )
            read = files.enter_context(open_tensors(other.path))
            for name, lora in other.modules.items():
                a, b = read(a_key(name)).float(), read(b_key(name)).float() * lora.scaling
                layers.setdefault(name, {})[i] = (a.to(model.device), b.to(model.device))
    return Company(layers, len(others), seed, share, every)


@contextmanager
def in_company(model: PeftModel, company: Company | None) -> Generator[None]:
    """Inside the block, layers of ``model`` add what ``company`` has on at the time; afterwards they are as before.

    The innermost of such blocks: those of `efface.adapters.fast` replace what a layer runs, company included.
    """
    if company is None:
        yield
        return
    modules = dict(model.get_base_model().named_modules())
    patched = [(name, modules[name], vars(modules[name]).get("forward")) for name in company.layers]
    for name, module, _ in patched:
        module.forward = partial(_forward, company, name, module.forward)
    try:
        yield
    finally:
        company.leave()
        for _, module, before in patched:
            if before is None:
                del module.forward
            else:
                module.forward = before


def _forward(company: Company, name: str, plain: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    y = plain(x, *args, **kwargs)
    factors = company.factors(name, x.dtype)
    if factors is None:
        return y
    a, b = factors
    return y + linear(linear(x, a), b).to(y.dtype)
