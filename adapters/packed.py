"""Decode rows without padding: every token once, attention per row, a shared prefix once for all rows.

Linear layers, norms and the rest see one sequence [1, N]; only attention knows of rows. It gets the :class:`Layout`
through the decoder's keyword arguments, and without one it is torch's sdpa as before.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .encode import Batch

NAME = "efface_packed"
# Decoders whose attention is softmax(scale q k' + causal) and nothing else (no window, cap or sink).
PLAIN = frozenset({"llama", "qwen2", "qwen3"})


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of R rows lie in the packed sequence: first ``prefix`` shared ones, then each row's own.

    ``queries`` int64 [R + 1, T] and ``keys`` int64 [R + 1, prefix + T]: the last row is the prefix itself. ``real``
    bool [R + 1, T]: queries that are tokens, not padding. ``bias`` float32 [R + 1, 1, 1, T, prefix + T]: 0 or -inf.
    """

    prefix: int
    queries: Tensor
    keys: Tensor
    real: Tensor
    bias: Tensor


def layout(own: Tensor, prefix: int) -> Layout:
    """The layout of rows whose own tokens are where ``own`` bool [R, T] is True (right-padded)."""
    rows, width = own.shape[0], max(own.shape[1], prefix)
    real = torch.zeros(rows + 1, width, dtype=torch.bool, device=own.device)
    real[:rows, : own.shape[1]], real[rows, :prefix] = own, True
    queries = torch.zeros(real.shape, dtype=torch.long, device=own.device)
    shared = torch.arange(prefix, device=own.device)
    queries[:rows][real[:rows]] = torch.arange(int(own.sum()), device=own.device) + prefix
    queries[rows, :prefix] = shared
    keys = torch.cat([shared.expand(rows + 1, -1), queries], 1)
    keys[rows, prefix:] = 0
    t, j = torch.arange(width, device=own.device)[:, None], torch.arange(prefix + width, device=own.device)
    seen = torch.cat([((j < prefix) | (j - prefix <= t)).expand(rows, -1, -1), (j <= t)[None]])
    bias = torch.zeros(seen.shape, device=own.device).masked_fill_(~seen, -torch.inf)
    return Layout(prefix, queries, keys, real, bias[:, None, None])


def can_pack(decoder: Any) -> bool:
    """Whether this decoder is one that :func:`decode` is the same function for. Measured on CPUs only.

    One that recomputes its layers in backward is so only inside :func:`packing`: the layers read there again
    which attention they use.
    """
    config = decoder.config
    if config.model_type not in PLAIN or config._attn_implementation not in ("sdpa", NAME):
        return False
    if (
        getattr(config, "use_sliding_window", False)
        or config.attention_dropout
        or decoder.device.type != "cpu"
    ):
        return False
    recomputes = decoder.training and any(
        getattr(m, "gradient_checkpointing", False) for m in decoder.modules()
    )
    return config._attn_implementation == NAME or not recomputes


@contextmanager
def packing(decoder: Any) -> Generator[None]:
    """Have ``decoder`` use the packed attention, which without a layout is torch's sdpa, for this block."""
    config = decoder.config
    before = config._attn_implementation
    if before not in ("sdpa", NAME):
        yield
        return
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def decode(decoder: Any, batch: Batch, prefix: int) -> Tensor:
    """Last hidden states [B, T - prefix, H] (zero at padding) of ``batch``, whose rows share ``prefix`` tokens."""
    own = batch.attention_mask[:, prefix:].bool()
    positions = torch.arange(batch.input_ids.shape[1], device=own.device).expand_as(batch.input_ids)

    def pack(x: Tensor) -> Tensor:
        return torch.cat([x[0, :prefix], x[:, prefix:][own]])[None]

    with packing(decoder):
        hidden = decoder(
            input_ids=pack(batch.input_ids),
            position_ids=pack(positions),
            attention_mask=own.new_zeros(1, 1, 1, 1),  # four-dimensional: taken as it is, and not looked at
            use_cache=False,
            layout=layout(own, prefix),
        )[0][0]
    return hidden.new_zeros(*own.shape, hidden.shape[-1]).masked_scatter(own[..., None], hidden[prefix:])


def _attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, *, layout: Layout | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    if layout is None:
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)  # type: ignore[return-value]
    scale = kwargs.get("scaling") or q.shape[-1] ** -0.5
    out = _PackedAttention.apply(*(x[0].transpose(0, 1) for x in (q, k, v)), layout, scale)
    return out[None], None


class _PackedAttention(torch.autograd.Function):
    """Softmax attention on q [N, H, D], k and v [N, G, D] (G divides H), keeping only q, k, v and the output.

    torch 2.13's fused kernel takes 34 ms for the backward of one layer of 16 rows where these products take 8.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, to: Layout, scale: float) -> Tensor:
        ctx.heads, ctx.layout, ctx.scale = (q.shape[1], k.shape[1]), to, scale
        rows = _rows(q, to.queries, k.shape[1])
        weights = _weights(rows, _rows(k, to.keys, k.shape[1]), ctx).to(q.dtype)
        out = _queries_back(torch.bmm(weights, _rows(v, to.keys, k.shape[1])), ctx)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out = ctx.saved_tensors
        to, groups = ctx.layout, k.shape[1]
        mean = (grad.float() * out.float()).sum(-1, keepdim=True)
        # Padding queries read token 0's gradient: it is not theirs.
        grads = _rows(grad, to.queries, groups, to.real)
        means = _rows(mean, to.queries, groups, to.real)
        qs, ks, vs = _rows(q, to.queries, groups), _rows(k, to.keys, groups), _rows(v, to.keys, groups)
        weights = _weights(qs, ks, ctx)
        grad_v = torch.bmm(weights.to(q.dtype).transpose(1, 2), grads)
        scores = (
            torch.bmm(grads, vs.transpose(1, 2)).float().sub_(means).mul_(weights).mul_(ctx.scale).to(q.dtype)
        )
        grad_k = torch.bmm(scores.transpose(1, 2), qs)
        return (
            _queries_back(torch.bmm(scores, ks), ctx),
            _keys_back(grad_k, ctx),
            _keys_back(grad_v, ctx),
            None,
            None,
        )


def _rows(x: Tensor, index: Tensor, groups: int, real: Tensor | None = None) -> Tensor:
    """Tokens of ``x`` [N, heads, D] by row and group of heads: [(R + 1) groups, heads / groups * T, D]."""
    found = x[index] if real is None else x[index] * real[..., None, None]
    return found.transpose(1, 2).reshape(index.shape[0] * groups, -1, x.shape[-1])


def _weights(queries: Tensor, keys: Tensor, ctx: Any) -> Tensor:
    """Attention weights, float32 [(R + 1) G, H / G * T, prefix + T]."""
    to, (heads, groups) = ctx.layout, ctx.heads
    scores = torch.bmm(queries, keys.transpose(1, 2)).float().mul_(ctx.scale)
    rows, width = to.queries.shape
    return scores.view(rows, groups, heads // groups, width, -1).add_(to.bias).softmax(-1).view(scores.shape)


def _queries_back(x: Tensor, ctx: Any) -> Tensor:
    """From rows to the packed sequence, for what belongs to queries: [N, H, D]."""
    to = ctx.layout
    x = x.view(len(to.queries), ctx.heads[0], -1, x.shape[-1]).transpose(1, 2)
    return torch.cat([x[-1, : to.prefix], x[:-1][to.real[:-1]]])


def _keys_back(x: Tensor, ctx: Any) -> Tensor:
    """From rows to the packed sequence, for what belongs to keys [N, G, D]: the prefix's is the sum over rows."""
    to = ctx.layout
    x = x.view(len(to.queries), ctx.heads[1], -1, x.shape[-1]).transpose(1, 2)
    return torch.cat([x[:, : to.prefix].float().sum(0).to(x.dtype), x[:-1, to.prefix :][to.real[:-1]]])


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
