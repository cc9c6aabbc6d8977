"""How long rows are in tokens, and what a limit and each way to cut would do to them. No text, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ..adapters import Encoded, Item, ModelError, encode_all
from ..adapters.model import fingerprint, resolve
from ..adapters.truncate import fits, uncut
from .alternates import alternate_items
from .data import RequestData, Row


@dataclass(frozen=True, slots=True)
class RowLength:
    """Tokens of one row. ``fixed``: how many of the prompt's may not be cut (`uncut`). ``given`` is False where
    the base itself will answer: ``answer`` is then the most that it may say."""

    id: str
    prompt: int
    answer: int
    fixed: int
    given: bool = True


@dataclass(frozen=True, slots=True)
class Spread:
    """Tokens per row: the least, the lower median, the 95th percentile (nearest rank) and the most."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class SetLengths:
    """One set of ``n`` rows, ``own`` of them to be answered by the base. ``too_long``: ids of rows longer than the
    limit; ``cut``: how many of these each truncation would bring within it (it refuses the others)."""

    name: str
    n: int
    own: int
    prompt: Spread
    answer: Spread
    too_long: tuple[str, ...]
    cut: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Lengths:
    """The token lengths of a request's sets, those that are empty left out."""

    max_length: int
    sets: tuple[SetLengths, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def lengths(sets: Mapping[str, Sequence[RowLength]], max_length: int) -> Lengths:
    """Sum up ``sets`` (name → rows) against ``max_length``."""
    return Lengths(max_length, tuple(_set(name, rows, max_length) for name, rows in sets.items() if rows))


def row_length(row: Encoded, *, fixed: int = 0, given: bool = True) -> RowLength:
    """The lengths of a row that was encoded without a limit."""
    return RowLength(row.id, len(row.prompt), len(row.answer), fixed, given)


def request_lengths(
    tokenizer: PreTrainedTokenizerBase, data: RequestData, *, chat: bool, max_length: int, max_new_tokens: int
) -> Lengths:
    """The lengths of the rows of ``data`` as they are trained on and measured, whole.

    A row to be kept without an answer counts ``max_new_tokens`` for the base's. Raises one
    :class:`ModelError` that names every row that cannot be encoded at all.
    """
    items = {
        "forget": [row.item() for row in data.forget],
        "alternates": [item for row in data.forget for item in alternate_items(row)],
        "paraphrases": [item for row in data.forget for item in row.paraphrased()],
        "retain": list(map(_item, data.retain)),
        "neighbours": list(map(_item, data.neighbours)),
        "heldout": _reworded(data.heldout),
        "entailed": _reworded(data.entailed),
        "formats": _reworded(data.formats),
        "unrelated": list(map(_item, data.unrelated)),
    }
    ended = [name in ("alternates", "retain") for name, some in items.items() for _ in some]
    every = [item for some in items.values() for item in some]
    encoded = iter(encode_all(tokenizer, every, chat=chat, end=ended, max_length=None))
    own = {row.id for row in (*data.retain, *data.neighbours, *data.unrelated) if row.completion is None}

    def measured(item: Item) -> RowLength:
        row = next(encoded)
        found = row_length(row, fixed=uncut(tokenizer, item, row, chat), given=item.id not in own)
        return found if found.given else RowLength(row.id, found.prompt, max_new_tokens, found.fixed, False)

    return lengths({name: [measured(item) for item in some] for name, some in items.items()}, max_length)


def format_lengths(report: Lengths) -> str:
    """``report`` as a table of plain text."""
    head = ["tokens", "rows", "prompt: min", "median", "p95", "max", "answer: min", "median", "p95", "max"]
    limit = report.max_length
    head += [f"> {limit}", "cut by answer", "cut by prompt"]
    lines = [head, *(_cells(found) for found in report.sets)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    own = sum(found.own for found in report.sets)
    note = [f"rows without an answer: {own}, counted with the most that the base may say"] if own else []
    return "\n".join(line.rstrip() for line in (*table, *note))


def open_tokenizer(model: str | Path) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """The tokenizer and config of a model folder or Hub id, without its weights. Raises :class:`ModelError`."""
    path = resolve(model)
    fingerprint(path)  # names what is missing
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        return tokenizer, AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError) as error:
        raise ModelError(f"{path} does not load as a causal language model: {error}") from error


def _reworded(rows: Sequence[Row]) -> list[Item]:
    return [item for row in rows for item in (row.item(), *row.paraphrased())]


def _item(row: Row) -> Item:
    return row.item(row.completion or "?")


def _set(name: str, rows: Sequence[RowLength], limit: int) -> SetLengths:
    long = [row for row in rows if row.prompt + row.answer > limit]
    cut = {
        how: sum(fits(row.prompt, row.answer, limit, how, row.fixed) for row in long)
        for how in ("answer", "prompt")
    }
    return SetLengths(
        name,
        len(rows),
        sum(not row.given for row in rows),
        _spread(row.prompt for row in rows),
        _spread(row.answer for row in rows),
        tuple(row.id for row in long),
        cut,
    )


def _spread(values: Iterable[int]) -> Spread:
    found = sorted(values)
    return Spread(found[0], median_low(found), found[-(-19 * len(found) // 20) - 1], found[-1])


def _cells(found: SetLengths) -> list[str]:
    spreads = [
        getattr(spread, part)
        for spread in (found.prompt, found.answer)
        for part in ("min", "median", "p95", "max")
    ]
    counts = [len(found.too_long), found.cut["answer"], found.cut["prompt"]]
    return [found.name, *map(str, (found.n, *spreads, *counts))]
