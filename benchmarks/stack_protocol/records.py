"""What was measured of a series, in one small file that can be kept in the repository: a curve may grow over machines.

The model that a series stands on is memorised where it is run, and floating-point sums differ by processor: a record
holds its own N = 0 and retain-only model, and names the base. Weights and forgotten text are in none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .method import METHODS, Method, Series

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Curve:
    """One method and seed. ``key``: of its settings and order; ``people``: `People.name`; ``base``: digest of the model
    before. ``before`` and ``without``: that model and the retain-only one; then its stacks by N, its adapters alone by
    author (`sum`'s where the method trains none for one request), and what training them took."""

    method: Method
    seed: int
    key: str
    people: str
    base: str
    before: Record
    without: Record
    stacks: Mapping[int, Record]
    singles: Mapping[int, Record]
    training: Sequence[Record]

    @property
    def name(self) -> str:
        """Of its file."""
        return file_name(self.method.name, self.seed)


def file_name(method: str, seed: int) -> str:
    """Where the record of a method and seed is."""
    return f"{method}-s{seed}.json"


def keep(curve: Curve, folder: Path) -> Path:
    """Write ``curve``; a record that holds more stacks by the same settings stays."""
    file = folder / curve.name
    there = read(file) if file.is_file() else None
    same = there is not None and (there.key, there.people) == (curve.key, curve.people)
    if there is not None and same and len(there.stacks) > len(curve.stacks):
        return file
    folder.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(".tmp")
    scratch.write_text(json.dumps(_spelled(curve), indent=1) + "\n", encoding="utf-8")
    scratch.replace(file)
    return file


def read(file: Path) -> Curve:
    """The curve in ``file``. Raises SystemExit for a file that is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        numbered = {
            name: {int(key): value for key, value in found[name].items()} for name in ("stacks", "singles")
        }
        rest = {
            name: found[name] for name in ("seed", "key", "people", "base", "before", "without", "training")
        }
        return Curve(method=METHODS[found["method"]], **rest, **numbered)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SystemExit(
            f"{file}: expected a record of `stack.py run`, got {error}; delete it and run again"
        ) from None


def is_whole(file: Path, series: Series, counts: Sequence[int], people: str) -> bool:
    """Whether ``file`` has every N of ``counts`` of ``people`` by the settings of ``series``: nothing is to run."""
    if not file.is_file():
        return False
    there = read(file)
    return (there.key, there.people) == (series.key, people) and set(counts) <= there.stacks.keys()


def _spelled(curve: Curve) -> dict[str, Any]:
    return {
        "method": curve.method.name,
        "seed": curve.seed,
        "key": curve.key,
        "people": curve.people,
        "base": curve.base,
        "before": curve.before,
        "without": curve.without,
        "stacks": {str(n): curve.stacks[n] for n in sorted(curve.stacks)},
        "singles": {str(author): curve.singles[author] for author in sorted(curve.singles)},
        "training": list(curve.training),
    }
