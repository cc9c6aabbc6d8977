"""YAML that says what it seems to say: one mapping, no key twice, of a size that no file made by hand exceeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
# PyYAML lets a date such as 2026-99-99 and endless brackets through as these.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class NoRepeats(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error: the last one would silently win."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of ``node``. Raises a YAML error for a key that stands twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(repeated)} stands twice")
        return super().construct_mapping(node, deep)  # type: ignore[no-untyped-call]


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping in ``path``, keys as text. Raises ValueError that says what was expected; ``what`` names the keys."""
    if path.exists() and not path.is_dir() and not (path.is_file() and path.stat().st_size <= MAX_BYTES):
        raise ValueError(
            f"{path}: expected a regular file of at most {MAX_BYTES} bytes, found something else"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), NoRepeats)  # noqa: S506 - a SafeLoader
    except (OSError, *NOT_YAML) as error:
        raise ValueError(f"{path}: expected a YAML mapping of {what}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a YAML mapping of {what}, found {type(values).__name__}")
    return {str(key): value for key, value in values.items()}
