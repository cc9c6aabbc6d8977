"""Printing: data on stdout, talk on stderr, progress bars on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from .options import Format

if TYPE_CHECKING:
    from ..recipes.data import Drawn

# No emoji: "rows.jsonl:100: …" names line 100.
data = Console(soft_wrap=True, highlight=False, emoji=False)
talk = Console(stderr=True, highlight=False, emoji=False)
_PIPED_WIDTH = 1000


def emit(value: Any, format: Format, text: str) -> None:
    """Print ``value`` as JSON or ``text`` as it is."""
    if format is Format.json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        sys.stdout.write(text.rstrip("\n") + "\n")


def emit_table(
    records: Sequence[Mapping[str, object]], columns: Sequence[str], format: Format, empty: str
) -> None:
    """Print ``records``: all of them in JSON, their ``columns`` as a table in text."""
    if format is Format.json:
        emit(list(records), format, "")
        return
    if not records:
        talk.print(empty)
        return
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for record in records:
        table.add_row(*(escape(short(record.get(column))) for column in columns))
    # A record is one line for `grep`, whatever Rich takes the width of a pipe to be.
    wide = Console(highlight=False, emoji=False, width=_PIPED_WIDTH)
    (data if data.is_terminal else wide).print(table)


def tell_drawn(drawn: Drawn) -> None:
    """Say that only some rows of a source were taken."""
    if len(drawn.rows) < drawn.seen:
        talk.print(escape(f"{drawn.source}: {len(drawn.rows)} of {drawn.seen} rows drawn"), soft_wrap=True)


def short(value: object) -> str:
    """A cell: digests cut to what tells them apart, None as a dash."""
    if value is None:
        return "–"
    text = str(value)
    return text[:19] if text.startswith("sha256:") else text


class RichProgress:
    """`efface.recipes.progress.Progress` as Rich bars on stderr; plain lines where stderr is no terminal."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def phase(self, title: str, total: int | None = None) -> None:
        """Close the last bar and open one for ``title``."""
        self._close()
        if talk.is_terminal:
            self._task = self._bars.add_task(title, total=total, note="")
        else:
            talk.print(f"{title} …")

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, advance=amount, note=note)

    def _close(self) -> None:
        if self._task is not None:
            task = next(t for t in self._bars.tasks if t.id == self._task)
            done = task.total if task.total is not None else 1
            self._bars.update(self._task, total=done, completed=done)
            self._bars.stop_task(self._task)
            self._task = None


@contextmanager
def progress() -> Generator[RichProgress]:
    """Bars for as long as the block runs."""
    bars = Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=talk,
    )
    with bars:
        listener = RichProgress(bars)
        yield listener
        listener.phase("Done", 1) if not talk.is_terminal else None
