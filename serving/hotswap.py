"""Hot-swap in process: releases on a transformers model, for who serves without an inference server.

    swap = HotSwap(base.model, base=base.fingerprint.digest)
    swap.put("prod", Path("rendered/prod@7"), digest="sha256:…", probe=probe)
    with swap.use("prod") as model:
        model.generate(**inputs)
    with swap.batch(["prod", "research"]) as (model, names):  # a release per row
        model.generate(**inputs, adapter_names=names)

``probe``: `canary(probe_set)`, of the release's audit, or any function of the model that raises.

Verify (digest, shapes, finite values, base) → dry run (every layer built beside the model) → swap → probe → commit,
or the old release again. A slot without a committed release gives nothing: `NoRoute`, never the base. After any
sequence of swaps the model answers, bit for bit, as after a fresh load (tests/laws/test_hotswap_laws.py). For NF4
bases take `efface.adapters.load_base`: bitsandbytes must not repack the weights (see `keep_nf4_unpacked`); nothing
here calls ``state_dict()``, which would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from ..adapters import live
from ..adapters.lora import detach
from .errors import NoRoute, ServingError
from .names import is_channel
from .probe import TOP, ProbeSet, compare
from .server import Prompt

Probe = Callable[[PeftModel], object]
"""Asks the model, which wears the new release, and raises (`ProbeFailed`) when it answers as it should not."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot serves. ``key``: what PEFT calls it; ``digest``: `AdapterFolder.digest`."""

    slot: str
    key: str
    path: Path
    digest: str
    rank: int


@dataclass(frozen=True, slots=True)
class Swapped:
    """A swap that was committed, and the seconds it took: before requests had to wait, while they did, and in it
    the probe."""

    held: Held
    replaced: Held | None
    verify_s: float
    swap_s: float
    probe_s: float


class HotSwap:
    """One base, and one release in each named slot. Safe to use from several threads; they take turns."""

    def __init__(self, model: PreTrainedModel, *, base: str | None = None) -> None:
        """``model``: bare, and this object's from now on. ``base``: its fingerprint, which releases must name.

        Raises `ModelError` when adapters are on it.
        """
        self._sizes = live.layer_sizes(model)
        self._model: PreTrainedModel | PeftModel = model.eval()
        self._layers = live.layers_of(model)
        self._base = base
        self._slots: dict[str, Held] = {}
        self._on: str | None = None
        self._made = 0
        self._writing = threading.Lock()
        self._turn = threading.Lock()
        self._user: int | None = None

    def put(self, slot: str, path: Path, *, digest: str | None = None, probe: Probe | None = None) -> Swapped:
        """Serve the LoRA folder at ``path`` in ``slot``, in place of what is there.

        ``digest``: what the folder must be; None takes it as it is, from a place that you trust. Whatever is raised,
        the slot serves what it did: `InvalidAdapter`, `BaseMismatch`, or what ``probe`` raises.
        """
        _require_slot(slot)
        self._require_outside()
        with self._writing:
            started = time.perf_counter()
            aside = live.read_aside(path, self._layers, self._sizes, digest=digest, base=self._base)
            verified = time.perf_counter()
            self._made += 1
            held = Held(slot, f"efface{self._made:08d}", path, aside.folder.digest, aside.folder.rank)
            with self._taken():
                locked = time.perf_counter()
                probe_s = self._swap(held, aside, probe)
                replaced = self._commit(held)
                done = time.perf_counter()
        return Swapped(held, replaced, verified - started, done - locked, probe_s)

    def drop(self, slot: str) -> None:
        """Serve nothing in ``slot`` any more. Raises `NoRoute` when it does not."""
        self._require_outside()
        with self._writing, self._taken():
            held = self._held(slot)
            del self._slots[slot]
            self._leave(held.key)

    @contextmanager
    def use(self, slot: str) -> Generator[PeftModel]:
        """The model, with ``slot`` answering, to yourself for as long as the block runs. Raises `NoRoute`."""
        self._require_outside()
        with self._taken():
            held, model = self._held(slot), self._peft()
            self._switch(held.key)
            yield model

    @contextmanager
    def batch(self, rows: Sequence[str]) -> Generator[tuple[PeftModel, list[str]]]:
        """The model, and the ``adapter_names`` of a batch whose i-th row is answered by slot ``rows[i]``.

        Raises `NoRoute` for a slot that serves nothing; PEFT's ``__base__`` is no slot.
        """
        self._require_outside()
        with self._taken():
            keys = [self._held(slot).key for slot in rows]
            if not keys:
                raise ServingError("expected a slot for each row of the batch, got none: name them")
            yield self._peft(), keys

    def held(self) -> Mapping[str, Held]:
        """What every slot serves now."""
        return MappingProxyType(dict(self._slots))

    def close(self) -> PreTrainedModel:
        """Take everything off and give the bare base back, bit-equal to what it was."""
        self._require_outside()
        with self._writing, self._taken():
            self._slots, self._on = {}, None
            if isinstance(self._model, PeftModel):
                self._model = detach(self._model)
                self._layers = live.layers_of(self._model)
            return self._model

    def _swap(self, held: Held, aside: live.Aside, probe: Probe | None) -> float:
        """Put it in and probe it; on any error it is out again and what was on is on. Seconds of the probe."""
        before, model = self._on, live.wrap(self._model, self._layers, list(aside.layers))
        if model is not self._model or not all(self._wrapped(name) for name in aside.layers):
            self._model, self._layers = model, live.layers_of(model)
        live.put_in(model, self._layers, held.key, aside)
        started = time.perf_counter()
        try:
            self._switch(held.key)
            if probe is not None:
                probe(model)
        except BaseException:
            self._switch(before)
            live.take_out(model, self._layers, held.key)
            raise
        return time.perf_counter() - started

    def _wrapped(self, name: str) -> bool:
        return isinstance(self._layers[name], LoraLayer)

    def _commit(self, held: Held) -> Held | None:
        replaced = self._slots.get(held.slot)
        self._slots[held.slot] = held
        if replaced is not None:
            live.take_out(self._peft(), self._layers, replaced.key)
        return replaced

    def _leave(self, key: str) -> None:
        if self._on == key:
            self._switch(None)
        live.take_out(self._peft(), self._layers, key)

    def _switch(self, key: str | None) -> None:
        if key is None or key != self._on:
            live.turn_on(self._peft(), self._layers, key)
            self._on = key

    def _held(self, slot: str) -> Held:
        if slot not in self._slots:
            raise NoRoute(slot, "nothing was put into that slot, or what was did not pass")
        return self._slots[slot]

    def _peft(self) -> PeftModel:
        if not isinstance(self._model, PeftModel):
            raise NoRoute("any slot", "nothing was put into one yet")
        return self._model

    @contextmanager
    def _taken(self) -> Generator[None]:
        with self._turn:
            self._user = threading.get_ident()
            try:
                yield
            finally:
                self._user = None

    def _require_outside(self) -> None:
        if self._user == threading.get_ident():
            raise ServingError(
                "expected a call outside of `use` and `batch`, got one inside: end the block first"
            )


def canary(wanted: ProbeSet, tolerance: float | None = None) -> Probe:
    """The probe that a release's audit carries, for `HotSwap.put`. It raises `ProbeFailed`; NaN and infinity fail."""

    def probe(model: PeftModel) -> float:
        return compare(wanted, next_logprobs(model, wanted.prompts), tolerance)

    return probe


def next_logprobs(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Prompt], top: int = TOP
) -> list[dict[int, float]]:
    """Natural log-probabilities of the ``top`` likeliest next tokens after each prompt, one forward each."""
    found: list[dict[int, float]] = []
    for prompt in prompts:
        with torch.inference_mode():
            ids = torch.tensor([list(prompt)], device=model.device)
            logprobs = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
        values, tokens = logprobs.topk(min(top, logprobs.numel()))
        found.append({int(token): float(value) for token, value in zip(tokens, values, strict=True)})
    return found


def _require_slot(slot: str) -> None:
    if not is_channel(slot):
        raise ServingError(
            f"expected a slot name of letters, digits and . _ - (at most 64), got {slot[:80]!r}; such as prod"
        )
