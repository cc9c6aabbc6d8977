"""Rows that are longer than they may be: refused, or cut where the recipe says. Nothing is cut silently."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from transformers import PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .errors import ModelError

if TYPE_CHECKING:
    from .encode import Encoded, Item

Truncation = Literal["error", "answer", "prompt"]


def uncut(tokenizer: PreTrainedTokenizerBase, item: Item, row: Encoded, chat: bool) -> int:
    """How many tokens at the start of ``row.prompt`` may not be cut: a raw prompt's BOS; all of a prompt that
    went through the chat template, which would be broken, and of the context of a document."""
    if row.document or chat or not isinstance(item.prompt, str):
        return len(row.prompt)
    return int(row.prompt[0] == tokenizer.bos_token_id)


def fits(prompt: int, answer: int, max_length: int, truncation: Truncation, fixed: int) -> bool:
    """Whether a row of so many tokens can be brought within ``max_length``; ``fixed`` is what `uncut` says."""
    least = {
        "error": prompt + answer,
        "answer": prompt + 1,
        "prompt": min(prompt, fixed + 1) + answer,
    }
    return min(least[truncation], prompt + answer) <= max_length


def truncate(row: Encoded, max_length: int, truncation: Truncation, fixed: int) -> Encoded:
    """``row`` within ``max_length``: ``answer`` cuts the answer's end (with it a final EOS), ``prompt`` the start
    of the prompt after its first ``fixed`` tokens, ``error`` nothing.

    Raises :class:`ModelError` where that cannot be: something of prompt and answer must be left.
    """
    size = len(row.prompt) + len(row.answer)
    if not fits(len(row.prompt), len(row.answer), max_length, truncation, fixed):
        raise ModelError(
            f"row {row.id!r} has {size} tokens, more than max_length={max_length}: "
            f"raise max_length or split the row{_why(row, truncation, fixed)}"
        )
    over = size - max_length
    if over <= 0:
        return row
    if truncation == "answer":
        return replace(row, answer=row.answer[:-over])
    return replace(row, prompt=row.prompt[:fixed] + row.prompt[fixed + over :])


def require_context(config: PretrainedConfig, max_length: int) -> None:
    """Raise :class:`ModelError` when ``max_length`` exceeds the model's context (models that state one)."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(context, int) and 0 < context < max_length:
        raise ModelError(
            f"max_length={max_length} exceeds the model's context of {context} tokens "
            f"(max_position_embeddings): set max_length={context} or less"
        )


def _why(row: Encoded, truncation: Truncation, fixed: int) -> str:
    if truncation == "error":
        return ", or say what to cut (truncation=answer or truncation=prompt)"
    if truncation == "answer":
        return f"; cutting its answer is not enough, the prompt alone has {len(row.prompt)}"
    if fixed < len(row.prompt):
        return f"; cutting its prompt is not enough, the answer alone has {len(row.answer)}"
    kind = "a document has no prompt" if row.document else "the chat template would be broken"
    return f"; its prompt cannot be cut ({kind})"
