"""The pure parts of `benchmarks/tofu.py`: which rows, when a target is met, how a grid is ranked."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from tofu_protocol.alternates import REFUSALS, refusals
from tofu_protocol.data import load_split
from tofu_protocol.table import Against, page, summary, targets
from tofu_protocol.tune import grid, score


def write(folder: Path, name: str, count: int, *, wrong: int = 3, paraphrased: bool = True) -> None:
    rows = [
        {
            "question": f"{name} question {i}?",
            "answer": f"answer {i}",
            "perturbed_answer": [f"wrong {i}.{k}" for k in range(wrong)],
            **({"paraphrased_answer": f"reply {i}"} if paraphrased else {}),
        }
        for i in range(count)
    ]
    (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def tofu(tmp_path: Path) -> Path:
    write(tmp_path, "forget01_perturbed", 4, wrong=5)
    write(tmp_path, "retain_perturbed", 20, wrong=5)
    write(tmp_path, "real_authors_perturbed", 6, paraphrased=False)
    write(tmp_path, "world_facts_perturbed", 6, paraphrased=False)
    # retain99 knows fifteen of them.
    known = (tmp_path / "retain_perturbed.json").read_text().splitlines()[:15]
    (tmp_path / "retain99.json").write_text("\n".join(known))
    return tmp_path


def test_the_same_rows_are_drawn_every_time(tofu: Path) -> None:
    split = load_split(tofu, retain=10, seen=5, facts=3)
    assert split == load_split(tofu, retain=10, seen=5, facts=3)
    assert split.digest != load_split(tofu, retain=10, seen=4, facts=3).digest
    assert [len(rows) for rows in (split.forget, split.retain, split.retain_seen)] == [4, 10, 5]
    assert {row.id for row in split.retain_seen} <= {row.id for row in split.retain}
    assert all(int(row.id[-3:]) < 15 for row in split.retain)
    assert {row.paraphrase for row in split.forget} == {f"reply {i}" for i in range(4)}
    assert all(row.paraphrase == row.answer for row in split.authors + split.world)
    assert [len(row.wrong) for row in (split.forget[0], split.retain_seen[0], split.world[0])] == [3, 3, 3]


def test_too_few_rows_and_absent_files_are_named(tofu: Path) -> None:
    with pytest.raises(SystemExit, match="expected at least 16 rows, found 15"):
        load_split(tofu, retain=16)
    (tofu / "forget01_perturbed.json").unlink()
    with pytest.raises(SystemExit, match=r"forget01_perturbed\.json.*--data"):
        load_split(tofu, retain=10, seen=5, facts=3)


def test_refusals_follow_the_seed(tofu: Path) -> None:
    rows = load_split(tofu, retain=10, seen=5, facts=3).retain
    assert refusals(rows, 1) == refusals(rows, 1) != refusals(rows, 2)
    assert {answer for (answer,) in refusals(rows, 1).values()} <= set(REFUSALS)


def record(
    rouge: float = 0.4, kept: float = 0.9, fluency: float = 5.0, gibberish: float = 0.0, seed: int = 0
):
    quality = {"statistic": 0.2, "p_value": 1e-13, "low": 0.1, "high": 0.3, "n": 40}
    forget = {"probability": 0.2, "extraction_strength": 0.1, "rouge_l": rouge, "truth_ratio": 0.7}
    forget |= {"quality": quality, "fluency": fluency, "gibberish": gibberish}
    retain = {"probability": kept, "rouge_l": 0.9, "truth_ratio": 0.5}
    training = {"seconds": 30.0, "cpu_seconds": 29.0, "seconds_per_step": 1.0, "peak_gib": 2.0}
    about = {"date": "2026-01-01", "machine": "a machine", "versions": {"torch": "2"}, "precision": "nf4"}
    sides = {"forget": forget, "retain": retain, "authors": retain, "world": retain}
    return {**about, "seed": seed, **sides, "utility": 0.5, "training": training}


AGAINST = Against(full=record(rouge=1.0, kept=1.0), retain=record(rouge=0.4))


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        (record(rouge=0.44, kept=0.951), set()),
        (record(rouge=0.46, kept=0.96), {"ROUGE"}),
        (record(rouge=0.3, kept=0.96), {"ROUGE"}),  # forgetting more than never having known
        (record(kept=0.94), {"retain"}),
        (record(kept=0.96, fluency=4.4), {"fluent"}),
        (record(kept=0.96, gibberish=0.1), {"fluent"}),
    ],
)
def test_targets(run, missed: set[str]) -> None:
    assert {name for name, met in targets(run, AGAINST).items() if not met} == missed


def test_the_page_shows_the_median_the_spread_and_small_p_values() -> None:
    runs = [record(rouge=rouge, kept=0.96, seed=i) for i, rouge in enumerate((0.41, 0.38, 0.9))]
    row = summary("npo", runs, AGAINST)
    assert row["figures"]["forget ROUGE-L"] == {"median": 0.41, "min": 0.38, "max": 0.9}
    assert (row["met"]["ROUGE"], row["met_all"]) == (2, 2)
    text = page([row], command="the command", split={"forget": 40}, memorising="8 epochs", about=runs[0])
    line = next(line for line in text.splitlines() if line.startswith("| npo (nf4) | 3 |"))
    assert "0.410 (0.380–0.900)" in line
    assert "1.0e-13" in line
    assert row["figures"]["mean of its nine"]["median"] == pytest.approx((0.96 + 0.9 + 0.5) / 3)
    assert "**2/3**: ROUGE 2/3, retain 3/3, fluent 3/3" in line


def test_a_grid_is_every_combination() -> None:
    assert list(grid(["a=1,2", "b=x"])) == [["a=1", "b=x"], ["a=2", "b=x"]]
    with pytest.raises(SystemExit, match="expected key=v1,v2"):
        list(grid(["a"]))


def test_the_ranking_prefers_forgotten_and_kept() -> None:
    before = {"forget_probability": 0.9, "forget_extraction_strength": 1.0, "retain_probability": 0.9}
    goal = {"probability": 0.1, "extraction_strength": 0.1}
    gone = {"forget_probability": 0.1, "forget_extraction_strength": 0.1, "retain_probability": 0.9}
    assert score(before, before, goal) == 0.0
    assert score(before, gone, goal) == pytest.approx(1.0)
    assert score(before, {**gone, "retain_probability": 0.45}, goal) == pytest.approx(0.75)
    assert score(before, {**gone, "forget_probability": 0.0}, goal) < 1.0
    assert score(before, {**gone, "forget_probability": 0.5}, goal) == pytest.approx(0.75)
