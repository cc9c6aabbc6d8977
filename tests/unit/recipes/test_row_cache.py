"""Rows measured once are not measured again, whatever ended the run; what is damaged is measured again."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import model_kit
import pytest
import torch
from model_kit import FORGET, RETAIN

from efface.adapters import load_base
from efface.audits import AuditError, Evaluation, Method, Probe
from efface.recipes.bench import Bench, measure
from efface.recipes.row_cache import RowMemory, method_digest, open_cache

KEYS: dict[str | None, bytes] = {None: b"0" * 32, "q1": b"1" * 32}
PROBES = (*(Probe(item, "forget", "q1") for item in FORGET), *(Probe(item, "retain") for item in RETAIN))


@pytest.fixture(scope="module")
def base(tiny_llama: Path):
    return load_base(tiny_llama, "fp32")


def memory(folder: Path, **changes: object) -> RowMemory:
    return RowMemory(KEYS.__getitem__, open_cache(folder), **changes)  # type: ignore[arg-type]


def bench(base, found: RowMemory | None, **changes: object) -> Bench:
    return Bench(
        base, Method(**({"chat": True, "generate_batch": 2, "max_new_tokens": 4} | changes)), memory=found
    )


def run(at: Bench, probes: Sequence[Probe] = PROBES, **changes: object) -> Evaluation:
    return measure(at, at.base.model, at.bare, probes, label="base", active=(), **changes)  # type: ignore[arg-type]


@contextmanager
def forwards(model: torch.nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *_: seen.append(1))  # type: ignore[operator]
    yield seen
    hook.remove()


def figures(found: Evaluation) -> list[dict[str, object]]:
    return [row.to_json() for row in found.rows]


def test_the_second_audit_of_the_same_rows_runs_no_model(base, tmp_path: Path) -> None:
    first = run(bench(base, memory(tmp_path)))
    again = memory(tmp_path)
    with forwards(base.model) as seen:
        second = run(bench(base, again))
    assert seen == []
    assert figures(second) == figures(first) == figures(run(bench(base, None)))
    assert sum(again.hits.values()) == len(PROBES)


@pytest.mark.parametrize("what", ["method", "precision", "key", "keywords", "answer"])
def test_whatever_decides_a_figure_makes_another_entry(base, tmp_path: Path, what: str) -> None:
    run(bench(base, memory(tmp_path)))
    later, probes = memory(tmp_path), PROBES
    at = bench(base, later)
    if what == "method":
        at = bench(base, later, max_new_tokens=5)
    if what == "precision":
        at = bench(replace(base, quantization="bf16"), later)
    if what == "key":
        at = bench(base, replace(later, key={None: b"2" * 32, "q1": b"3" * 32}.__getitem__))
    if what == "keywords":
        probes = tuple(replace(p, item=replace(p.item, keywords=("paris", "tokyo"))) for p in PROBES)
    if what == "answer":
        probes = tuple(replace(p, item=replace(p.item, completion="the city")) for p in PROBES)
    run(at, probes)
    assert sum(later.hits.values()) == 0


def test_batch_sizes_do_not(base) -> None:
    assert method_digest(Method(generate_batch=2), "cpu") == method_digest(Method(), "cpu")
    assert method_digest(Method(), "cpu") != method_digest(Method(), "cuda:0")


def test_where_answers_are_to_be_shown_they_are_asked_for_again(base, tmp_path: Path) -> None:
    run(bench(base, memory(tmp_path)))
    shown = run(bench(base, memory(tmp_path, reads=False)))
    assert any(row.answer for row in shown.rows)


def test_no_text_is_in_it(base, tmp_path: Path) -> None:
    secret = replace(FORGET[0], prompt="who wrote potter hamlet macbeth", completion="rowling tokyo capital")
    run(bench(base, memory(tmp_path)), [Probe(secret, "forget", "q1")])
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for text in (str(secret.prompt), secret.completion, *secret.keywords):
        for form in (
            text.encode(),
            text.encode("utf-16-le"),
            hashlib.sha256(text.encode()).hexdigest().encode(),
        ):
            assert form not in stored
    assert (tmp_path / "rows.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("column", ["body", "mac", "name"])
def test_an_entry_that_was_changed_was_never_there(base, tmp_path: Path, column: str) -> None:
    truth = run(bench(base, memory(tmp_path)))
    with closing(sqlite3.connect(tmp_path / "rows.db")) as db, db:
        changed = {
            "body": "body = replace(body, '\"probability\": 0', '\"probability\": 1')",
            "mac": "mac = substr(mac, 2) || '0'",
            "name": "name = name || 'x'",
        }[column]
        db.execute(f"UPDATE entry SET {changed}")
    later = memory(tmp_path)
    assert figures(run(bench(base, later))) == figures(truth)
    assert sum(later.hits.values()) == 0


@pytest.mark.parametrize("damage", [b"not a database at all" * 50, b""], ids=["garbage", "empty"])
def test_a_file_that_is_no_database_is_set_aside(base, tmp_path: Path, damage: bytes) -> None:
    truth = run(bench(base, memory(tmp_path)))
    (tmp_path / "rows.db").write_bytes(damage)
    assert figures(run(bench(base, memory(tmp_path)))) == figures(truth)
    assert (tmp_path / "rows.db.damaged").exists() == bool(damage)
    assert open_cache(tmp_path).count() == len(PROBES)


def test_damage_in_the_middle_is_measured_again(base, tmp_path: Path) -> None:
    truth = run(bench(base, memory(tmp_path)))
    path = tmp_path / "rows.db"
    data = bytearray(path.read_bytes())
    data[100:] = bytes(len(data) - 100)  # the header stays: SQLite opens it
    path.write_bytes(data)
    assert figures(run(bench(base, memory(tmp_path)))) == figures(truth)
    assert open_cache(tmp_path).count() == len(PROBES)


def test_a_key_that_is_lost_or_damaged_is_made_anew(tmp_path: Path) -> None:
    first = open_cache(tmp_path).key
    assert open_cache(tmp_path).key == first
    (tmp_path / "rows.key").write_bytes(b"short")
    assert len(open_cache(tmp_path).key) == 32 and open_cache(tmp_path).key != first


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuditError, match="--no-cache"):
        open_cache(tmp_path / "file" / "cache")


class Impatient:
    """A listener who presses Ctrl-C once so many rows are done."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def phase(self, title: str, total: int | None = None) -> None: ...

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.left -= amount
        if amount and self.left < 0:
            raise KeyboardInterrupt


def test_an_audit_that_was_interrupted_goes_on_where_it_stopped(base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(bench(base, memory(tmp_path)), progress=Impatient(4))
    kept = open_cache(tmp_path).count()
    assert 0 < kept < len(PROBES)
    later = memory(tmp_path)
    assert figures(run(bench(base, later))) == figures(run(bench(base, None)))
    assert sum(later.hits.values()) == kept


def test_and_so_does_one_that_was_killed(base, tiny_llama: Path, tmp_path: Path) -> None:
    """SIGKILL behind the second batch: what was on disk then is whole."""
    driver = subprocess.run(
        [sys.executable, __file__, str(tiny_llama), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(model_kit.__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert driver.returncode == -signal.SIGKILL, driver.stderr
    later = memory(tmp_path)
    assert figures(run(bench(base, later))) == figures(run(bench(base, None)))
    assert sum(later.hits.values()) == 4


class Killer(Impatient):
    def advance(self, amount: int = 1, note: str = "") -> None:
        self.left -= amount
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run(bench(load_base(sys.argv[1], "fp32"), memory(Path(sys.argv[2]))), progress=Killer(4))
