"""From text to token ids and masks; the tokenizer is `tiny_llama`'s, one word one token."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import PAD
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from efface.adapters.encode import (
    Encoded,
    Item,
    Message,
    collate,
    encode,
    eos_id,
    focus,
    pad_id,
    prompt_ids,
    shorten,
)
from efface.adapters.errors import ModelError

QUESTION = Item("q", "who wrote hamlet", "the author potter")
BOS, EOS, USER, ASSISTANT = 1, 2, 3, 4  # <|im_start|>, <|im_end|>, and the two roles' words


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def changed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that a test may change."""
    return deepcopy(tokenizer)


def words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))


# --- encode


def test_a_question_goes_through_the_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(tokenizer, QUESTION, chat=True)
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": "who wrote hamlet"}], add_generation_prompt=True, tokenize=False
    )
    assert list(row.prompt) == tokenizer(template, add_special_tokens=False)["input_ids"]
    assert words(tokenizer, row.answer) == "the author potter"
    assert row.id == "q"
    assert row.counted == ()


def test_without_chat_the_prompt_is_taken_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    assert words(tokenizer, encode(tokenizer, QUESTION, chat=False).prompt) == "who wrote hamlet"


def test_a_conversation_keeps_its_turns_and_shows_the_last(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = (
        Message(role="user", content="who wrote hamlet"),
        Message(role="assistant", content="potter"),
        Message(role="user", content="what is paris"),
    )
    item = Item("c", turns, "a city")
    for chat in (True, False):  # a conversation needs the template either way
        text = words(tokenizer, encode(tokenizer, item, chat=chat).prompt)
        assert text.index("hamlet") < text.index("potter") < text.index("paris")
    assert item.text == "what is paris"
    assert QUESTION.text == "who wrote hamlet"


def test_end_appends_the_eos_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    without, ended = (encode(tokenizer, QUESTION, chat=True, end=end) for end in (False, True))
    assert ended.answer == (*without.answer, EOS)
    assert ended.prompt == without.prompt


def test_a_document_is_all_answer_after_the_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(tokenizer, Item("d", "", "the city of paris"), chat=True)
    assert row.prompt == (BOS,)
    assert words(tokenizer, row.answer) == "the city of paris"


def test_a_document_without_bos_gives_its_first_token_as_context(changed: PreTrainedTokenizerBase) -> None:
    changed.bos_token = None
    row = encode(changed, Item("d", "", "the city of paris"), chat=True)
    assert words(changed, row.prompt) == "the"
    assert words(changed, row.answer) == "city of paris"


def test_no_chat_template_is_an_error_only_where_one_is_needed(changed: PreTrainedTokenizerBase) -> None:
    changed.chat_template = None
    conversation = Item("c7", (Message(role="user", content="what is paris"),), "a city")
    for item, chat in ((QUESTION, True), (conversation, True), (conversation, False)):
        with pytest.raises(ModelError, match=rf"row '{item.id}'.*no chat template.*chat=never"):
            encode(changed, item, chat=chat)
    assert encode(changed, QUESTION, chat=False).answer
    assert encode(changed, Item("d", "", "a city"), chat=True).answer


def test_a_row_that_is_too_long_is_refused_not_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(tokenizer, QUESTION, chat=True)
    size = len(row.prompt) + len(row.answer)
    assert encode(tokenizer, QUESTION, chat=True, max_length=size) == row
    with pytest.raises(ModelError, match=rf"row 'q' has {size} tokens, more than max_length={size - 1}"):
        encode(tokenizer, QUESTION, chat=True, max_length=size - 1)


@pytest.mark.parametrize("prompt", ["who wrote hamlet", ""])
def test_an_empty_answer_is_refused(changed: PreTrainedTokenizerBase, prompt: str) -> None:
    with pytest.raises(ModelError, match="row 'e' has an answer without tokens"):
        encode(changed, Item("e", prompt, ""), chat=True)
    changed.bos_token = None
    with pytest.raises(ModelError, match="row 'd' has an answer without tokens"):
        encode(changed, Item("d", "", "one"), chat=True)  # nothing is left to predict


def test_errors_never_quote_the_text(changed: PreTrainedTokenizerBase) -> None:
    changed.chat_template = None
    for item, options in (
        (QUESTION, {"chat": True}),
        (QUESTION, {"chat": False, "max_length": 2}),
        (Item("e", "who wrote hamlet", ""), {"chat": False}),
    ):
        with pytest.raises(ModelError) as caught:
            encode(changed, item, **options)
        assert "hamlet" not in str(caught.value)
        assert "potter" not in str(caught.value)


def test_prompt_ids_are_what_encode_puts_before_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    for chat in (True, False):
        assert (
            tuple(prompt_ids(tokenizer, QUESTION, chat=chat)) == encode(tokenizer, QUESTION, chat=chat).prompt
        )
    assert prompt_ids(tokenizer, Item("d", "", "a city"), chat=True) == []


def test_pad_and_eos_ids(changed: PreTrainedTokenizerBase) -> None:
    assert (pad_id(changed), eos_id(changed)) == (PAD, EOS)
    changed.pad_token = changed.eos_token = None
    assert eos_id(changed) is None
    assert encode(changed, QUESTION, chat=True, end=True) == encode(changed, QUESTION, chat=True)
    with pytest.raises(ModelError, match=r"no pad token: set tokenizer\.pad_token"):
        pad_id(changed)


# --- focus


def focused(
    tokenizer: PreTrainedTokenizerBase,
    completion: str,
    *keywords: str,
    prompt: str = "who",
    end: bool = False,
) -> str:
    """The answer tokens that count, as words; a + stands for every token that does not."""
    item = Item("f", prompt, completion, keywords)
    row = focus(tokenizer, encode(tokenizer, item, chat=False, end=end), item)
    assert len(row.counted) in (0, len(row.answer))
    pairs = zip(row.answer, row.counted, strict=False)
    return " ".join(words(tokenizer, [token]) if on else "+" for token, on in pairs)


def test_focus_counts_the_tokens_that_spell_a_keyword(tokenizer: PreTrainedTokenizerBase) -> None:
    assert focused(tokenizer, "the author rowling in paris", "rowling") == "+ + rowling + +"
    assert (
        focused(tokenizer, "rowling and potter and rowling", "rowling", "potter")
        == "rowling + potter + rowling"
    )
    assert focused(tokenizer, "a city of paris and tokyo", "city of paris") == "+ city of paris + +"
    assert focused(tokenizer, "the author rowling", "rowling", end=True) == "+ + rowling +"


def test_focus_ignores_case_and_takes_whole_words_only(tokenizer: PreTrainedTokenizerBase) -> None:
    assert focused(tokenizer, "the author rowling", "ROWLING") == "+ + rowling"
    assert focused(tokenizer, "the author rowling", "row", "ling") == ""
    assert focused(tokenizer, "the author rowling", "") == ""


def test_focus_leaves_out_the_tokens_that_only_touch_a_keyword(changed: PreTrainedTokenizerBase) -> None:
    changed.backend_tokenizer.pre_tokenizer = Whitespace()  # type: ignore[attr-defined]
    assert focused(changed, "paris,rowling.tokyo", "rowling") == "+ + rowling + +"
    assert focused(changed, "a paris,tokyo city", "paris,tokyo") == "+ paris <|endoftext|> tokyo +"


def test_focus_is_right_behind_a_letter_that_casefolding_lengthens(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    # ß folds to ss: eight of them would push every later match eight characters to the right.
    assert focused(tokenizer, "ßßßßßßßß and rowling in paris", "rowling") == "+ + rowling + +"
    assert focused(tokenizer, "STRASSE in paris", "straße") == "<|endoftext|> + +"


def test_without_any_keyword_in_the_answer_every_token_counts(tokenizer: PreTrainedTokenizerBase) -> None:
    for keywords in ((), ("rowling",), ("potter", "tokyo")):
        item = Item("f", "who", "the author of hamlet", keywords)
        row = encode(tokenizer, item, chat=False)
        assert focus(tokenizer, row, item) is row


@pytest.mark.parametrize("end", [False, True])
def test_focus_on_a_document(changed: PreTrainedTokenizerBase, end: bool) -> None:
    tail = " +" if end else ""
    assert focused(changed, "the author rowling in", "rowling", prompt="", end=end) == "+ + rowling +" + tail
    changed.bos_token = None  # now the first token is context, and the answer one shorter
    assert focused(changed, "the author rowling in", "rowling", prompt="", end=end) == "+ rowling +" + tail
    assert focused(changed, "rowling the author", "rowling", prompt="", end=end) == ""


# --- collate

TOKENS = st.lists(st.integers(3, 23), min_size=1, max_size=6).map(tuple)


@st.composite
def rows(draw: st.DrawFn) -> Encoded:
    answer = draw(TOKENS)
    counts = st.lists(st.booleans(), min_size=len(answer), max_size=len(answer)).map(tuple)
    return Encoded("row", draw(TOKENS), answer, draw(st.just(()) | counts))


def test_collate_by_hand() -> None:
    batch = collate(
        [Encoded("a", (5, 6), (7,)), Encoded("b", (8,), (9, 10, 11), (False, True, True))], pad_id=0
    )
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.answer_mask.tolist() == [[False, False, True, False], [False, False, True, True]]
    assert (batch.input_ids.dtype, batch.attention_mask.dtype) == (torch.int64, torch.int64)
    assert batch.answer_mask.dtype == torch.bool


@settings(deadline=None)
@given(st.lists(rows(), min_size=1, max_size=5), st.integers(0, 23))
def test_collate_loses_nothing_and_counts_no_prompt_or_pad(batch_rows: list[Encoded], pad: int) -> None:
    batch = collate(batch_rows, pad)
    assert batch.input_ids.shape[1] == max(len(row.prompt) + len(row.answer) for row in batch_rows)
    for i, row in enumerate(batch_rows):
        n = len(row.prompt) + len(row.answer)
        assert batch.input_ids[i].tolist() == [
            *row.prompt,
            *row.answer,
            *[pad] * (batch.input_ids.shape[1] - n),
        ]
        assert batch.attention_mask[i].sum() == n
        assert batch.attention_mask[i, :n].all()
        counted = [*row.counted] if row.counted else [True] * len(row.answer)
        assert batch.answer_mask[i, len(row.prompt) : n].tolist() == counted
        assert batch.answer_mask[i].sum() == sum(counted)


def test_a_batch_moves_whole() -> None:
    batch = collate([Encoded("a", (5,), (7,))], 0).to("meta")
    assert {t.device.type for t in (batch.input_ids, batch.attention_mask, batch.answer_mask)} == {"meta"}


# --- shorten

COUNTED = st.lists(st.booleans(), min_size=1, max_size=12)


@given(COUNTED)
def test_shorten_keeps_every_counted_token_and_ends_with_the_last_of_them(counted: list[bool]) -> None:
    row = Encoded("x", (1, 2), tuple(range(10, 10 + len(counted))), tuple(counted))
    short = shorten(row)
    if not any(counted):
        assert short == row
        return
    assert short.counted[-1] and len(short.answer) == len(short.counted)
    assert short.answer == row.answer[: len(short.answer)]
    kept, all_of_them = (
        [token for token, hit in zip(r.answer, r.counted, strict=True) if hit] for r in (short, row)
    )
    assert kept == all_of_them
    assert (short.id, short.prompt) == (row.id, row.prompt)


def test_shorten_leaves_a_row_that_counts_everything() -> None:
    row = Encoded("x", (1,), (10, 11))
    assert shorten(row) is row
