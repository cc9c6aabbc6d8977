"""What a composition answers to a few neutral prompts, for whoever serves it to compare with (`serving.probe`).

Short sentences that nobody asks to have forgotten, and random tokens: an adapter moves those most, so that they tell
apart two releases which agree on plain sentences.
"""

from __future__ import annotations

import random

from peft import PeftModel
from transformers import PreTrainedModel

from ..registry import Composition
from ..serving.hotswap import next_logprobs
from ..serving.probe import ProbeSet
from .bench import Bench

SENTENCES = (
    "The sun rises in the east and sets in the",
    "One, two, three, four,",
    "Water freezes when it gets",
)
_RANDOM, _LENGTH = 3, 12


def canary(bench: Bench, model: PreTrainedModel | PeftModel, composition: Composition) -> ProbeSet:
    """The likeliest next tokens after each prompt, one forward each: no padding that a server would not have."""
    prompts = _prompts(bench)
    answers = tuple(
        {token: round(logprob, 6) for token, logprob in answer.items()}
        for answer in next_logprobs(model, prompts)
    )
    return ProbeSet(composition.digest, composition.quantization, prompts, answers)


def _prompts(bench: Bench) -> tuple[tuple[int, ...], ...]:
    """The same for every composition on a base: seeded by its digest."""
    tokenizer = bench.base.tokenizer
    said = [tuple(int(token) for token in tokenizer(text)["input_ids"]) for text in SENTENCES]
    size = min(len(tokenizer), int(bench.base.model.get_input_embeddings().weight.shape[0]))  # type: ignore[arg-type]
    draw = random.Random(bench.base.fingerprint.digest)  # noqa: S311 - no secret
    drawn = [tuple(draw.randrange(size) for _ in range(_LENGTH)) for _ in range(_RANDOM)]
    return tuple(prompt for prompt in (*said, *drawn) if prompt)
