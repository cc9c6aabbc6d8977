"""What a model says of its own accord."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from peft import PeftModel
from tofu_protocol.data import Row
from tofu_protocol.evaluate import METHOD
from transformers import PreTrainedModel

from efface.adapters import Base, prompt_ids
from efface.audits import answer_rows


def said(base: Base, model: PreTrainedModel | PeftModel, rows: Sequence[Row], longest: int) -> list[str]:
    """The greedy answers of ``model``, at most ``longest`` tokens each, to the questions of ``rows``."""
    tokenizer = base.tokenizer
    prompts = [prompt_ids(tokenizer, row.item(), chat=True) for row in rows]
    answers = answer_rows(model, tokenizer, prompts, replace(METHOD, max_new_tokens=longest))
    return [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in answers]
