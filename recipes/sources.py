"""What a suite is given besides the rows of its requests: a reference model, holdout rows, tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..adapters import Base, load_base
from ..audits import AuditError
from ..audits.suites import GIVEN, InvalidSuite, Suite
from .data import Row, draw_rows, parse_source

_ROWS = ("holdout", "real-authors", "world-facts")


@dataclass(frozen=True, slots=True)
class Sources:
    """``reference``: the folder or Hub id of a retain-only model; the rest as `efface.audits.suites.GIVEN` has it."""

    reference: str | None = None
    holdout: tuple[Row, ...] = ()
    real_authors: tuple[Row, ...] = ()
    world_facts: tuple[Row, ...] = ()
    tasks: tuple[str, ...] = ()


def read_sources(suite: Suite, given: Sequence[str]) -> Sources:
    """``given``: ``NAME=PATH`` each. Raises `InvalidSuite` for what the suite lacks or does not use, `DataError`."""
    named: dict[str, list[str]] = {}
    problems: list[str] = []
    for one in given:
        name, sign, value = one.partition("=")
        if not sign or not value:
            problems.append(f"--give {one!r}: expected NAME=PATH with a NAME of {', '.join(GIVEN)}")
        named.setdefault(name, []).append(value)
    problems += [
        f"--give {name}: expected it once, got {len(values)}"
        for name, values in named.items()
        if len(values) > 1 and name != "tasks"
    ]
    if problems:
        raise InvalidSuite("\n".join(problems))
    suite.require(named)
    rows = {
        name: draw_rows(parse_source(named[name][0]), forget=True, name=name).rows
        for name in _ROWS
        if name in named
    }
    return Sources(
        reference=named.get("reference", [None])[0],
        holdout=rows.get("holdout", ()),
        real_authors=rows.get("real-authors", ()),
        world_facts=rows.get("world-facts", ()),
        tasks=tuple(named.get("tasks", ())),
    )


def load_reference(source: str, base: Base) -> Base:
    """The reference model at the precision of ``base``. Raises `ModelError`, `AuditError` for another tokenizer."""
    found = load_base(source, base.quantization)
    require_tokenizer(found, base, "reference")
    return found


def require_tokenizer(other: Base, base: Base, what: str) -> None:
    """Raise `AuditError` unless both cut texts into the same tokens: figures per token do not compare otherwise."""
    if other.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise AuditError(
            f"expected a {what} with the tokenizer of {base.path}, got another vocabulary in {other.path}: figures per "
            "token do not compare. Take a model of the same family"
        )
