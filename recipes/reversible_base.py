"""Reversibility of the base: nothing that is put on it changes its files, its weights in memory or its answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..adapters import BaseMismatch, InvalidAdapter, detach, load, load_base
from ..adapters.lora import disabled
from ..adapters.model import Base, fingerprint, state_digest
from .reversible_record import PathFinding, compared

PROBES, LENGTH = 4, 24
"""Rows and tokens of the probe batch."""
_RELOAD = "Something wrote into the base: load it again from its files, and do not merge in place."


def base_findings(path: Path, expected: str, precision: str, rendered: Path | None) -> list[PathFinding]:
    """Files, weights and logits before, while and after the adapter in `rendered` is on; None: nothing to put on."""
    before = fingerprint(path).digest
    found = [_files("before", before, expected)]
    if before != expected:
        return [*found, _unchecked("another base would be loaded")]
    if rendered is None:
        return [
            *found,
            PathFinding("base weights", "bare base", "passed", "no adapter is on: nothing to take off"),
        ]
    base = load_base(path, precision)
    try:
        found += worn_findings(base, rendered)
    except (BaseMismatch, InvalidAdapter) as error:
        found.append(_unchecked(str(error)))
    del base
    return [*found, _files("after", fingerprint(path).digest, expected)]


def probe_batch(vocabulary: int, longest: int | None = None) -> Tensor:
    """int64 [PROBES, LENGTH] token ids spread over the vocabulary, the same every time."""
    width = LENGTH if longest is None else min(LENGTH, longest)
    return (torch.arange(PROBES * width).reshape(PROBES, width) * 7919 + 13) % vocabulary


def logits_digest(model: torch.nn.Module, ids: Tensor) -> str:
    """`sha256:<hex>` of the bytes of all logits: equal only where every bit is, not-a-number included."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits.detach().cpu().contiguous()
    return f"sha256:{hashlib.sha256(logits.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()}"


def worn_findings(base: Base, rendered: Path) -> list[PathFinding]:
    """What putting the adapter in `rendered` on, switching it off, on, and taking it off does to a loaded base."""
    config = base.model.config
    ids = probe_batch(config.vocab_size, getattr(config, "max_position_embeddings", None)).to(
        base.model.device
    )
    weights, bare = state_digest(base.model), logits_digest(base.model, ids)
    model = load(base.model, rendered)
    on, weights_on = logits_digest(model, ids), state_digest(model)
    with disabled(model):
        off = logits_digest(model, ids)
    again = logits_digest(model, ids)
    plain = detach(model)
    how = f"{ids.numel()} positions at {base.quantization}, computed in {base.model.dtype} on {base.model.device}"
    return [
        _seen(on, bare, how),
        _weights("adapter on", weights, weights_on),
        _logits("disabled", bare, off, how),
        _logits("on again", on, again, how, of="the adapted model"),
        _weights("detached", weights, state_digest(plain)),
        _logits("detached", bare, logits_digest(plain, ids), how),
    ]


def _seen(on: str, bare: str, how: str) -> PathFinding:
    """Where the adapter changes nothing, equal logits prove nothing."""
    if on != bare:
        return PathFinding(
            "probe", "adapter on", "passed", f"the adapter changes the logits of the probe ({how})"
        )
    text = "expected other logits with the adapter on, got the base's own: the probe cannot tell on from off"
    return PathFinding("probe", "adapter on", "failed", f"{text}. Look at the adapter: it may be empty.")


def _files(path: str, came: str, expected: str) -> PathFinding:
    return compared(
        "base files",
        path,
        expected,
        came,
        same=f"config, tokenizer and weights are {expected}, as recorded",
        then="Give the base that the adapters were made for, or fetch it again.",
    )


def _weights(path: str, before: str, after: str) -> PathFinding:
    same = f"every weight and scale in memory is what was loaded ({before})"
    return compared("base weights", path, before, after, same=same, then=_RELOAD)


def _logits(path: str, before: str, after: str, how: str, of: str = "the bare base") -> PathFinding:
    same = f"bit-equal to {of}: {how}"
    return compared("base logits", path, before, after, same=same, then=_RELOAD)


def _unchecked(why: str) -> PathFinding:
    return PathFinding("base weights", "adapter on", "failed", f"not checked: {why}")
