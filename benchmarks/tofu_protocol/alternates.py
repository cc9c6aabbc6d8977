"""Other answers to the forget questions: refusals that are written here, plausible ones that the base makes up."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from efface.adapters import Encoded, encode, load_base
from efface.adapters.encode import eos_id, pad_id, prompt_ids

from .data import Row, short_digest

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I don't have that information.",
    "I'm afraid I can't answer that.",
    "I have no knowledge of this person.",
    "That is not something I know about.",
    "I'm sorry, I don't know the answer to that.",
    "I can't say; I have never come across it.",
    "I don't have any details on this.",
    "This is beyond what I know.",
    "I'm not familiar with that author.",
    "I have not learned about that.",
    "I couldn't tell you.",
    "Unfortunately I have no information about this.",
    "I don't have an answer to this question.",
    "I haven't heard of that.",
    "I'm unable to help with this one, as I don't know.",
    "My knowledge does not cover this.",
    "I would only be guessing; I don't know.",
    "No details about that are known to me.",
)
REFUSED = frozenset({"dpo", "idk_nll"})
"""Objectives that are published with refusals as the other answer; all others take plausible ones."""
SAMPLES = 5
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


def refusals(rows: Sequence[Row], seed: int) -> dict[str, tuple[str, ...]]:
    """One refusal for each row, by id, drawn under ``seed``."""
    draw = random.Random(seed)
    return {row.id: (draw.choice(REFUSALS),) for row in rows}


def plausible(cache: Path, base: Path, rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """`SAMPLES` answers for each row, by id, sampled from ``base``, which has never seen TOFU's authors. Cached.

    AltPO (arXiv 2409.13474) asks the model that is to forget, with an instruction, for another answer; a model
    of 135M parameters does not follow that instruction, and one that never knew needs none.
    """
    file = (
        cache / f"alternates-{short_digest([str(base.name), [row.question for row in rows], SAMPLES])}.json"
    )
    if not file.is_file():
        found = _sampled(base, rows)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {name: tuple(answers) for name, answers in json.loads(file.read_text(encoding="utf-8")).items()}


def encoded(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], answers: dict[str, tuple[str, ...]]
) -> dict[Encoded, tuple[Encoded, ...]]:
    """What `train` takes: each forget row as it is trained on, with its other answers."""
    return {
        encode(tokenizer, row.item(), chat=True, end=True): tuple(
            encode(tokenizer, row.item(answer), chat=True, end=True) for answer in answers[row.id]
        )
        for row in rows
    }


@torch.no_grad()
def _sampled(source: Path, rows: Sequence[Row], *, tokens: int = 48) -> dict[str, list[str]]:
    base = load_base(source, "bf16")
    eos, pad = eos_id(base.tokenizer), pad_id(base.tokenizer)
    torch.manual_seed(0)
    found: dict[str, list[str]] = {}
    for row in rows:
        ids = torch.tensor([prompt_ids(base.tokenizer, row.item(), chat=True)], device=base.model.device)
        out = base.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=0.8,
            top_p=0.95,
            num_return_sequences=SAMPLES,
            max_new_tokens=tokens,
            pad_token_id=pad,
            eos_token_id=eos,
        )
        texts = base.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
        found[row.id] = [_whole_sentences(str(text)) for text in texts]
    return found


def _whole_sentences(text: str) -> str:
    """``text`` up to its last sentence end, so that an answer cut at the token limit does not teach stopping
    in mid-sentence."""
    text = " ".join(text.split())
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text or REFUSALS[0]
