"""TRL's formats, with TRL's own readers as the reference where it has one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.data_utils import extract_prompt, is_conversational

from efface.recipes.data.formats import parse_row
from efface.recipes.data.rows import Row

CANARY = "zebra-zeppelin"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(data: dict[str, Any], *, forget: bool = True) -> Row:
    row, wrong = parse_row(data, "x", forget=forget)
    assert (row is not None, wrong) == (True, [])
    assert row is not None
    return row


def refused(data: dict[str, Any], *, forget: bool = True) -> str:
    row, (wrong,) = parse_row(data, "x", forget=forget)
    assert row is None
    assert CANARY not in wrong
    return wrong


def heard(row: Row) -> tuple[Any, str | None, tuple[str, ...]]:
    prompt = row.prompt if isinstance(row.prompt, str) else [turn.message() for turn in row.prompt]
    return prompt, row.completion, row.chosen


ASKED = [{"role": "system", "content": "Be brief."}, user("Who?")]
SHE, HE = [assistant("She.")], [assistant("He.")]
FORMATS: dict[str, tuple[dict[str, Any], tuple[Any, str | None, tuple[str, ...]]]] = {
    "prompt-completion": ({"prompt": "Who?", "completion": " She."}, ("Who?", " She.", ())),
    "conversational prompt-completion": ({"prompt": ASKED, "completion": SHE}, (ASKED, "She.", ())),
    "mixed prompt-completion": ({"prompt": "Who?", "completion": SHE}, ("Who?", "She.", ())),
    "messages": ({"messages": ASKED + SHE}, (ASKED, "She.", ())),
    "preference": (
        {"prompt": "Who?", "chosen": " He.", "rejected": " She."},
        ("Who?", " She.", (" He.",)),
    ),
    "conversational preference": (
        {"prompt": ASKED, "chosen": HE, "rejected": SHE},
        (ASKED, "She.", ("He.",)),
    ),
    "implicit preference": (
        {"chosen": "Who? It was he.", "rejected": "Who? It was she."},
        ("Who? It was", " she.", (" he.",)),
    ),
    "conversational implicit preference": (
        {"chosen": ASKED + HE, "rejected": ASKED + SHE},
        (ASKED, "She.", ("He.",)),
    ),
    "several alternates": (
        {"prompt": "Who?", "chosen": ["He.", "They."], "rejected": "She."},
        ("Who?", "She.", ("He.", "They.")),
    ),
    "our alternates": (
        {"prompt": "Who?", "completion": "She.", "chosen": ["He."]},
        ("Who?", "She.", ("He.",)),
    ),
    "an alternate as a message": (
        {"prompt": ASKED, "completion": SHE, "chosen": HE},
        (ASKED, "She.", ("He.",)),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_of_trl(name: str) -> None:
    data, expected = FORMATS[name]
    assert heard(read(json.loads(json.dumps(data)))) == expected


@pytest.mark.parametrize("name", [name for name in FORMATS if "implicit" in name])
def test_an_implicit_prompt_is_trls(name: str) -> None:
    data, (prompt, forgotten, (alternate,)) = FORMATS[name]
    theirs = extract_prompt(dict(data))
    if is_conversational(theirs):
        theirs |= {key: theirs[key][0]["content"] for key in ("chosen", "rejected")}
    assert (theirs["prompt"], theirs["rejected"], theirs["chosen"]) == (prompt, forgotten, alternate)


WORDS = st.lists(st.sampled_from(["blue", "black", "it", "is", "so?", "né"]), min_size=1, max_size=6).map(
    " ".join
)


@given(WORDS, WORDS, WORDS)
def test_no_word_of_an_implicit_prompt_is_cut(prompt: str, chosen: str, rejected: str) -> None:
    both = {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"}
    row, _ = parse_row(both, "x", forget=True)
    if row is None:  # nothing is left of one of them
        assert chosen.startswith(rejected) or rejected.startswith(chosen)
        return
    text, answer, (other,) = heard(row)
    assert (text + str(answer), text + other) == (f"{prompt} {rejected}", f"{prompt} {chosen}")
    for whole, cut in ((answer, text), (other, text)):
        assert not (cut[-1].isalnum() and str(whole)[0].isalnum())


BOTH = "beside `rejected` (the answer to forget) expected `chosen` (its alternate)"
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rejected alone": ({"prompt": CANARY, "rejected": CANARY}, f"{BOTH} and perhaps `prompt`, found no `chosen`"),
    "rejected and completion": (
        {"prompt": CANARY, "chosen": CANARY, "rejected": CANARY, "completion": CANARY},
        f"{BOTH} and perhaps `prompt`, found `completion`",
    ),
    "rejected of a document": ({"text": CANARY, "chosen": CANARY, "rejected": CANARY}, "found `text`"),
    "nothing in common": ({"chosen": f"a {CANARY}", "rejected": f"b {CANARY}"}, "give `prompt`"),
    "text and messages": ({"chosen": CANARY, "rejected": SHE}, "two texts or two conversations"),
    "chosen without an answer to forget": ({"prompt": CANARY, "chosen": CANARY}, "no answer: a forget row needs"),
    "a long completion": (
        {"prompt": ASKED, "completion": [assistant(CANARY), user(CANARY)]},
        "`completion`: expected text, or one message of the assistant",
    ),
    "a completion of the user": ({"prompt": ASKED, "completion": [user(CANARY)]}, "one message of the assistant"),
    "a tool call": (
        {"messages": [*ASKED, {**assistant(CANARY), "tool_calls": [CANARY]}]},
        "`messages`: expected text, or one message",
    ),
    "an answer in parts": (
        {"messages": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": CANARY}]}]},
        "`completion`: Input should be a valid string",
    ),
    "two answers": ({"messages": ASKED + SHE, "completion": CANARY}, "`completion` is given twice"),
    "two texts": ({"text": CANARY, "completion": CANARY}, "`completion` is given twice"),
    "two answers of TOFU": ({"question": "q", "answer": CANARY, "completion": CANARY}, "`completion` is given twice"),
    "TRL's unpaired preference": ({"prompt": "p", "completion": CANARY, "label": False}, "`label`: Extra inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_row_that_says_too_little_or_too_much(name: str) -> None:
    data, said = BAD[name]
    assert said in refused(data)


@pytest.mark.parametrize("data", [FORMATS[name][0] for name in FORMATS if "preference" in name])
def test_a_preference_row_is_not_kept(data: dict[str, Any]) -> None:
    """Its `rejected` would be trained to stay."""
    assert "belongs in the forget set, where `rejected` is forgotten" in refused(data, forget=False)
