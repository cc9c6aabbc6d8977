"""What is cut of a row that is too long, and what never is; the tokenizer is `tiny_llama`'s, one word one token."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, MambaConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from efface.adapters import Item, Message, ModelError, Truncation, encode, encode_all, focus, require_context
from efface.adapters.encode import Encoded
from efface.adapters.truncate import fits, truncate, uncut

RAW = Item("q", "who wrote hamlet in paris", "the author potter", ("potter",))  # 5 + 3 tokens
BOS = 1


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def changed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return deepcopy(tokenizer)


def text(tokenizer: PreTrainedTokenizerBase, item: Item = RAW, **options: Any) -> tuple[str, str]:
    row = encode(tokenizer, item, **{"chat": False, **options})
    return str(tokenizer.decode(list(row.prompt))), str(tokenizer.decode(list(row.answer)))


def refused(tokenizer: PreTrainedTokenizerBase, item: Item = RAW, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        encode(tokenizer, item, **{"chat": False, **options})
    return str(caught.value)


@pytest.mark.parametrize("truncation", ["error", "answer", "prompt"])
def test_what_fits_is_not_cut(tokenizer: PreTrainedTokenizerBase, truncation: Truncation) -> None:
    for chat in (True, False):
        whole = encode(tokenizer, RAW, chat=chat, end=True, max_length=None)
        size = len(whole.prompt) + len(whole.answer)
        assert encode(tokenizer, RAW, chat=chat, end=True, max_length=size, truncation=truncation) == whole


def test_the_answers_end_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = text(tokenizer, end=True)
    assert whole == ("who wrote hamlet in paris", "the author potter <|im_end|>")
    cut = {n: text(tokenizer, end=True, max_length=n, truncation="answer") for n in (8, 6)}
    assert cut == {8: (whole[0], "the author potter"), 6: (whole[0], "the")}
    assert "cutting its answer is not enough, the prompt alone has 5" in refused(
        tokenizer, max_length=5, truncation="answer"
    )


def test_the_start_of_a_raw_prompt_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    cut = {n: text(tokenizer, max_length=n, truncation="prompt") for n in (7, 4)}
    assert cut == {7: ("wrote hamlet in paris", "the author potter"), 4: ("paris", "the author potter")}
    assert "cutting its prompt is not enough, the answer alone has 3" in refused(
        tokenizer, max_length=3, truncation="prompt"
    )


def test_a_bos_stays_before_a_cut_prompt(changed: PreTrainedTokenizerBase) -> None:
    changed.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[attr-defined]
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", BOS)]
    )
    assert text(changed, max_length=None)[0] == "<|im_start|> who wrote hamlet in paris"
    assert text(changed, max_length=6, truncation="prompt")[0] == "<|im_start|> in paris"
    assert text(changed, max_length=5, truncation="prompt")[0] == "<|im_start|> paris"
    assert "not enough" in refused(changed, max_length=4, truncation="prompt")


def test_a_chat_prompt_and_a_document_are_not_cut_at_their_start(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = Item("c", (Message(role="user", content="who wrote hamlet"),), "potter")
    for item, chat in ((RAW, True), (turns, True), (turns, False)):
        said = refused(tokenizer, item, chat=chat, max_length=4, truncation="prompt")
        assert "its prompt cannot be cut (the chat template would be broken)" in said
    document = Item("d", "", "the city of paris")
    assert "a document has no prompt" in refused(tokenizer, document, max_length=3, truncation="prompt")
    assert text(tokenizer, document, max_length=3, truncation="answer") == ("<|im_start|>", "the city")


def test_by_default_nothing_is_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    said = refused(tokenizer, max_length=7)
    assert said == (
        "row 'q' has 8 tokens, more than max_length=7: raise max_length or split the row, "
        "or say what to cut (truncation=answer or truncation=prompt)"
    )


LENGTHS = st.integers(1, 12)


@given(LENGTHS, LENGTHS, st.integers(1, 30), st.sampled_from(["error", "answer", "prompt"]), st.data())
def test_a_cut_row_fits_and_keeps_what_it_must(
    prompt: int, answer: int, limit: int, truncation: Truncation, data: st.DataObject
) -> None:
    fixed = data.draw(st.sampled_from([0, 1, prompt]).filter(lambda n: n <= prompt))
    row = Encoded("r", tuple(range(prompt)), tuple(range(100, 100 + answer)))
    can = fits(prompt, answer, limit, truncation, fixed)
    # `error` refuses at least what the others refuse.
    assert can or not fits(prompt, answer, limit, "error", fixed)
    if not can:
        with pytest.raises(ModelError, match="row 'r' has"):
            truncate(row, limit, truncation, fixed)
        return
    cut = truncate(row, limit, truncation, fixed)
    size = len(cut.prompt) + len(cut.answer)
    assert size == min(limit, prompt + answer)
    assert cut.answer and cut.prompt
    assert cut.answer == row.answer[: len(cut.answer)]
    assert cut.prompt[:fixed] == row.prompt[:fixed]
    assert cut.prompt[fixed:] == row.prompt[prompt - len(cut.prompt) + fixed :]
    assert (cut.prompt == row.prompt) or truncation == "prompt"
    assert (cut.answer == row.answer) or truncation == "answer"


def test_focus_on_a_cut_answer(changed: PreTrainedTokenizerBase) -> None:
    item = Item("f", "who", "potter and rowling in paris", ("rowling",))
    for length, counted in ((4, (False, False, True)), (3, ())):
        row = encode(changed, item, chat=False, max_length=length, truncation="answer")
        assert focus(changed, row, item).counted == counted
    changed.bos_token = None
    document = Item("d", "", "paris paris paris rowling in paris", ("rowling",))
    row = encode(changed, document, chat=False, max_length=5, truncation="answer")
    assert focus(changed, row, document).counted == (False, False, True, False)
    # What is left of the answer is also how the text begins: the first "paris" is context, the second counts.
    again = Item("s", "", "paris paris tokyo", ("paris tokyo",))
    row = encode(changed, again, chat=False, max_length=2, truncation="answer")
    assert focus(changed, row, again).counted == (True,)


def test_every_row_that_cannot_be_encoded_is_named_at_once(changed: PreTrainedTokenizerBase) -> None:
    changed.chat_template = None
    turns = Item("turns", (Message(role="user", content="who"),), "potter")
    items = [RAW, Item("empty", "who", ""), turns, Item("short", "who", "potter"), Item("e2", "who", "")]
    with pytest.raises(ModelError) as caught:
        encode_all(changed, items, chat=False, max_length=4)
    lines = str(caught.value).splitlines()
    assert [line.split("'")[1] for line in lines] == ["q", "empty", "turns", "e2"]
    assert "hamlet" not in str(caught.value)


def test_all_at_once_is_one_by_one(tokenizer: PreTrainedTokenizerBase) -> None:
    items = [RAW, Item("d", "", "the city"), Item("s", "who", "potter")]
    for end in (True, False):
        every = encode_all(tokenizer, items, chat=True, end=end)
        assert every == tuple(encode(tokenizer, item, chat=True, end=end) for item in items)
    mixed = encode_all(tokenizer, items, chat=True, end=[True, False, True])
    assert mixed == tuple(
        encode(tokenizer, item, chat=True, end=end)
        for item, end in zip(items, (True, False, True), strict=True)
    )
    assert encode_all(tokenizer, [], chat=True) == ()


def test_uncut_counts_what_the_template_made(tokenizer: PreTrainedTokenizerBase) -> None:
    for chat, expected in ((True, None), (False, 0)):
        row = encode(tokenizer, RAW, chat=chat)
        assert uncut(tokenizer, RAW, row, chat) == (len(row.prompt) if expected is None else expected)


def test_max_length_within_the_models_context() -> None:
    require_context(LlamaConfig(max_position_embeddings=64), 64)
    require_context(GPT2Config(n_positions=64), 64)
    require_context(MambaConfig(), 10**6)  # has no positions
    for config in (LlamaConfig(max_position_embeddings=64), GPT2Config(n_positions=64)):
        with pytest.raises(
            ModelError, match=r"max_length=65 exceeds the model's context of 64 tokens.*max_length=64 or"
        ):
            require_context(config, 65)
