"""Which rows each step sees, dealt in advance from the seed, so that a resumed run sees the rest of the same deal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from .encode import Encoded
from .objectives import OBJECTIVES
from .settings import TrainSettings

Rows = tuple[Encoded, ...]
Alternates = Mapping[Encoded, Rows]
"""Other answers to each forget row's prompt."""

# Rows of so many forwards are sorted together: enough to save padding, little enough to stay a shuffle.
BUCKET = 8


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one forward. ``alternates`` hold the same number for each forget row, row by row.

    ``forget_share`` and ``retain_share``: this forward's part of what its optimisation step counts, times the
    number of forwards, so that their mean is the mean over the whole step.
    """

    forget: Rows
    retain: Rows
    alternates: Rows = ()
    forget_share: float = 1.0
    retain_share: float = 1.0


class Steps(Dataset[Step]):
    """Every forward of a run in order; both sides are reshuffled whenever they run out.

    ``forget``, ``alternates`` and ``retain``: the rows that some forward sees, each once, in the order given.
    """

    def __init__(
        self,
        forget: Sequence[Encoded],
        retain: Sequence[Encoded],
        settings: TrainSettings,
        alternates: Alternates | None = None,
    ) -> None:
        draw = torch.Generator().manual_seed(settings.seed)
        forwards = settings.steps * settings.accumulation
        f = deal(forget, forwards * settings.forget_batch, draw)
        r = deal(retain, forwards * settings.retain_batch, draw) if settings.reads_retain else ()
        if settings.length_buckets:
            f, r = _bucketed(
                f, settings.forget_batch, r, settings.retain_batch, _window(forget, retain, settings), draw
            )
        turns = dict.fromkeys(forget, 0)
        steps = [
            Step(hand, r_hand, _turn(hand, alternates, settings.alternates, turns))
            for hand, r_hand in zip(
                _hands(f, settings.forget_batch, forwards),
                _hands(r, settings.retain_batch, forwards),
                strict=True,
            )
        ]
        size, by_token = settings.accumulation, OBJECTIVES[settings.objective].level == "token"
        self._steps = [
            step for i in range(0, len(steps), size) for step in _shares(steps[i : i + size], by_token)
        ]
        others = (row for answers in (alternates or {}).values() for row in answers)
        self.forget = _seen(forget, (row for step in steps for row in step.forget))
        self.alternates = _seen(others, (row for step in steps for row in step.alternates))
        self.retain = _seen(retain, (row for step in steps for row in step.retain))

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Step:
        """The rows of forward ``index``."""
        return self._steps[index]


def counted_tokens(rows: Sequence[Encoded]) -> int:
    """How many answer tokens of ``rows`` a loss looks at."""
    return sum(sum(row.counted) if row.counted else len(row.answer) for row in rows)


def deal(rows: Sequence[Encoded], count: int, draw: torch.Generator) -> Rows:
    """``count`` of ``rows`` in a drawn order: each once before any comes again."""
    dealt: list[Encoded] = []
    while len(dealt) < count:
        dealt += [rows[i] for i in torch.randperm(len(rows), generator=draw).tolist()]
    return tuple(dealt[:count])


def _hands(rows: Rows, size: int, hands: int) -> list[Rows]:
    return [rows[i * size : (i + 1) * size] for i in range(hands)]


def _bucketed(
    forget: Rows, f_size: int, retain: Rows, r_size: int, window: int, draw: torch.Generator
) -> tuple[Rows, Rows]:
    """Both deals with rows of like length in one forward, over windows of forwards, in a shuffled order.

    A window holds the rows that it held before, so each pass still sees every row.
    """
    f, r = list[Encoded](), list[Encoded]()
    for start in range(0, len(forget) // f_size, window):
        f_hands, r_hands = (
            _hands(ordered, size, len(ordered) // size)
            for rows, size in ((forget, f_size), (retain, r_size))
            for ordered in [tuple(sorted(rows[start * size : (start + window) * size], key=_length))]
        )
        for i in torch.randperm(len(f_hands), generator=draw).tolist():
            f += f_hands[i]
            r += r_hands[i] if r_hands else ()
    return tuple(f), tuple(r)


def _seen(rows: Iterable[Encoded], dealt: Iterable[Encoded]) -> Rows:
    found = set(dealt)
    return tuple(row for row in dict.fromkeys(rows) if row in found)


def _window(forget: Sequence[Encoded], retain: Sequence[Encoded], settings: TrainSettings) -> int:
    """Forwards that are sorted together, no more than a pass has: a row would stand beside itself otherwise."""
    passes = [len(forget) // settings.forget_batch]
    if settings.reads_retain:
        passes.append(len(retain) // settings.retain_batch)
    return max(1, min(BUCKET, *passes))


def _length(row: Encoded) -> int:
    return len(row.prompt) + len(row.answer)


def _turn(hand: Rows, alternates: Alternates | None, count: int, turns: dict[Encoded, int]) -> Rows:
    """``count`` alternates of each row of ``hand``, going on where the row's last turn ended."""
    if alternates is None:
        return ()
    found: list[Encoded] = []
    for row in hand:
        answers, turn = alternates[row], turns[row]
        found += [answers[(turn + k) % len(answers)] for k in range(count)]
        turns[row] = turn + count
    return tuple(found)


def _shares(forwards: list[Step], by_token: bool) -> list[Step]:
    """``forwards`` of one step, weighted so that accumulating them is one large batch: token means by tokens."""
    if len(forwards) == 1:
        return forwards
    forget = [counted_tokens(step.alternates or step.forget) if by_token else 1 for step in forwards]
    retain = [counted_tokens(step.retain) or 1 for step in forwards]
    return [
        Step(
            step.forget,
            step.retain,
            step.alternates,
            len(forwards) * f / sum(forget),
            len(forwards) * r / sum(retain),
        )
        for step, f, r in zip(forwards, forget, retain, strict=True)
    ]
