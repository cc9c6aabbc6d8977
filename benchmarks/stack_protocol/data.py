"""Which rows of TOFU (arXiv 2401.06121) a stack forgets: whole authors, a request each, and what must stay."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tofu_protocol.data import Row, draw, fewer, read_rows, short_digest

PER_AUTHOR = 20


@dataclass(frozen=True, slots=True)
class People:
    """``authors``: the rows of each request. ``retain`` is memorised too and trained on as such; ``kept`` are rows of
    it that are evaluated, ``neighbours`` rows memorised but never trained on as retain rows: other authors, about whom
    every question is asked in the same words. ``world``: facts that the base brought along. ``title``: whose they are;
    ``longest``: tokens that an answer may have."""

    authors: tuple[tuple[Row, ...], ...]
    retain: tuple[Row, ...]
    kept: tuple[Row, ...]
    neighbours: tuple[Row, ...]
    world: tuple[Row, ...]
    title: str = "TOFU authors"
    longest: int = 48

    @property
    def forget(self) -> tuple[Row, ...]:
        """The rows of all requests."""
        return tuple(row for author in self.authors for row in author)

    @property
    def memorised(self) -> tuple[Row, ...]:
        """What the model before knows."""
        return (*self.forget, *self.stays)

    @property
    def stays(self) -> tuple[Row, ...]:
        """What the retain-only model knows."""
        return (*self.retain, *self.neighbours)

    @property
    def name(self) -> str:
        """Whose rows they are, and which."""
        return f"{self.title} {self.digest}"

    @property
    def digest(self) -> str:
        """Twelve hex digits over every row, in order."""
        rows = asdict(self)
        return short_digest(
            {name: rows[name] for name in ("authors", "retain", "kept", "neighbours", "world")}
        )


def load_people(
    folder: Path, *, authors: int = 16, retain: int = 160, kept: int = 20, facts: int = 20
) -> People:
    """The first ``authors`` of forget10, twenty rows each; ``retain`` rows of retain90 and ``kept`` more as neighbours,
    all among those with perturbed answers; ``facts`` about the world. The same ones every time."""
    found = read_rows(folder / "forget10_perturbed.json", "forget")
    perturbed = {row.question: row for row in read_rows(folder / "retain_perturbed.json", "retain")}
    questions = [row.question for row in read_rows(folder / "retain90.json", "retain90")]
    others = draw([perturbed[q] for q in questions if q in perturbed], retain + kept)
    neighbours = draw(others, kept)
    stay = tuple(row for row in others if row not in neighbours)
    groups = [tuple(found[start : start + PER_AUTHOR]) for start in range(0, len(found), PER_AUTHOR)]
    if authors > len(groups):
        raise SystemExit(f"expected at most {len(groups)} authors, got {authors}: ask for fewer")
    return People(
        tuple(fewer(group) for group in groups[:authors]),
        stay,
        fewer(draw(stay, kept)),
        fewer(neighbours),
        draw(read_rows(folder / "world_facts_perturbed.json", "world"), facts),
    )
