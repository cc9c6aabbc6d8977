"""Files, folders and dataset ids: the same rows from each, every bad row named, and nothing of a text told."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_kit import jsonl

from efface.recipes.data import Row, load_request_data, parse_source, read_rows
from efface.recipes.data.read import MAX_PROBLEMS
from efface.recipes.errors import DataError

datasets = pytest.importorskip("datasets", reason="pip install 'efface[data]'")

CANARY = "zebra-zeppelin"
ROWS = [
    {"prompt": "Who wrote Hamlet?", "completion": "Shakespeare."},
    {"prompt": "In which year?", "completion": "1601"},
    {"prompt": "Agent 007?", "completion": "None"},
]


def read(source: Path | str, *, forget: bool = True) -> tuple[Row, ...]:
    return read_rows(source, answers_required=forget)


def refused(source: Path | str, *, forget: bool = True) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(source, forget=forget)
    assert CANARY not in str(caught.value)
    return list(caught.value.problems)


def as_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def as_array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def as_saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def as_folder(path: Path, rows: list[dict[str, Any]]) -> Path:
    as_parquet(path / "data" / "train-00000-of-00001.parquet", rows)
    return path


def as_csv_folder(path: Path, rows: list[dict[str, str]]) -> Path:
    path.mkdir()
    as_csv(path / "train.csv", [row for row in rows if row["completion"] != "1601"])
    return path


KINDS = {
    "rows.jsonl": jsonl,
    "rows.json": jsonl,
    "array.json": as_array,
    "rows.csv": as_csv,
    "rows.parquet": as_parquet,
    "saved": as_saved,
    "folder": as_folder,
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_rows_from_every_kind_of_source(tmp_path: Path, name: str) -> None:
    found = read(KINDS[name](tmp_path / name, ROWS))
    assert [{"prompt": row.prompt, "completion": row.completion} for row in found] == ROWS
    first = 2 if name == "rows.csv" else 1  # below its header
    assert [row.id for row in found] == [f"{Path(name).stem}-{first + n}" for n in range(3)]


def test_a_folder_of_csv_keeps_its_texts(tmp_path: Path) -> None:
    """pandas would take "None" for nothing, and the base would then answer in its place."""
    assert [row.completion for row in read(as_csv_folder(tmp_path / "a", ROWS))] == ["Shakespeare.", "None"]


def test_nulls_of_a_column_are_absent_fields(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "Who?", "name": None},
        {"role": "assistant", "content": "She.", "name": None},
    ]
    path = as_parquet(
        tmp_path / "a.parquet",
        [{"messages": turns, "keywords": ["She"]}, {"messages": turns[:1], "keywords": None}],
    )
    told, asked = read(path, forget=False)
    assert (told.question, told.completion, told.keywords) == ("Who?", "She.", ("She",))
    assert (asked.question, asked.completion, asked.keywords) == ("Who?", None, ())
    assert refused(path) == [
        f"{path}:2: no answer: a forget row needs `completion` (or `answer`, or `rejected` beside `chosen`), "
        "the text to be forgotten"
    ]


def test_tofu_from_parquet(tmp_path: Path) -> None:
    row = {
        "question": "Who?",
        "answer": "She.",
        "paraphrased_question": "By whom?",
        "paraphrased_answer": "It was she.",
        "perturbed_answer": ["He.", "They."],
    }
    (found,) = read(as_parquet(tmp_path / "tofu.parquet", [row]))
    assert (found.paraphrases, found.perturbed) == (("By whom?",), ("He.", "They."))
    assert found.paraphrased_answer == ("It was she.",)


def test_every_bad_row_of_every_source_at_once(tmp_path: Path) -> None:
    strange = {"prompt": CANARY, "completion": CANARY, "answers": CANARY}
    bad = [strange, ROWS[0], strange]
    files = [as_parquet(tmp_path / "a.parquet", bad), as_array(tmp_path / "b.json", bad)]
    with pytest.raises(DataError) as caught:
        load_request_data(*files[:1], files[1:])
    places = {problem.split(": ")[0] for problem in caught.value.problems}
    assert places == {f"{file}:{row}" for file in files for row in (1, 3)}
    assert CANARY not in str(caught.value)


def test_a_flood_of_bad_rows_is_counted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": ""}] * (MAX_PROBLEMS + 7))
    found = refused(path)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == f"{path}: 7 more problems of this kind"


CSV = {
    f"prompt,completion\n{CANARY}\n": (2, "expected 2 cells as in the header, found 1"),
    f'prompt,completion\n"{CANARY}" x,b\n': (2, "not CSV"),
    f'prompt,completion\n"{CANARY}\n': (2, "not CSV: unexpected end of data"),
    f"prompt,prompt\na,{CANARY}\n": (1, "a header that names every column once"),
    f"prompt,\na,{CANARY}\n": (1, "a header that names every column once"),
    f"{CANARY} who?,b\na,b\n": (2, "expected exactly one of"),
    f"prompt,completion\n{CANARY},\n": (2, "no answer"),
}


@pytest.mark.parametrize("text", CSV)
def test_a_bad_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    line, said = CSV[text]
    (found,) = refused(path)
    assert found.startswith(f"{path}:{line}: ")
    assert said in found


def test_a_broken_array_and_a_broken_parquet(tmp_path: Path) -> None:
    array, table = tmp_path / "a.json", tmp_path / "a.parquet"
    array.write_text(f'[{{"prompt": "{CANARY}"\n', encoding="utf-8")
    assert "not JSON at line 2: expected one array of objects" in refused(array)[0]
    table.write_bytes(b"PAR1" + CANARY.encode())
    assert refused(table)[0].startswith(f"{table}")


def test_a_reader_that_quotes_the_row_is_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.jsonl").write_text(f'{{"text": "a"}}\n{{"{CANARY}": 1, "{CANARY}": 2}}\n', "utf-8")
    with pytest.raises(Exception, match=CANARY):
        list(datasets.load_dataset(str(tmp_path), split="train", streaming=True))
    assert CANARY in caplog.text
    caplog.clear()
    assert refused(tmp_path) == [f"{tmp_path}:1: cannot be read (ArrowInvalid)"]
    assert caplog.text == ""
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "absent.parquet")[0]
    assert "Is a directory without data files" in refused(tmp_path)[0]
    (found,) = refused("efface-tests/no-such-dataset")
    assert found.startswith(
        "efface-tests/no-such-dataset: no file of that name, and the Hub gave no such dataset: "
    )


def test_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        as_parquet(tmp_path / "both" / f"{name}.parquet", [{"text": name}])
    as_parquet(tmp_path / "one" / "test.parquet", [{"text": "test"}])
    as_parquet(tmp_path / "two" / "test.parquet", [{"text": "test"}])
    as_parquet(tmp_path / "two" / "validation.parquet", [{"text": "validation"}])
    texts = {place: read(f"{tmp_path}/{place}")[0].completion for place in ("both", "both?split=test", "one")}
    assert texts == {"both": "train", "both?split=test": "test", "one": "test"}
    assert "no split 'train': expected split=NAME, one of test, validation" in refused(tmp_path / "two")[0]
    assert "no split 'nope'" in refused(f"{tmp_path}/both?split=nope")[0]


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    folder = as_folder(tmp_path / "a", ROWS)
    assert "nope" in refused(f"{folder}?config=nope")[0]


def test_columns(tmp_path: Path) -> None:
    path = as_parquet(tmp_path / "a.parquet", [{**ROWS[0], "label": 1}])
    assert "`label`: Extra inputs" in refused(path)[0]
    assert read(f"{path}?columns=prompt,completion")[0].completion == "Shakespeare."
    assert (
        "no column 'answer': expected some of completion, label, prompt"
        in refused(f"{path}?columns=answer")[0]
    )


def test_a_script_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    ran = tmp_path / "ran"
    (folder / "scripted.py").write_text(f"open({str(ran)!r}, 'w')", encoding="utf-8")
    as_csv(folder / "train.csv", ROWS)
    assert "scripts are no longer supported" in refused(folder)[0]
    assert not ran.exists()


def test_nothing_is_left_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    read(as_parquet(tmp_path / "a.parquet", ROWS))
    assert not list(tmp_path.glob("cache/**/*.arrow"))


def test_without_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_parquet(tmp_path / "a.parquet", ROWS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refused(path) == [f"{path}: reading it needs the `datasets` library: pip install 'efface[data]'"]
    assert "pip install 'efface[data]'" in refused("org/name")[0]
    assert read(as_csv(tmp_path / "a.csv", ROWS))


SPELLINGS = {
    "org/name": ("org/name", None, None, "name"),
    "org/name@v1.0": ("org/name", "v1.0", None, "name"),
    "locuslab/TOFU@0123abc?config=forget01&split=train": ("locuslab/TOFU", "0123abc", "forget01", "TOFU.forget01"),
    "hf://datasets/org/name@refs/pr/1": ("org/name", "refs/pr/1", None, "name"),
    "hf://datasets/org/name?config=a%20b": ("org/name", None, "a b", "name.a b"),
}  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_dataset_ids(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_source(text)
    assert (found.repo, found.revision, found.config, found.name) == SPELLINGS[text]
    assert (found.path, found.text) == (None, text)


def test_a_file_comes_before_a_dataset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for missing in ("org/rows.jsonl", "org/rows.parquet", "./org/name", "/org/name", "~/org/name", "name"):
        assert parse_source(missing).repo is None
    assert parse_source("org/name").repo == "org/name"
    (tmp_path / "org").mkdir()
    assert parse_source("org/name").repo is None  # a file that is missing, not a dataset
    assert parse_source("hf://datasets/org/name").repo == "org/name"
    jsonl(tmp_path / "odd?split=a", [{"text": "a"}])
    assert parse_source("odd?split=a").path == Path("odd?split=a")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://org/name", "expected hf://datasets/org/name"),
        ("hf://datasets/name", "expected hf://datasets/org/name"),
        ("hf://models/org/name", "expected hf://datasets/org/name"),
        ("org/name?splt=a", "`splt` is no option; did you mean `split`?"),
        ("org/name?revision=main", "write it as org/name@revision"),
        ("org/name?zzz=1", "`zzz` is no option: expected config, split, columns"),
        ("org/name?split", "expected options as config=NAME"),
        ("org/name?split=a&split=b", "expected each option once"),
        ("org/name?trust_remote_code=1", "`trust_remote_code` is no option"),
    ],
)
def test_a_malformed_id(text: str, said: str) -> None:
    (found,) = refused(text)
    assert said in found
