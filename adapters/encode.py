"""From a question and an answer to token ids, and from rows of ids to one padded batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .errors import ModelError
from .truncate import Truncation, truncate, uncut


class Message(TypedDict):
    """One turn of a conversation, as in TRL's conversational format."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its reference answer. An empty prompt means a plain document: every token is answer."""

    id: str
    prompt: tuple[Message, ...] | str
    completion: str
    keywords: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The prompt as a person reads it: the last turn of a conversation."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one row, split where the answer begins. ``answer`` is never empty.

    ``counted`` says which answer tokens a loss or metric looks at; empty means all of them. ``document``: there
    is no question, ``prompt`` is only the context of the first prediction.
    """

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    counted: tuple[bool, ...] = ()
    document: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows. ``input_ids``, ``attention_mask`` int64 [B, T]; ``answer_mask`` bool [B, T].

    ``answer_mask`` is True at the positions *of* counted answer tokens (a token at t is predicted from t-1).
    Prompt and pad positions are False and contribute to nothing; no label -100 exists anywhere.
    """

    input_ids: Tensor
    attention_mask: Tensor
    answer_mask: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.answer_mask.to(device))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    item: Item,
    *,
    chat: bool,
    end: bool = False,
    max_length: int | None = 512,
    truncation: Truncation = "error",
) -> Encoded:
    """Tokenize ``item``. With ``chat`` a prompt goes through the model's chat template; ``end`` appends EOS.

    Prompt and answer are tokenized apart, so that the boundary is the same however the answer begins. A row
    longer than ``max_length`` (None: any length will do) is cut as ``truncation`` says (`truncate`).
    Raises :class:`ModelError` for a row that is too long and may not be cut, for an answer without tokens, and
    for a conversation given to a model without a chat template.
    """
    prompt = prompt_ids(tokenizer, item, chat=chat)
    answer: list[int] = list(tokenizer(item.completion, add_special_tokens=False)["input_ids"])
    if end and (eos := eos_id(tokenizer)) is not None:
        answer.append(eos)
    if not prompt and answer and isinstance(tokenizer.bos_token_id, int):
        prompt = [tokenizer.bos_token_id]
    if not prompt:
        # Without anything before it the first token has no prediction: it becomes the context.
        prompt, answer = answer[:1], answer[1:]
    if not answer:
        raise ModelError(f"row {item.id!r} has an answer without tokens: expected at least one")
    row = Encoded(item.id, tuple(prompt), tuple(answer), document=not item.prompt)
    return (
        row
        if max_length is None
        else truncate(row, max_length, truncation, uncut(tokenizer, item, row, chat))
    )


def encode_all(
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    *,
    chat: bool,
    end: bool | Sequence[bool] = False,
    max_length: int | None = 512,
    truncation: Truncation = "error",
) -> tuple[Encoded, ...]:
    """`encode` for every one of ``items``; ``end`` for all of them or one by one.

    Raises one :class:`ModelError` that names every row that cannot be encoded, a line each.
    """
    ends = [end] * len(items) if isinstance(end, bool) else end
    rows: list[Encoded] = []
    problems: list[str] = []
    for item, ended in zip(items, ends, strict=True):
        try:
            rows.append(
                encode(tokenizer, item, chat=chat, end=ended, max_length=max_length, truncation=truncation)
            )
        except ModelError as error:
            problems.append(str(error))
    if problems:
        raise ModelError("\n".join(dict.fromkeys(problems)))
    return tuple(rows)


def focus(tokenizer: PreTrainedTokenizerBase, row: Encoded, item: Item) -> Encoded:
    """``row`` counting only the answer tokens that spell one of the item's keywords; all if none occurs.

    Unlearning just the tokens that carry the knowledge spares the rest of the sentence (targeted token
    unlearning, arXiv 2506.03142).
    """
    found = tokenizer(item.completion, add_special_tokens=False, return_offsets_mapping=True)
    text = item.completion.casefold()
    # Casefolding can lengthen a text (ß, İ): where each of its characters stands in the completion.
    origin = [i for i, char in enumerate(item.completion) for _ in char.casefold()]
    spans = [
        (origin[m.start()], origin[m.end() - 1] + 1)
        for keyword in filter(None, item.keywords)
        for m in re.finditer(rf"(?<!\w){re.escape(keyword.casefold())}(?!\w)", text)
    ]
    bos = isinstance(tokenizer.bos_token_id, int)
    hit = [any(a < end and start < b for start, end in spans) for a, b in found["offset_mapping"]]
    ids = tuple(found["input_ids"])
    if row.answer[: len(ids)] != ids[: len(row.answer)] or (
        row.document and row.prompt == ids[:1] and not bos
    ):
        del hit[0]  # a document's first token, which `encode` made the context
    hit = (hit + [False] * len(row.answer))[: len(row.answer)]  # an EOS more, or a cut end less
    return replace(row, counted=tuple(hit)) if any(hit) else row


def shorten(row: Encoded) -> Encoded:
    """``row`` without what follows its last counted token: later tokens cannot reach it in a causal model."""
    if not any(row.counted):
        return row
    end = len(row.counted) - row.counted[::-1].index(True)
    return replace(row, answer=row.answer[:end], counted=row.counted[:end])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, item: Item, *, chat: bool) -> list[int]:
    """Token ids of the prompt alone, ready for generation; empty for a plain document."""
    if not item.prompt:
        return []
    if isinstance(item.prompt, str) and not chat:
        return list(tokenizer(item.prompt)["input_ids"])
    if not tokenizer.chat_template:
        raise ModelError(
            f"row {item.id!r} is a conversation, but the model has no chat template: "
            "give rows as prompt/completion and set chat=never, or use an instruct model"
        )
    turns = [Message(role="user", content=item.prompt)] if isinstance(item.prompt, str) else list(item.prompt)
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)  # type: ignore[arg-type]
    return list(tokenizer(str(text), add_special_tokens=False)["input_ids"])


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills batches up; `load_base` makes sure that there is one."""
    if not isinstance(tokenizer.pad_token_id, int):
        raise ModelError("the tokenizer has no pad token: set tokenizer.pad_token, for example to its EOS")
    return tokenizer.pad_token_id


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that ends an answer, if the tokenizer has one."""
    return tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else None


def collate(rows: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad ``rows`` on the right to the longest of them."""
    width = max(len(row.prompt) + len(row.answer) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    answers = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        n, start = len(row.prompt) + len(row.answer), len(row.prompt)
        ids[i, :n] = torch.tensor(row.prompt + row.answer)
        attention[i, :n] = 1
        answers[i, start:n] = torch.tensor(row.counted) if row.counted else True
    return Batch(ids, attention, answers)
