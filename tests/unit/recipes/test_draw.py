"""A draw of a source far larger than needed: uniform, the same every time, in memory that does not grow."""

import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.recipes.data import draw_rows, load_request_data, load_retain, parse_source, sample
from efface.recipes.errors import DataError


def lines(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(
            f'{{"prompt": "what is {n}", "completion": "{"a city " * 20}{n}"}}\n' for n in range(rows)
        )
    return path


@given(st.integers(0, 60), st.integers(1, 30), st.integers(0, 3))
def test_a_draw_is_of_the_items_in_their_order_and_repeats(n: int, limit: int, seed: int) -> None:
    kept, seen = sample(range(n), limit, seed)
    assert (kept, seen) == sample(iter(range(n)), limit, seed)
    assert kept == sorted(set(kept) & set(range(n)))
    assert (len(kept), seen) == (min(n, limit), n)


def test_a_draw_without_a_limit_is_everything() -> None:
    assert sample("abc", None, 0) == (["a", "b", "c"], 3)


def test_a_draw_is_as_documented() -> None:
    """Written into the guide: these may not change with a version of efface or of Python."""
    assert sample(range(100), 5, 0)[0] == [1, 2, 34, 50, 63]
    assert sample(range(100), 5, 1)[0] != sample(range(100), 5, 0)[0]


def test_every_item_is_as_likely() -> None:
    found = Counter(item for seed in range(3000) for item in sample(range(12), 4, seed)[0])
    expected, spread = 1000, (3000 * (1 / 3) * (2 / 3)) ** 0.5
    assert all(abs(found[item] - expected) < 4.5 * spread for item in range(12))


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        source = parse_source(lines(tmp_path / f"{rows}.jsonl", rows))
        draw_rows(source, forget=False, limit=20)  # what is imported or cached at first
        tracemalloc.start()
        drawn = draw_rows(source, forget=False, limit=20)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (len(drawn.rows), drawn.seen) == (20, rows)
        return found

    small, large = peak(200), peak(4000)
    assert (tmp_path / "4000.jsonl").stat().st_size > 600_000
    assert large < small + 50_000


def test_only_retain_sources_are_drawn_from_each_on_its_own(tmp_path: Path) -> None:
    forget, one, two = (tmp_path / f"{name}.jsonl" for name in ("forget", "one", "two"))
    forget.write_text("".join(f'{{"text": "forget {n}"}}\n' for n in range(9)), encoding="utf-8")
    for path in (one, two):
        path.write_text("".join(f'{{"prompt": "{path.stem} {n}"}}\n' for n in range(30)), encoding="utf-8")
    told: list[tuple[str, int, int]] = []
    data = load_request_data(
        forget,
        [str(one), two],
        retain_limit=4,
        seed=3,
        on_read=lambda drawn: told.append((drawn.source, len(drawn.rows), drawn.seen)),
    )
    assert told == [(str(forget), 9, 9), (str(one), 4, 30), (str(two), 4, 30)]
    assert [row.id.partition("-")[0] for row in data.retain] == ["one"] * 4 + ["two"] * 4
    again = load_request_data(forget, [one, two], retain_limit=4, seed=3)
    assert again == data
    assert load_request_data(forget, [one, two], retain_limit=4, seed=4) != data


def test_rows_that_are_not_drawn_are_checked_too(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", 50)
    path.write_text(path.read_text(encoding="utf-8") + '{"prompt": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:51: `prompt`"):
        draw_rows(parse_source(path), forget=False, limit=2)


def test_a_limit_is_positive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1, got 0"):
        load_request_data(tmp_path / "a.jsonl", [tmp_path / "b.jsonl"], retain_limit=0)


def test_retain_rows_of_no_request_are_drawn_and_checked_alike(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "rows.jsonl", 9), lines(tmp_path / "more.jsonl", 5)
    seen: list[int] = []
    rows = load_retain([one, two], limit=3, seed=1, on_read=lambda drawn: seen.append(drawn.seen))
    assert (len(rows), seen) == (6, [9, 5])
    assert load_retain([one]) == draw_rows(parse_source(one), forget=False).rows
    assert load_retain([]) == ()
    with pytest.raises(DataError, match=r"gone.jsonl"):
        load_retain([one, tmp_path / "gone.jsonl"])
    with pytest.raises(DataError, match="at least 1"):
        load_retain([one], limit=0)
    (again := tmp_path / "again").mkdir()
    assert len({row.id for row in load_retain([one, lines(again / "rows.jsonl", 9)])}) == 18
