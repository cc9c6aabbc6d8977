"""What the length report counts, by hand and against encoding itself."""

from copy import deepcopy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from efface.adapters import Encoded, ModelError, encode
from efface.recipes import RequestData, Row
from efface.recipes.data.rows import Turn
from efface.recipes.lengths import (
    RowLength,
    Spread,
    format_lengths,
    lengths,
    open_tokenizer,
    request_lengths,
    row_length,
)

DATA = RequestData(
    (
        Row(
            id="f1",
            prompt="who wrote hamlet",
            completion="potter",
            chosen=("a city", "what"),
            paraphrases=("who",),
        ),
        Row(id="f2", prompt="who", completion="the author of the play is potter"),
    ),
    (
        Row(id="r1", prompt="what is paris", completion="a city"),
        Row(id="r2", prompt="what is tokyo in the play"),
    ),
    (Row(id="n1", prompt="", completion="the city of paris and tokyo and hamlet"),),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_a_request_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    report = request_lengths(tokenizer, DATA, chat=False, max_length=8, max_new_tokens=5)
    found = {s.name: (s.n, s.own, s.prompt, s.answer, s.too_long, dict(s.cut)) for s in report.sets}
    assert found == {
        "forget": (2, 0, Spread(1, 1, 3, 3), Spread(1, 1, 7, 7), (), {"answer": 0, "prompt": 0}),
        "alternates": (2, 0, Spread(3, 3, 3, 3), Spread(2, 2, 3, 3), (), {"answer": 0, "prompt": 0}),
        "paraphrases": (1, 0, Spread(1, 1, 1, 1), Spread(1, 1, 1, 1), (), {"answer": 0, "prompt": 0}),
        "retain": (2, 1, Spread(3, 3, 6, 6), Spread(3, 3, 5, 5), ("r2",), {"answer": 1, "prompt": 1}),
        "neighbours": (1, 0, Spread(1, 1, 1, 1), Spread(8, 8, 8, 8), ("n1",), {"answer": 1, "prompt": 0}),
    }


def test_chat_prompts_cannot_be_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    report = request_lengths(tokenizer, DATA, chat=True, max_length=9, max_new_tokens=5)
    forget = report.sets[0]
    assert (forget.too_long, dict(forget.cut)) == (("f2",), {"answer": 1, "prompt": 0})


def test_the_table_says_it_all_and_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    report = request_lengths(tokenizer, DATA, chat=False, max_length=8, max_new_tokens=5)
    table = format_lengths(report)
    assert table.splitlines()[0].split()[:2] == ["tokens", "rows"]
    assert [line.split()[0] for line in table.splitlines()[1:6]] == [s.name for s in report.sets]
    assert table.splitlines()[4].split() == [
        "retain",
        "2",
        "3",
        "3",
        "6",
        "6",
        "3",
        "3",
        "5",
        "5",
        "1",
        "1",
        "1",
    ]
    assert table.splitlines()[6] == "rows without an answer: 1, counted with the most that the base may say"
    assert not any(word in table + str(report.to_json()) for word in ("hamlet", "potter", "paris"))


def test_rows_that_cannot_be_encoded_are_named(tokenizer: PreTrainedTokenizerBase) -> None:
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    turn = (Turn(role="user", content="who"),)
    rows = [Row(id=name, prompt=turn, completion="potter") for name in "ab"]
    with pytest.raises(ModelError) as caught:
        request_lengths(
            bare, RequestData((rows[0],), (*DATA.retain, rows[1])), chat=False, max_length=8, max_new_tokens=5
        )
    assert [line.split("'")[1] for line in str(caught.value).splitlines()] == ["a", "b"]


LENGTHS = st.builds(RowLength, st.just("r"), st.integers(1, 40), st.integers(1, 40), st.integers(0, 1))


@given(st.lists(LENGTHS, min_size=1, max_size=50), st.integers(2, 60))
def test_sums(rows: list[RowLength], limit: int) -> None:
    (found,) = lengths({"a": rows, "b": []}, limit).sets
    answers = sorted(row.answer for row in rows)
    assert (found.n, found.answer.min, found.answer.max) == (len(rows), answers[0], answers[-1])
    assert sum(a <= found.answer.median for a in answers) * 2 >= len(rows)
    assert sum(a <= found.answer.p95 for a in answers) >= 0.95 * len(rows)
    assert sum(a < found.answer.p95 for a in answers) < 0.95 * len(rows)
    assert len(found.too_long) == sum(row.prompt + row.answer > limit for row in rows)
    assert max(found.cut.values()) <= len(found.too_long)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(2, 18), st.sampled_from(["answer", "prompt"]))
def test_what_would_be_cut_is_what_encode_cuts(
    tokenizer: PreTrainedTokenizerBase, prompt: int, answer: int, limit: int, how: str
) -> None:
    row = Row(id="x", prompt=" ".join(["who"] * prompt), completion=" ".join(["paris"] * answer))
    whole = encode(tokenizer, row.item(), chat=False, max_length=None)
    (found,) = lengths({"a": [row_length(whole)]}, limit).sets
    try:
        cut: Encoded | None = encode(tokenizer, row.item(), chat=False, max_length=limit, truncation=how)  # type: ignore[arg-type]
    except ModelError:
        cut = None
    assert found.cut[how] == int(cut is not None and cut != whole)
    assert bool(found.too_long) == (cut != whole)


def test_the_tokenizer_is_read_without_the_weights(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer, config = open_tokenizer(tiny_llama)
    assert len(tokenizer) == config.vocab_size
    with pytest.raises(ModelError, match="is not a model folder"):
        open_tokenizer(tmp_path)
