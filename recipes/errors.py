"""Errors of `efface.recipes`.

RecipeError
├── DataError      rows that cannot be used; `problems` lists every one, with file and line
├── InvalidRecipe  a recipe that is unknown, malformed or contradicts itself; every error at once
├── RequestError   a request that cannot be trained, released or audited as asked
└── GateNotMet     an audit failed where going on needs it passed
"""

from collections.abc import Sequence


class RecipeError(Exception):
    """Something about data, recipe or request that the caller can put right; the message says how."""


class DataError(RecipeError):
    """Rows that cannot be used. ``problems`` has one line per bad row: file, line, expected, found."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class InvalidRecipe(RecipeError):
    """A recipe that is unknown, malformed or contradicts itself."""


class RequestError(RecipeError):
    """A request that cannot be trained, released or audited as asked."""


class GateNotMet(RecipeError):
    """An audit failed where going on needs it passed."""
