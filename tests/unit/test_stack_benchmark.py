"""The pure parts of `benchmarks/stack.py`: which rows, in which order, what a curve's row says."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from model_kit import FORGET, RETAIN, wide

from efface.adapters import Part, compose, load_base

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from stack_protocol.columns import SAID
from stack_protocol.data import People, load_people
from stack_protocol.facts import FIRST, LAST
from stack_protocol.generated import PER_PERSON, TEMPLATE, generated_people, strangers
from stack_protocol.make import Bench, members
from stack_protocol.method import METHODS, series
from stack_protocol.page import page
from stack_protocol.plot import plot
from stack_protocol.records import Curve, is_whole, keep, read
from stack_protocol.table import summaries, write
from stack_protocol.unpacked import unpacked
from tofu_protocol.data import Row

PEOPLE = "somebody 0"


def rows(folder: Path, name: str, count: int) -> None:
    found = [
        {"question": f"{name} {i}?", "answer": f"answer {i}", "perturbed_answer": ["a", "b", "c", "d"]}
        for i in range(count)
    ]
    (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    rows(tmp_path, "forget10_perturbed", 60)
    rows(tmp_path, "retain_perturbed", 40)
    rows(tmp_path, "world_facts_perturbed", 8)
    (tmp_path / "retain90.json").write_text((tmp_path / "retain_perturbed.json").read_text())
    return tmp_path


def test_authors_neighbours_and_retain_rows_are_apart(tofu: Path) -> None:
    people = load_people(tofu, authors=2, retain=20, kept=6, facts=4)
    assert people == load_people(tofu, authors=2, retain=20, kept=6, facts=4)
    assert [len(author) for author in people.authors] == [20, 20]
    assert (len(people.retain), len(people.kept), len(people.neighbours)) == (20, 6, 6)
    assert {row.id for row in people.kept} <= {row.id for row in people.retain}
    assert not {row.id for row in people.neighbours} & {row.id for row in people.retain}
    assert len({row.question for row in people.memorised}) == 40 + 20 + 6
    with pytest.raises(SystemExit, match="at most 3 authors, got 4"):
        load_people(tofu, authors=4, retain=20, kept=6, facts=4)


def test_a_seed_draws_the_order_and_settings_are_part_of_the_key() -> None:
    first, again, other = (series("sum", seed, 16) for seed in (0, 0, 1))
    assert first.order == again.order != other.order
    assert sorted(other.order) == list(range(16))
    keys = {series(name, 0, 16).folder for name in METHODS} | {
        other.folder,
        series("sum", 0, 16, ["steps=25"]).folder,
    }
    assert len(keys) == len(METHODS) + 2


def test_generated_people_are_always_the_same_and_only_the_name_tells_them_apart() -> None:
    people = generated_people()
    assert people == generated_people()
    assert [len(rows) for rows in (people.authors, people.retain, people.kept, people.neighbours)] == [
        16,
        160,
        20,
        20,
    ]
    assert all(len(author) == PER_PERSON for author in people.authors)
    assert len({row.id for row in people.memorised}) == len({row.question for row in people.memorised}) == 500
    assert {row.id for row in people.kept} <= {row.id for row in people.retain}
    for row in people.memorised:
        assert len({row.answer, row.paraphrase, *row.wrong}) == 5
        # In the paraphrase's words: a wrong answer in the memorised ones would be likelier for its wording alone.
        assert all(len(set(row.paraphrase.split()) - set(wrong.split())) == 1 for wrong in row.wrong)
    assert all(row.answer not in row.wrong and len(set(row.wrong)) == 3 for row in people.world)
    with pytest.raises(SystemExit, match="at most 34 persons in all, got 40"):
        generated_people(persons=30)


def test_an_unpacked_base_gives_the_logits_of_the_packed_one(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_COMPUTE", "fp32")
    base = load_base(wide(tiny_llama, tmp_path / "wide"), "nf4")
    ids = torch.tensor([[1, 3, 5, 7]])
    packed = base.model(input_ids=ids).logits
    plain = unpacked(base)
    assert not any(isinstance(module, Linear4bit) for module in plain.model.modules())
    assert torch.equal(plain.model(input_ids=ids).logits, packed)
    assert plain.fingerprint == base.fingerprint


def figures(es: float) -> dict[str, float]:
    return {"probability": es, "extraction_strength": es, "rouge_l": 0.4, "fluency": 5.0}


def record(*values: float, utility: float = 0.5) -> dict[str, object]:
    side = {"probability": 0.9, "rouge_l": 0.8, "truth_ratio": 0.5}
    return {
        "date": "2026-01-01",
        "machine": "a machine",
        "versions": {"torch": "2"},
        "requests": [{"author": i, **figures(es)} for i, es in enumerate(values)],
        "kept": side,
        "neighbours": side,
        "world": side,
        "utility": utility,
        "rank": 16 * len(values),
        "compose_seconds": 0.1,
        "rollback": {"digest": True, "logits": True, "base": True},
    }


def curve(seed: int, *stacked: float, base: str = "sha256:0") -> Curve:
    singles = {i: {"requests": [{"author": i, **figures(0.1)}]} for i in range(len(stacked))}
    training = [{"cpu_seconds": 60.0, "steps": 30}]
    stacks = {len(stacked): record(*stacked, utility=0.4)}
    before, without = record(*[0.9] * len(stacked)), record(*[0.1] * len(stacked))
    key = series("sum", seed, 16).key
    return Curve(METHODS["sum"], seed, key, PEOPLE, base, before, without, stacks, singles, training)


def test_rebound_is_of_the_worst_request_and_spread_over_seeds() -> None:
    (row,) = summaries([curve(0, 0.1, 0.3), curve(1, 0.2, 0.2), curve(2, 0.0, 0.1)])
    assert row["figures"]["worst rebound in ES"] == pytest.approx({"median": 0.1, "min": 0.0, "max": 0.2})
    assert row["figures"]["worst ES"]["max"] == 0.3
    assert row["figures"]["utility to N = 0"]["median"] == pytest.approx(0.8)
    assert (row["n"], row["seeds"], row["rollback_exact"]) == (2, [0, 1, 2], [3, 3])


def test_a_rebound_without_every_adapter_alone_is_not_a_figure() -> None:
    whole = curve(0, 0.1, 0.3)
    (row,) = summaries([replace(whole, singles={0: whole.singles[0]})])
    assert "worst rebound in ES" not in row["figures"]


def test_the_page_and_the_plot_come_from_the_same_data(tmp_path: Path) -> None:
    curves = [curve(0, 0.1, 0.3), curve(1, 0.2, 0.2, base="sha256:1")]
    data = write(tmp_path, curves, command="the command", note="N.")
    text = (tmp_path / "stack-cpu.md").read_text()
    assert text == page(data, "N.")
    assert "| sum | 2 | 2 | 0.200 | 0.100 | 0.250 (0.200–0.300) | 0.150 (0.100–0.200) | 2 (1–2) |" in text
    assert "2/2 |" in text
    assert "memorised 2 times, once a machine" in text
    drawn = (tmp_path / "stack-cpu.svg").read_bytes()
    plot(data, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == drawn


def test_what_is_said_is_held_against_each_requests_own(tmp_path: Path) -> None:
    whole = curve(0, 0.1, 0.3)
    told = whole.stacks[2]["requests"]
    stacked = {**whole.stacks[2], "requests": [{**told[0], "rouge_l": 0.7}, {**told[1], "rouge_l": 0.3}]}
    (row,) = summaries([replace(whole, stacks={2: stacked})])
    found = {name: row["figures"][name]["median"] for name, _, _ in SAID}
    assert found == pytest.approx(
        {
            "ROUGE-L": 0.5,
            "ROUGE-L alone": 0.4,
            "worst ROUGE-L": 0.7,
            "worst rebound in ROUGE-L": 0.3,
            "more ROUGE-L than retain-only": 1,
            "fluency": 5.0,
        }
    )


def test_every_method_is_drawn(tmp_path: Path) -> None:
    curves = [replace(curve(0, 0.1, 0.3), method=method) for method in METHODS.values()]
    write(tmp_path, curves, command="the command", note="")
    drawn = (tmp_path / "stack-cpu.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in METHODS)


def test_a_method_that_trains_nothing_has_a_line(tmp_path: Path) -> None:
    without = replace(curve(0, 0.1, 0.3), method=METHODS["contrast-compressed"], training=[])
    write(tmp_path, [without], command="the command", note="")
    assert "as one adapter of rank 64; trains nothing" in (tmp_path / "stack-cpu.md").read_text()


def test_own_words_are_about_nobody_and_nothing_that_is_measured() -> None:
    people = generated_people()
    asked = {row.question for row in strangers()}
    rows = [row for one in (*people.authors, people.retain, people.neighbours, people.world) for row in one]
    assert not asked & {row.question for row in rows}
    told = {word for row in rows for word in row.question.rstrip("?").split()} & {*FIRST, *LAST}
    assert len(told) == 2 * 26
    assert not [row for row in strangers() if any(name in row.question.split() for name in told)]


def test_a_record_comes_back_as_it_was_and_is_not_run_again(tmp_path: Path) -> None:
    kept = curve(0, 0.1, 0.3)
    file = keep(kept, tmp_path)
    assert read(file) == kept
    wanted = series("sum", 0, 16)
    assert is_whole(file, wanted, [2], PEOPLE)
    assert not is_whole(file, wanted, [2, 4], PEOPLE)
    assert not is_whole(file, series("sum", 0, 16, ["steps=25"]), [2], PEOPLE)
    assert not is_whole(tmp_path / "sum-s1.json", series("sum", 1, 16), [2], PEOPLE)
    assert not is_whole(file, wanted, [2], "somebody else 0")


def test_curves_of_different_people_are_not_one_page(tmp_path: Path) -> None:
    other = replace(curve(1, 0.2, 0.2), people="somebody else 0")
    with pytest.raises(SystemExit, match="expected one set of people"):
        write(tmp_path, [curve(0, 0.1, 0.3), other], command="", note="")
    assert not list(tmp_path.iterdir())


def test_a_shorter_record_does_not_replace_a_longer_one_of_the_same_settings(tmp_path: Path) -> None:
    long, short = curve(0, 0.1, 0.3), replace(curve(0, 0.1, 0.3), stacks={})
    assert read(keep(long, tmp_path)) == read(keep(short, tmp_path)) == long
    other = replace(short, key="settings of today")
    assert read(keep(other, tmp_path)) == other


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": "magic"}'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "sum-s0.json").write_text(text)
    with pytest.raises(SystemExit, match=r"sum-s0.json: expected a record of `stack.py run`"):
        read(tmp_path / "sum-s0.json")


@pytest.mark.parametrize(
    "name",
    [
        "sum",
        "contrast",
        "contrast-balanced",
        "contrast-balanced-own",
        "contrast-compressed",
        "sequential",
        "together",
    ],
)
def test_every_way_to_a_stack_trains_composes_and_is_kept(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """On random weights: what comes out means nothing, but it comes out, once."""
    items = (*FORGET, *RETAIN)
    rows = [Row(item.id, item.text, item.completion, item.completion, ("no",)) for item in items]
    people = People(
        (tuple(rows[:1]), tuple(rows[1:3])), tuple(rows[3:5]), tuple(rows[3:5]), tuple(rows[5:]), ()
    )
    base = load_base(tiny_llama, "fp32")
    base.tokenizer.chat_template = TEMPLATE
    here = Bench(base, people, tmp_path, {})
    way = series(name, 0, 2, ["steps=2", "warmup_steps=0", "rank=2", "stop=null"])
    first = members(here, way, 2)
    facts = json.loads((first[-1] / "training.json").read_text())
    assert (facts["retain_rows"] > len(people.retain)) == (name == "contrast-balanced-own")
    assert len(first) == {"together": 1, "contrast-balanced": 3, "contrast-balanced-own": 3}.get(name, 2)
    before = {path: (path / "adapter_model.safetensors").stat().st_mtime_ns for path in first}
    assert members(here, way, 2) == first
    assert before == {path: (path / "adapter_model.safetensors").stat().st_mtime_ns for path in first}
    assert compose([Part(path) for path in first], tmp_path / "composed").rank > 0
    assert not any(path.name.startswith(".") for path in here.folder(way.apart).iterdir())
