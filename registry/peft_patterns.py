"""The patterns of a foreign PEFT config, matched as PEFT matches them but in bounded time.

PEFT takes the keys of `rank_pattern` and `alpha_pattern` for regular expressions, and `re` has no time limit.
Taken here are only plain module names (`self_attn.q_proj`, as PEFT's own examples have them), `^` for the whole
name, `$`, and escaped dots. They have a fixed length, so there is one place in a name where they can match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

COMPARISONS = 2**21
"""The most (pattern, module) pairs that are compared: half a second."""

_KEY = re.compile(r"(\^?)((?:[\w.-]|\\[.-]){1,512})\$?", re.ASCII)
_EXPRESSION = re.compile(r"(?:[\w.^$|*+-]|\(\?:|[()]|\?|\\[.dw-]){1,1024}", re.ASCII)
_REPEATED_GROUP = re.compile(r"\)[*+?]")
_REPEAT = re.compile(r"[*+]|(?<!\()\?")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A key that matches the end of a module's name at a dot; the whole name when `anchored`."""

    length: int
    anchored: bool
    expression: re.Pattern[str]

    def matches(self, module: str) -> bool:
        """What `re.match(rf"(.*\\.)?({key})$", module)` says in `peft.utils.other.get_pattern_key`."""
        start = len(module) - self.length
        if start < 0 or (start and (self.anchored or module[start - 1] != ".")):
            return False
        return self.expression.match(module, start) is not None


def pattern(key: str) -> Pattern | None:
    """The pattern of a key of `rank_pattern` or `alpha_pattern`; None when it is not a plain one.

    An unescaped dot matches any character, as in PEFT.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    return Pattern(len(match[2].replace("\\", "")), bool(match[1]), re.compile(match[2]))


def resolve(patterns: Sequence[tuple[Pattern, T]], modules: Iterable[str], default: T) -> Mapping[str, T]:
    """The value of each module: that of the first pattern that matches, else `default`."""
    return {
        module: next((value for key, value in patterns if key.matches(module)), default) for module in modules
    }


def is_bounded(expression: str) -> bool:
    """Whether PEFT and vLLM can run this `target_modules` expression on module names without hanging.

    Names, `.`, `.*`, `\\d+`, groups and alternatives: at most three repetitions, none of a group, no
    look-around, no back reference.
    """
    text = expression.replace("[0-9]", "\\d")
    if not _EXPRESSION.fullmatch(text) or _REPEATED_GROUP.search(text) or text.count("(") > 16:
        return False
    if len(_REPEAT.findall(text)) > 3:
        return False
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def ends_with_any(module: str, names: frozenset[str]) -> bool:
    """Whether one of `names` is the module's name or the end of it at a dot: PEFT's rule for lists of names."""
    while module not in names:
        _, dot, module = module.partition(".")
        if not dot:
            return False
    return True


def layer_of(module: str) -> int | None:
    """The layer index that PEFT's `layers_to_transform` looks at: the first number after two names."""
    parts = module.split(".")
    return next((int(part) for part in parts[2:-1] if part.isdecimal()), None)
