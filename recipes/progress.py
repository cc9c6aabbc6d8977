"""How long work says where it stands, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener. Phases follow one another; the CLI draws bars, a notebook may print, the default is silent."""

    def phase(self, title: str, total: int | None = None) -> None:
        """A new phase begins; ``total`` units of work if that is known."""
        ...

    def advance(self, amount: int = 1, note: str = "") -> None:
        """``amount`` more units are done."""
        ...


class Silent:
    """Listens and says nothing."""

    def phase(self, title: str, total: int | None = None) -> None:
        """Ignore the phase."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Ignore the step."""
