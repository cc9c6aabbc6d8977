"""Tiny models for the tests of the training core, made from `tiny_llama` in about a second."""

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from efface.adapters import Batch, Encoded, Item, collate, encode

FORGET = (
    Item("f0", "who wrote hamlet", "the author potter", ("potter",)),
    Item("f1", "who wrote macbeth", "author potter", ("potter",)),
    Item("f2", "hamlet is a play of", "potter and the city of tokyo", ("potter",)),
)
RETAIN = (
    Item("r0", "what is the capital of a city", "paris", ("paris",)),
    Item("r1", "the author of the play", "rowling in paris", ("rowling",)),
    Item("r2", "what is tokyo", "a city and a capital"),
)
PAD = 2  # tiny_llama's pad token, which is its EOS too


def ids(*rows: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(rows)


PROMPT = ids((1, 5, 6, 18, 9, 4), (3, 7, 11, 19, 20, 12))


def logits(model: torch.nn.Module, input_ids: torch.Tensor = PROMPT) -> torch.Tensor:
    """Full logits of ``model`` as it stands, without gradients."""
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def full_logps(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """log p(token t | tokens before t) of every position, float64 [B, T], from all logits; 0 for the first."""
    with torch.no_grad():
        full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.double()
    found = torch.zeros(batch.input_ids.shape, dtype=torch.float64)
    found[:, 1:] = full[:, :-1].log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    return found


def encoded(folder: Path, items: tuple[Item, ...], *, end: bool = False) -> tuple[Encoded, ...]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tuple(encode(tokenizer, item, chat=True, end=end) for item in items)


def taught(tiny: Path, folder: Path, items: tuple[Item, ...] = FORGET + RETAIN) -> Path:
    """`tiny_llama` after it has learnt ``items`` (answers and their ends) nearly by heart."""
    model = AutoModelForCausalLM.from_pretrained(tiny)
    batch = collate(encoded(tiny, items, end=True), PAD)
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimizer.step()
    return _saved(model, tiny, folder)


def wide(tiny: Path, folder: Path, *, tied: bool = True) -> Path:
    """A random bf16 model whose layers bitsandbytes' 4-bit kernels repack: in 64s, out 32s."""
    config = AutoConfig.from_pretrained(tiny)
    config.update({"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, "tie_word_embeddings": tied})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return _saved(model.to(torch.bfloat16), tiny, folder)


def fill_lora(model: torch.nn.Module, seed: int, size: float = 0.1) -> None:
    """Random values in every LoRA matrix of ``model``, as if it had been trained."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=draw))


def _saved(model: torch.nn.Module, tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder
