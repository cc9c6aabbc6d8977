"""The rows that ship: they say what they are to be used for, and no wording leaks from one side to another."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from efface.audits import mentions
from efface.recipes.data import Row, read_rows, shipped, shipped_request
from efface.recipes.data.sets import questions
from efface.recipes.demo import SHOWN

FOLDER = shipped("general.retain.jsonl").parent
FILES = sorted(FOLDER.glob("*.jsonl"))
REQUESTS = ("shakespeare", "harry_potter")


load = shipped_request  # as the demo loads them


def rows(pattern: str) -> Iterator[Row]:
    for path in sorted(FOLDER.glob(pattern)):
        yield from read_rows(path, answers_required="forget" in path.name)


def asked(pattern: str) -> set[str]:
    """Normalised prompts, without the paraphrases."""
    return {
        question
        for row in rows(pattern)
        for question in questions(row.model_copy(update={"paraphrases": ()}))
    }


def paraphrases(pattern: str) -> list[str]:
    return [
        q
        for row in rows(pattern)
        for q in questions(row) - questions(row.model_copy(update={"paraphrases": ()}))
    ]


def test_there_are_rows_of_each_kind() -> None:
    kinds = {path.name.split(".")[1] for path in FILES}
    assert kinds == {"forget", "retain", "neighbours"}
    assert {path.name.split(".")[0] for path in FILES} == {*REQUESTS, "general", "authors", "fantasy"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_read(path: Path) -> None:
    found = read_rows(path, answers_required="forget" in path.name)
    assert len(found) >= 8
    assert all(row.id.rpartition("-")[0] for row in found)


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_load_as_the_demo_loads_them(name: str) -> None:
    data = load(name)
    assert len(data.forget) >= 24
    assert len(data.retain) >= 24
    assert len(data.neighbours) >= 8


def test_the_rows_that_the_demo_shows_are_there() -> None:
    ids = {
        row.id for name in REQUESTS for part in ("forget", "neighbours") for row in getattr(load(name), part)
    }
    known = ids | {item.id for name in REQUESTS for row in load(name).forget for item in row.paraphrased()}
    assert [name for _, _, names in SHOWN for name in names if name not in known] == []


@pytest.mark.parametrize("name", REQUESTS)
def test_a_forget_answer_names_a_keyword_and_its_question_does_not(name: str) -> None:
    for row in rows(f"{name}.forget.jsonl"):
        assert row.keywords, row.id
        assert mentions(row.keywords, row.completion or ""), row.id
        assert not any(mentions(row.keywords, question) for question in (row.question, *row.paraphrases)), (
            row.id
        )


@pytest.mark.parametrize("name", REQUESTS)
def test_forget_rows_have_wordings_to_be_tested_with(name: str) -> None:
    assert sum(len(row.paraphrases) for row in rows(f"{name}.forget.jsonl")) >= 10


def test_no_paraphrase_is_trained_on() -> None:
    trained = asked("*.forget.jsonl") | asked("*.retain.jsonl")
    assert sorted(set(paraphrases("*.jsonl")) & trained) == []


def test_each_paraphrase_is_worded_once() -> None:
    found = paraphrases("*.jsonl")
    assert len(found) == len(set(found))


def test_no_neighbour_is_trained_on() -> None:
    trained = letters(asked("*.retain.jsonl") | asked("*.forget.jsonl"))
    assert sorted(letters(asked("*.neighbours.jsonl")) & trained) == []


def letters(texts: set[str]) -> set[str]:
    """Moby-Dick is Moby Dick."""
    return {" ".join(re.findall(r"\w+", text)) for text in texts}


def test_kept_rows_name_their_own_keyword_and_no_forgotten_one() -> None:
    forgotten = {word for row in rows("*.forget.jsonl") for word in row.keywords}
    for row in (*rows("*.retain.jsonl"), *rows("*.neighbours.jsonl")):
        assert not mentions(forgotten, " ".join([row.question, *row.keywords])), row.id
        assert row.completion is None or not mentions(forgotten, row.completion), row.id
    for row in rows("*.neighbours.jsonl"):
        assert row.keywords, row.id
