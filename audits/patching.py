"""Activation patching: do the hidden states of the unlearned model still carry the answer?

In the form of the Unlearning Depth Score (arXiv 2605.24614, section 3): the *target* is the model that knows (here
the base, adapters disabled), the *source* the unlearned one (adapters on). At one layer at a time, the output of the
target's layer is replaced by the source's at the positions that predict the answer, all else stays the target's,
and what matters is how far the answer's log-probability falls. Where the remaining layers still find the answer,
the knowledge was hidden and not removed. `depth.py` makes one number of it.

Departures: UDS patches the tokens of an entity that was marked by hand; here these are the row's counted tokens, so
that rows from `focus` (keywords) come nearest and plain rows take the whole answer. UDS needs a retain-only model
for its baseline; `source="withheld"` offers one that needs none: the target itself that was not asked, seeing the
first and the last token of the prompt and the answer. Scores with either baseline compare among themselves only.
UDS patches plain "Question: … Answer: …" prompts; here they are those of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..adapters.encode import Batch, Encoded, collate, pad_id
from ..adapters.logprobs import token_logprobs
from ..adapters.lora import disabled
from ..adapters.model import Base
from .errors import AuditError, MissingReference
from .forced import Method, Model, by_length, require_tokenizer

Source = Literal["adapters", "withheld"] | Base
Hook = Callable[[int, Tensor], Tensor | None]
# Tokens whose logits exist at a time.
_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Patched:
    """One row: ``target``, the mean log-probability of its counted answer tokens under the target, and by how much
    it falls with each of the ``layers`` patched, in nats per token (below 0: it rises)."""

    id: str
    target: float
    layers: tuple[int, ...]
    drops: tuple[float, ...]


@torch.no_grad()
def patched_drops(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    method: Method,
    *,
    source: Source = "adapters",
    layers: Sequence[int] | None = None,
) -> list[Patched]:
    """Patch each of ``layers`` (None: all) of ``model``, its adapters disabled, with the states of ``source``:
    the model with its adapters as they are, the model that was not asked, or another one of the same shape.

    Results in the order of ``rows``. A drop is exactly 0 where the source is the target. Costs a forward of every
    row per layer, and two more; of source states only those at answer positions are kept.

    Raises `MissingReference` for a model without adapters and no other ``source``, `AuditError` for a model whose
    decoder has no list of layers, for a source of another shape or tokenizer, layers that are not there, and
    figures that are not finite, naming the row; `OutOfMemory`.
    """
    stack = _layers_of(model)
    picked = _picked(layers, len(stack))
    states = _source(model, tokenizer, source, picked)

    def measure(batch: Batch, rows: Sequence[Encoded]) -> list[Tensor]:
        given = states(batch, rows)
        with disabled(model):
            plain = _logprobs(model, batch, picked, lambda _l, _h: None)
            columns = [plain]
            for layer, patch in zip(picked, given, strict=True):
                columns.append(plain - _logprobs(model, batch, [layer], lambda _l, _h, patch=patch: patch))
        return columns

    found = by_length(tokenizer, rows, method, model.device, measure)
    return [
        Patched(row.id, float(columns[0].mean()), picked, tuple(float(drop.mean()) for drop in columns[1:]))
        for row, columns in zip(rows, found, strict=True)
    ]


def _source(
    model: Model, tokenizer: PreTrainedTokenizerBase, source: Source, picked: tuple[int, ...]
) -> Callable[[Batch, Sequence[Encoded]], list[Tensor]]:
    """Hidden states of the source at the answer positions of a batch, [N, H] for each picked layer."""
    if source == "withheld":

        def unasked(_batch: Batch, rows: Sequence[Encoded]) -> list[Tensor]:
            # The first token stays: models park attention on it, and its state is like no other.
            short = [replace(row, prompt=row.prompt[:1] + row.prompt[1:][-1:]) for row in rows]
            with disabled(model):
                return _states(model, collate(short, pad_id(tokenizer)).to(model.device), picked)

        return unasked
    if source == "adapters":
        if not isinstance(model, PeftModel):
            raise MissingReference(
                "expected an unlearned model to take states from: this model has no adapter. Give it as "
                "source=load_base(FOLDER, PRECISION), with the model that knows as the target"
            )
        return lambda batch, _rows: _states(model, batch, picked)
    require_tokenizer(tokenizer, source.tokenizer)
    _require_shape(model, source.model)
    return lambda batch, _rows: [
        s.to(model.device) for s in _states(source.model, batch.to(source.model.device), picked)
    ]


def _states(model: Model, batch: Batch, picked: Sequence[int]) -> list[Tensor]:
    found: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        found[layer] = hidden

    _decode(model, batch, picked, keep)
    return [found[layer] for layer in picked]


def _logprobs(model: Model, batch: Batch, picked: Sequence[int], hook: Hook) -> Tensor:
    """Log-probability of each counted answer token, float32 [N]."""
    hidden = _decode(model, batch, picked, hook)
    head: Any = _causal(model).get_output_embeddings()
    targets = batch.input_ids[:, 1:][batch.answer_mask[:, 1:]]
    parts = zip(hidden.split(_TOKENS), targets.split(_TOKENS), strict=True)
    return torch.cat([token_logprobs(head(h), y) for h, y in parts])


def _decode(model: Model, batch: Batch, picked: Sequence[int], hook: Hook) -> Tensor:
    """Last hidden states [N, H] at the positions that predict answer tokens; ``hook`` sees those of each picked
    layer's output and may return others in their place."""
    mask = batch.answer_mask[:, 1:]
    with _hooked(_layers_of(model), picked, mask, hook):
        decoder = _causal(model).get_decoder()
        out = decoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)[0]
    return out[:, :-1][mask]


@contextmanager
def _hooked(stack: Any, picked: Sequence[int], mask: Tensor, hook: Hook) -> Generator[None]:
    def attach(layer: int) -> Any:
        def on_output(_module: Any, _inputs: Any, out: Any) -> Any:
            hidden: Tensor = out[0] if isinstance(out, tuple) else out
            patch = hook(layer, hidden[:, :-1][mask])
            if patch is None:
                return None
            patched = hidden.clone()
            patched[:, :-1][mask] = patch.to(hidden.dtype)
            return (patched, *out[1:]) if isinstance(out, tuple) else patched

        return stack[layer].register_forward_hook(on_output)

    handles = [attach(layer) for layer in picked]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _causal(model: Model) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def patchable(model: Model) -> bool:
    """Whether ``model`` is a decoder with a list of layers, as `patched_drops` expects."""
    stack = getattr(_causal(model).get_decoder(), "layers", None)
    return isinstance(stack, torch.nn.ModuleList) and len(stack) > 0


def _layers_of(model: Model) -> Any:
    stack = getattr(_causal(model).get_decoder(), "layers", None)
    if not patchable(model):
        raise AuditError(
            f"activation patching expects a decoder with a list of layers, as in Llama, Qwen or Mistral; "
            f"{type(_causal(model)).__name__} has none"
        )
    return stack


def _picked(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    picked = tuple(range(depth)) if layers is None else tuple(layers)
    if not picked or len(set(picked)) < len(picked) or not all(0 <= layer < depth for layer in picked):
        raise AuditError(f"expected distinct layers from 0 to {depth - 1}, got {list(picked)}")
    return picked


def _require_shape(model: Model, source: Model) -> None:
    ours, theirs = ((len(_layers_of(m)), _causal(m).config.hidden_size) for m in (model, source))
    if ours != theirs:
        raise AuditError(
            f"expected a source with {ours[0]} layers of width {ours[1]}, got {theirs[0]} of {theirs[1]}: states of "
            "another architecture cannot be put in"
        )
