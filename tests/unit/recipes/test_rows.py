"""Rows are read from every documented format, or refused by file and line without a word of their text."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_kit import jsonl

from efface.recipes.data import Row, read_rows
from efface.recipes.data.files import MAX_ARRAY_BYTES, MAX_FILE_BYTES, MAX_LINE_BYTES
from efface.recipes.errors import DataError

CANARY = "zebra-zeppelin"  # stands in every text of a bad row; no message may hold it


def read(path: Path, *rows: Any, answers_required: bool = True) -> tuple[Row, ...]:
    return read_rows(jsonl(path / "forget.jsonl", rows), answers_required=answers_required)


def problems(path: Path, *lines: Any, answers_required: bool = True) -> list[str]:
    """What is said of these lines (rows, or raw text), without the file's name in front."""
    file = path / "forget.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_rows(file, answers_required=answers_required)
    assert all(problem.startswith(f"{file}:") for problem in caught.value.problems)
    assert str(caught.value) == "\n".join(caught.value.problems)
    assert CANARY not in str(caught.value)
    return [problem.removeprefix(f"{file}:").strip() for problem in caught.value.problems]


def test_prompt_completion(tmp_path: Path) -> None:
    row = {
        "id": "a",
        "prompt": "Who?",
        "completion": "She.",
        "paraphrases": ["By whom?"],
        "keywords": ["She"],
        "chosen": ["I do not know."],
        "perturbed": ["He.", "They."],
    }
    (found,) = read(tmp_path, row)
    assert found == Row(
        id="a",
        prompt="Who?",
        completion="She.",
        paraphrases=("By whom?",),
        keywords=("She",),
        chosen=("I do not know.",),
        perturbed=("He.", "They."),
    )
    assert found.question == "Who?"


def test_conversation_whose_last_turn_answers(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "She."},
    ]
    (found,) = read(tmp_path, {"messages": turns, "keywords": ["She"]})
    assert (found.question, found.completion, found.keywords) == ("Who?", "She.", ("She",))
    assert found.item().prompt == tuple(turns[:2])


def test_conversation_without_an_answer_is_a_retain_row(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"messages": [{"role": "user", "content": "Who?"}]}, answers_required=False)
    assert (found.question, found.completion) == ("Who?", None)


def test_conversation_as_trl_writes_prompt_and_completion(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"prompt": [{"role": "user", "content": "Who?"}], "completion": "She."})
    assert (found.question, found.completion) == ("Who?", "She.")


def test_tofu_as_it_is(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "answer": "She.",
        "paraphrased_question": "By whom?",
        "paraphrased_answer": "It was she.",
        "perturbed_answer": ["He.", "They."],
    }
    (found,) = read(tmp_path, row)
    assert found == Row(
        id="forget-1",
        prompt="Who?",
        completion="She.",
        paraphrases=("By whom?",),
        perturbed=("He.", "They."),
        paraphrased_answer=("It was she.",),
    )


def test_plain_document(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"text": "Once upon a time.", "id": 7})
    assert (found.id, found.prompt, found.completion) == ("7", "", "Once upon a time.")
    assert found.question == ""


def test_rows_without_an_id_are_named_after_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('\n{"text": "a"}\n\n  \r\n{"text": "b"}\r\n', encoding="utf-8")
    assert [row.id for row in read_rows(path, answers_required=True)] == ["mine-2", "mine-5"]


def test_byte_order_mark_and_text_beyond_ascii(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"text": "Žofie \u2028 面"}'.encode())
    assert read_rows(path, answers_required=True)[0].completion == "Žofie \u2028 面"


def test_paraphrases_are_asked_for_the_same_answer_and_keywords(tmp_path: Path) -> None:
    (found,) = read(
        tmp_path,
        {"id": "a", "prompt": "p", "completion": "c", "paraphrases": ["q", "r"], "keywords": ["c"]},
    )
    items = [(item.id, item.prompt, item.completion, item.keywords) for item in found.paraphrased()]
    assert items == [("a/p1", "q", "c", ("c",)), ("a/p2", "r", "c", ("c",))]


def test_an_item_needs_an_answer_from_somewhere(tmp_path: Path) -> None:
    row = Row(id="a", prompt="p")
    assert row.item("given").completion == "given"
    with pytest.raises(DataError, match="no completion"):
        row.item()


def test_every_bad_line_is_named_at_once_and_what_was_expected(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        {"prompt": CANARY, "completion": CANARY},
        {"prompt": CANARY},
        f'{{"prompt": "{CANARY}"',
        ["prompt", CANARY],
        {"prompt": CANARY, "text": CANARY},
        {"comment": CANARY},
        {"prompt": 3, "completion": CANARY},
        {"prompt": CANARY, "completion": ""},
        {"prompt": CANARY, "completion": CANARY, "keywords": [CANARY, 3]},
        {"messages": CANARY},
        {"messages": []},
        {"messages": [{"role": "robot", "content": CANARY}]},
        {"messages": [{"role": "user"}, {"role": "assistant", "content": CANARY}]},
        {"prompt": "", "paraphrases": CANARY},
    )
    expected = [
        (2, "no answer: a forget row needs `completion`"),
        (3, "not JSON at column"),
        (4, "expected a JSON object, found list"),
        (5, "exactly one of `prompt`, `messages`, `question`, `text`, found `prompt` and `text`"),
        (6, "exactly one of `prompt`, `messages`, `question`, `text`, found keys ['comment']"),
        (7, "`prompt`: Input should be"),
        (8, "`completion`: String should have at least 1 character"),
        (9, "`keywords.1`: Input should be a valid string"),
        (10, "`messages` must be a list of objects"),
        (11, "`messages` must be a list of objects"),
        (12, "Input should be 'system', 'user' or 'assistant'"),
        (13, "Field required"),
        (14, "a row needs a prompt, a completion, or both"),
    ]
    for line, what in expected:
        assert any(p.startswith(f"{line}: ") and what in p for p in found), (line, what, found)
    assert {int(problem.partition(":")[0]) for problem in found} == {line for line, _ in expected}


@pytest.mark.parametrize("key", ["comment", "strange", "tuples", "functions", "str"])
def test_an_unknown_key_is_named(tmp_path: Path, key: str) -> None:
    (found,) = problems(tmp_path, {"prompt": "p", "completion": CANARY, key: CANARY})
    assert found.startswith("1: ")
    assert f"`{key}`" in found


def test_a_bad_turn_is_named_by_its_place(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Who?"}
    for bad, said in (
        ({**turn, "name": CANARY}, "`prompt.1.name`: Extra inputs"),
        ({"role": "user"}, "`prompt.1.content`: Field required"),
        ({**turn, "role": CANARY}, "`prompt.1.role`: Input should be 'system'"),
    ):
        found = problems(tmp_path, {"prompt": [turn, bad], "completion": CANARY})
        assert any(said in problem for problem in found), found


def test_a_text_in_the_place_of_a_key_is_not_repeated(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        {f"Who owns the {CANARY}?": "She."},
        {"prompt": "p", "completion": "c", f"Who owns the {CANARY}?": "She."},
    )
    assert [problem.partition(":")[0] for problem in found] == ["1", "2"]


def test_forget_rows_need_answers_and_others_do_not(tmp_path: Path) -> None:
    assert read(tmp_path, {"prompt": "p"}, answers_required=False)[0].completion is None
    assert "completion" in problems(tmp_path, {"prompt": "p"})[0]
    assert "completion" in problems(tmp_path, {"question": "p"})[0]


@pytest.mark.parametrize("blank", [" ", "\t\n", "\u00a0"])
def test_text_of_white_space_alone_is_no_text(tmp_path: Path, blank: str) -> None:
    for row in (
        {"prompt": "p", "completion": blank},
        {"prompt": "p", "completion": "c", "keywords": [blank]},
        {"prompt": "p", "completion": "c", "paraphrases": ["q", blank]},
        {"text": blank},
    ):
        assert problems(tmp_path, row)[0].startswith("1: ")


def test_a_conversation_of_one_answer_has_no_question(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, {"messages": [{"role": "assistant", "content": CANARY}]})
    assert "user" in found


def test_ids_and_rows_stand_once(tmp_path: Path) -> None:
    same = {"prompt": CANARY, "completion": CANARY}
    found = problems(tmp_path, {"id": "a", **same}, {"id": "a", "text": CANARY}, {"id": "b", **same})
    assert found == [
        "id 'a' is used twice: expected each id once",
        "rows 'a' and 'b' are the same: expected each row once",
    ]


@pytest.mark.parametrize("id", ["", None, True, 1.5, ["a"], {"a": CANARY}, CANARY + "\n" + CANARY])
def test_an_id_is_a_short_name(tmp_path: Path, id: object) -> None:
    assert "id" in problems(tmp_path, {"id": id, "text": CANARY})[0]


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff", " \r\n\t"])
def test_an_empty_file_has_no_rows(tmp_path: Path, text: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith("no rows: expected JSON lines")


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(DataError, match=r"a\.jsonl: expected UTF-8 text, byte 13 is not"):
        read_rows(path, answers_required=True)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Is a directory"):
        read_rows(tmp_path, answers_required=True)
    with pytest.raises(DataError, match="No such file"):
        read_rows(tmp_path / "absent.jsonl", answers_required=True)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_what_never_ends_is_not_read(tmp_path: Path, name: str) -> None:
    """A pipe that nobody writes to, and a device that has no end."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="expected a regular file, found a device or a pipe"):
        read_rows(tmp_path / name, answers_required=True)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="expected a regular file"):
        read_rows(tmp_path / name, answers_required=True)


@pytest.mark.parametrize(
    ("name", "most"),
    [("rows.jsonl", MAX_FILE_BYTES), ("rows.csv", MAX_FILE_BYTES), ("rows.json", MAX_ARRAY_BYTES)],
)
def test_a_file_beyond_the_limit_is_refused_by_its_size(tmp_path: Path, name: str, most: int) -> None:
    path = tmp_path / name
    path.write_text("[")
    os.truncate(path, most + 1)  # sparse
    with pytest.raises(DataError, match=f"expected at most {most} bytes, found {most + 1}"):
        read_rows(path, answers_required=True)


def test_a_huge_line_is_refused_by_its_size(tmp_path: Path) -> None:
    found = problems(tmp_path, {"text": CANARY * MAX_LINE_BYTES}, {"text": CANARY})
    assert len(found) == 1
    assert found[0].startswith("1: a line of ")
    assert str(MAX_LINE_BYTES) in found[0]
    assert read(tmp_path, {"text": "a" * (MAX_LINE_BYTES - 100)})


@pytest.mark.parametrize(
    "line",
    [
        "[" * 400_000,
        '{"prompt": ' * 100_000,
        '{"prompt": "p", "completion": "c", "id": ' + "9" * 5000 + "}",
        '{"text": NaN}',
        '{"text": "\\ud800"}',
        '{"prompt": "p", "completion": "a", "keywords": ["\\udfff"]}',
        '{"id": "\\ud800", "text": "a"}',
        "\x00",
    ],
)
def test_hostile_json_is_a_bad_line(tmp_path: Path, line: str) -> None:
    (found,) = problems(tmp_path, line)
    assert found.startswith("1: ")
