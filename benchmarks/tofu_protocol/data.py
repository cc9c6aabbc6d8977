"""Which rows of TOFU (arXiv 2401.06121) the benchmark uses: the CPU subset, drawn the same way every time."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from efface.adapters import Item


@dataclass(frozen=True, slots=True)
class Row:
    """One question. ``paraphrase``: the answer that a truth ratio takes as the correct one (TOFU's real-author
    and world-fact rows have none of their own: there it is the answer itself). ``wrong``: perturbed answers."""

    id: str
    question: str
    answer: str
    paraphrase: str
    wrong: tuple[str, ...]

    def item(self, answer: str | None = None) -> Item:
        """The row as efface takes it, with another ``answer`` where one is given."""
        return Item(self.id, self.question, self.answer if answer is None else answer)


@dataclass(frozen=True, slots=True)
class Split:
    """``forget`` and ``retain`` are memorised; the last three are what an evaluation looks at besides."""

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    retain_seen: tuple[Row, ...]
    authors: tuple[Row, ...]
    world: tuple[Row, ...]

    @property
    def digest(self) -> str:
        """Twelve hex digits over every row, in order."""
        return short_digest(asdict(self))


def load_split(folder: Path, *, retain: int = 160, seen: int = 20, facts: int = 20) -> Split:
    """forget01 whole; ``retain`` rows of retain99 among those with perturbed answers, ``seen`` of them evaluated;
    ``facts`` rows each about real authors and the world. Drawn with a fixed seed, kept in file order.

    Truth ratios take three of TOFU's five perturbed answers, as many as the real-world rows have: these answers
    cost an evaluation most of its time.
    """
    perturbed = {row.question: row for row in read_rows(folder / "retain_perturbed.json", "retain")}
    known = [row.question for row in read_rows(folder / "retain99.json", "retain99")]
    both = [perturbed[question] for question in known if question in perturbed]
    kept = draw(both, retain)
    return Split(
        fewer(read_rows(folder / "forget01_perturbed.json", "forget")),
        kept,
        fewer(draw(kept, seen)),
        draw(read_rows(folder / "real_authors_perturbed.json", "author"), facts),
        draw(read_rows(folder / "world_facts_perturbed.json", "world"), facts),
    )


def short_digest(value: object) -> str:
    """Twelve hex digits of SHA-256 over ``value`` as canonical JSON: the key of whatever is cached."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fewer(rows: Sequence[Row], wrong: int = 3) -> tuple[Row, ...]:
    """The rows with at most ``wrong`` perturbed answers each."""
    return tuple(replace(row, wrong=row.wrong[:wrong]) for row in rows)


def draw(rows: Sequence[Row], count: int) -> tuple[Row, ...]:
    """``count`` of ``rows``, the same ones every time, in their order. Raises SystemExit for too few."""
    if count > len(rows):
        raise SystemExit(f"expected at least {count} rows, found {len(rows)}: ask for fewer")
    return tuple(rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), count)))


def read_rows(path: Path, name: str) -> list[Row]:
    """One of TOFU's files, its rows called ``<name>-000`` and so on. Raises SystemExit when it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SystemExit(
            f"{path}: {error.strerror}. --data names a folder with TOFU's JSON files "
            "(https://huggingface.co/datasets/locuslab/TOFU)"
        ) from error
    found = [json.loads(line) for line in lines if line.strip()]
    return [
        Row(
            f"{name}-{i:03d}",
            row["question"],
            row["answer"],
            row.get("paraphrased_answer", row["answer"]),
            tuple(row.get("perturbed_answer", ())),
        )
        for i, row in enumerate(found)
    ]
