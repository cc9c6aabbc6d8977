"""PEFT's ``rank_pattern`` and ``alpha_pattern``: read as PEFT reads them, written without ambiguity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

_ALLOWED = re.compile(r"[\w.\-^$()|*+\[\]\\]{1,256}", re.ASCII)
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPEAT = re.compile(r"[*+]")


def unsafe(pattern: str) -> str | None:
    """Why ``pattern`` is not matched, or None when it is a regular expression that cannot run for ever.

    Pattern keys come from files of others, and ``re`` has no time limit: repeated groups are refused, and
    the number of repetitions and alternatives is bounded. Plain module names always pass.
    """
    if not _ALLOWED.fullmatch(pattern):
        return "has characters other than letters, digits and . _ - ^ $ ( ) | * + [ ] \\, or is too long"
    if _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > 2 or pattern.count("|") > 8:
        return "repeats a group, or has more than 2 repetitions or 8 alternatives"
    try:
        _compiled(pattern)
    except re.error as error:
        return f"is no regular expression ({error})"
    return None


def resolve(patterns: Mapping[str, T], names: Mapping[str, object], default: T) -> dict[str, T]:
    """The value of each module in ``names``: of the first key that matches its end at a dot, or ``default``.

    The same rule as ``peft.utils.other.get_pattern_key`` (a test compares them); keys are compiled once.
    """
    compiled = [(_compiled(key), value) for key, value in patterns.items()]
    return {name: next((value for regex, value in compiled if regex.match(name)), default) for name in names}


def exceptions(values: Mapping[str, T], default: T) -> dict[str, T]:
    """The pattern that gives each module its value in ``values``, without those that are ``default``.

    Keys are plain module names, which every reader understands: PEFT takes them as regular expressions,
    others look them up. Only where a plain name would catch another module are they escaped and anchored.
    """
    plain = {name: value for name, value in sorted(values.items()) if value != default}
    if resolve(plain, values, default) == dict(values):
        return plain
    return {f"^{re.escape(name)}": value for name, value in plain.items()}


def _compiled(key: str) -> re.Pattern[str]:
    """The expression that PEFT makes of a pattern key (``get_pattern_key``)."""
    return re.compile(rf"(.*\.)?({key})$")
