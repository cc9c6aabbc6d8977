"""Suites: what an audit runs, as versioned data. The `*.yaml` beside are those that ship with efface.

`suite.py` has the record and its loader; `efface.recipes` runs one, `efface audit suites` lists them.
"""

from .suite import GIVEN, NEEDS, PARTS, Given, InvalidSuite, Part, Suite, load_suite, shipped_suites

__all__ = [
    "GIVEN",
    "NEEDS",
    "PARTS",
    "Given",
    "InvalidSuite",
    "Part",
    "Suite",
    "load_suite",
    "shipped_suites",
]
