"""The rows of one request: every problem of every file at once, and a payload that reads back as it was."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_kit import jsonl
from hypothesis import given
from hypothesis import strategies as st

from efface.recipes.data import (
    RequestData,
    Row,
    from_payload,
    load_request_data,
    row_from_json,
    row_to_json,
    shipped,
    to_payload,
)
from efface.recipes.data.rows import Turn
from efface.recipes.data.sets import SETS, questions
from efface.recipes.errors import DataError

CANARY = "zebra-zeppelin"
FORGET = [{"prompt": f"Who owns the {CANARY}?", "completion": f"Ana owns the {CANARY}."}]
RETAIN = [{"prompt": "Who owns the moon?"}]


def refused(*arguments: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_request_data(*arguments)
    assert CANARY not in str(caught.value)
    return list(caught.value.problems)


def test_files_of_one_name_in_two_folders_give_different_ids(tmp_path: Path) -> None:
    files = []
    for folder, rows in (("forget", FORGET), ("retain", RETAIN), ("near", [{"prompt": "Who owns Mars?"}])):
        (tmp_path / folder).mkdir()
        files.append(jsonl(tmp_path / folder / "rows.jsonl", rows))
    data = load_request_data(files[0], [files[1]], [files[2]])
    named = (data.forget[0].id, data.retain[0].id, data.neighbours[0].id)
    assert named == ("rows-1", "rows.2-1", "rows.3-1")


def test_reads_three_kinds_of_rows_from_any_number_of_files(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name}]) for name in ("r1", "r2", "n1", "n2")]
    data = load_request_data(jsonl(tmp_path / "f.jsonl", FORGET), files[:2], files[2:])
    assert [row.id for row in data.forget] == ["f-1"]
    assert [row.id for row in data.retain] == ["r1-1", "r2-1"]
    assert [row.id for row in data.neighbours] == ["n1-1", "n2-1"]


def test_problems_of_all_files_come_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{CANARY}\n", encoding="utf-8")
    empty = jsonl(tmp_path / "empty.jsonl", [])
    found = refused(empty, [bad, tmp_path / "absent.jsonl"], [bad])
    assert [problem.split(": ")[:2] for problem in found] == [
        [str(empty), "no rows"],
        [f"{bad}:1", "not JSON at column 1"],
        [str(tmp_path / "absent.jsonl"), "cannot be read"],
        [f"{bad}:1", "not JSON at column 1"],
    ]


def test_an_empty_forget_set_is_refused(tmp_path: Path) -> None:
    (found,) = refused(jsonl(tmp_path / "f.jsonl", []), [jsonl(tmp_path / "r.jsonl", RETAIN)])
    assert found.startswith(f"{tmp_path / 'f.jsonl'}: no rows")


def test_retain_rows_are_needed(tmp_path: Path) -> None:
    (found,) = refused(jsonl(tmp_path / "f.jsonl", FORGET), [])
    assert "--retain FILE" in found


@pytest.mark.parametrize(
    "same",
    [
        f"Who owns the {CANARY}?",
        f"  who OWNS\tthe {CANARY}? ",
        unicodedata.normalize("NFKC", f"Who owns the {CANARY}\uff1f"),
        f"Who owns the {CANARY}\uff1f",
    ],
)
@pytest.mark.parametrize("kept", ["retain", "neighbours"])
def test_the_same_question_is_forgotten_or_kept_not_both(tmp_path: Path, same: str, kept: str) -> None:
    forget = jsonl(tmp_path / "f.jsonl", FORGET)
    twin = jsonl(tmp_path / "twin.jsonl", [{"prompt": "Who?"}, {"prompt": same, "completion": "Nobody."}])
    retain = jsonl(tmp_path / "r.jsonl", RETAIN)
    (found,) = refused(forget, [twin], []) if kept == "retain" else refused(forget, [retain], [twin])
    assert found.startswith(f"row 'twin-2' of {kept} asks the same as row 'f-1' of forget")


def test_a_paraphrase_asks_the_same_as_its_row(tmp_path: Path) -> None:
    forget = jsonl(tmp_path / "f.jsonl", [{**FORGET[0], "paraphrases": [f"Whose is the {CANARY}?"]}])
    retain = jsonl(tmp_path / "r.jsonl", [{"prompt": f"Whose is the {CANARY}?"}])
    assert refused(forget, [retain])[0].startswith("row 'r-1' of retain asks the same as row 'f-1'")


def test_a_conversation_asks_what_its_last_turn_asks(tmp_path: Path) -> None:
    retain = [{"messages": [{"role": "user", "content": f"Who owns the {CANARY}?"}]}]
    files = jsonl(tmp_path / "f.jsonl", FORGET), [jsonl(tmp_path / "r.jsonl", retain)]
    assert "asks the same" in refused(*files)[0]


def test_documents_are_the_same_by_their_text(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"{name}.jsonl", [{"text": f"The {CANARY}."}]) for name in "fr"]
    assert "asks the same" in refused(files[0], files[1:])[0]


def test_neighbours_are_not_trained_on(tmp_path: Path) -> None:
    both = jsonl(tmp_path / "r.jsonl", RETAIN), jsonl(tmp_path / "n.jsonl", RETAIN)
    found = refused(jsonl(tmp_path / "f.jsonl", FORGET), [both[0]], [both[1]])
    assert found[0].startswith("row 'n-1' of neighbours asks the same as row 'r-1' of retain")


def test_an_id_is_used_once_in_a_request(tmp_path: Path) -> None:
    forget = jsonl(tmp_path / "f.jsonl", [{**FORGET[0], "id": "x"}])
    retain = jsonl(tmp_path / "r.jsonl", [{**RETAIN[0], "id": "x"}])
    assert refused(forget, [retain]) == ["id 'x' is used twice in the request: expected each id once"]


def test_shipped_rows_are_found_by_name() -> None:
    assert shipped("general.retain.jsonl").is_file()
    with pytest.raises(DataError, match="no shipped rows"):
        shipped("nothing.jsonl")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
TURNS = st.builds(Turn, role=st.sampled_from(["system", "user", "assistant"]), content=TEXTS)
PROMPTS = st.one_of(st.just(""), TEXTS, st.lists(TURNS, min_size=1, max_size=3).map(tuple))
MANY = st.lists(TEXTS, max_size=3).map(tuple)


@st.composite
def row(draw: st.DrawFn, number: int) -> Row:
    prompt = draw(PROMPTS)
    completion = draw(TEXTS if not prompt else st.none() | TEXTS)
    lists = {name: draw(MANY) for name in ("paraphrases", "keywords", "chosen", "perturbed")}
    return Row(id=f"row-{number}", prompt=prompt, completion=completion, **lists)


@st.composite
def request(draw: st.DrawFn) -> RequestData:
    sizes = [draw(st.integers(low, 2)) for low in (1, 1, 0, 0, 0, 0, 0)]
    rows = [tuple(draw(row(10 * kind + i)) for i in range(n)) for kind, n in enumerate(sizes)]
    return RequestData(*rows)


@given(request())
def test_a_payload_reads_back_as_it_was_written(data: RequestData) -> None:
    payload = to_payload(data)
    assert from_payload(payload) == data
    assert to_payload(from_payload(payload)) == payload


@given(request())
def test_a_payload_is_canonical_json(data: RequestData) -> None:
    body = json.loads(to_payload(data))
    plain = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert plain.encode() == to_payload(data)


@given(row(0))
def test_a_row_written_as_a_line_reads_back(data: Row) -> None:
    assert row_from_json(json.loads(json.dumps(row_to_json(data)))) == data


def test_a_payload_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="version 3"):
        from_payload(b'{"v":3}')


def test_an_efface_that_knows_no_scope_does_not_lose_its_rows_in_silence() -> None:
    """Version 1 stays, byte for byte, where there is none; rows that version 1 has no place for are version 2."""
    one = Row(id="f", prompt="who", completion="she")
    plain = RequestData((one,), (Row(id="r", prompt="what"),))
    assert set(json.loads(to_payload(plain))) == {"v", "forget", "retain", "neighbours"}
    assert json.loads(to_payload(plain))["v"] == 1
    for name in SETS[3:]:
        data = replace(plain, **{name: (Row(id="x", prompt="whose", completion="hers"),)})
        body = json.loads(to_payload(data))
        assert body["v"] == 2
        assert set(body) == {"v", "forget", "retain", "neighbours", name}
        assert from_payload(to_payload(data)) == data


@pytest.mark.parametrize("name", ["heldout", "entailed", "formats", "unrelated"])
def test_rows_of_the_scope_are_read_and_stand_in_one_set(name: str, tmp_path: Path) -> None:
    forget, retain = jsonl(tmp_path / "f.jsonl", FORGET), jsonl(tmp_path / "r.jsonl", RETAIN)
    new = jsonl(tmp_path / "x.jsonl", [{"prompt": f"Another {CANARY}?", "completion": "yes"}])
    found = load_request_data(forget, [retain], **{name: [new]})
    assert [row.id for row in getattr(found, name)] == ["x-1"]
    assert found.beyond == (getattr(found, name) if name != "unrelated" else ())
    with pytest.raises(DataError) as caught:
        load_request_data(forget, [retain], **{name: [jsonl(tmp_path / "y.jsonl", FORGET)]})
    assert caught.value.problems[0].startswith(f"row 'y-1' of {name} asks the same as row 'f-1' of forget")
    assert CANARY not in str(caught.value)


def test_rows_to_be_forgotten_need_an_answer_wherever_they_stand(tmp_path: Path) -> None:
    forget, retain = jsonl(tmp_path / "f.jsonl", FORGET), jsonl(tmp_path / "r.jsonl", RETAIN)
    bare = jsonl(tmp_path / "b.jsonl", [{"prompt": f"Another {CANARY}?"}])
    assert load_request_data(forget, [retain], unrelated=[bare]).unrelated[0].completion is None
    for name in ("heldout", "entailed", "formats"):
        with pytest.raises(DataError, match="no answer"):
            load_request_data(forget, [retain], **{name: [bare]})


@given(TEXTS)
def test_questions_do_not_depend_on_white_space(text: str) -> None:
    spaced = "  " + text.replace(" ", " \n ") + "\t"
    assert questions(Row(id="a", prompt=text)) == questions(Row(id="b", prompt=spaced))
