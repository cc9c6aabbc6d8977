"""How an audit was run: which suite, on which rows, with what, and how long each part took.

A record to repeat a measurement by, and to tell whether two of them looked at the same rows. Rows are named by
keyed hashes: a bare digest of a short text is as good as the text (whoever guesses it can confirm it).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import RecordError
from .types import Group, Json

_HASH = re.compile(r"hmac-sha256:[0-9a-f]{64}")
_KEY_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class RowHash:
    """A row by name and by what it says: ``hash`` is `hash_row` of its text under the key named ``key``."""

    request: str | None
    group: Group
    id: str
    hash: str
    key: str

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.hash) or not _KEY_NAME.fullmatch(self.key):
            raise RecordError(f"row {self.id!r}: expected a hash and key name made by hash_row and key_name")

    def to_json(self) -> Json:
        """Plain JSON types."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """One run of a suite.

    ``digest`` is that of the suite's own data, so that an edited one is another. ``versions`` are those of the
    packages that can move a figure. ``seconds`` is the wall time of each part in the order run; ``skipped`` says
    why a part that the suite names has no result. ``figures`` are those that belong to no row or attack ("lm-eval/…").
    ``cached``: how many row results were taken from an earlier run of the same composition.

    Raises RecordError for an empty name, a time or figure that is not finite, or two rows of one name.
    """

    name: str
    version: int
    digest: str
    seed: int
    precision: str
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    rows: tuple[RowHash, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    cached: int = 0

    def __post_init__(self) -> None:
        if not self.name or self.version < 1 or self.seed < 0 or self.cached < 0:
            raise RecordError(
                f"suite run: expected a name, version >= 1 and seed >= 0, got {self.name!r}/{self.version}"
            )
        bad = [
            name for name, value in (*self.seconds.items(), *self.figures.items()) if not math.isfinite(value)
        ]
        if bad or any(value < 0 for value in self.seconds.values()):
            raise RecordError(
                f"suite run {self.title}: expected finite figures and times >= 0, got others for {bad}"
            )
        counts = Counter((row.request, row.group, row.id) for row in self.rows)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise RecordError(
                f"suite run {self.title}: expected distinct rows, got {twice[:3]} more than once"
            )

    @property
    def title(self) -> str:
        """``name/version``, as the registry records it."""
        return f"{self.name}/{self.version}"

    @property
    def total_seconds(self) -> float:
        """The wall time of all parts."""
        return math.fsum(self.seconds.values())

    def to_json(self) -> Json:
        """Plain JSON types, all numbers finite."""
        return {
            "name": self.name,
            "version": self.version,
            "digest": self.digest,
            "seed": self.seed,
            "precision": self.precision,
            "versions": dict(self.versions),
            "seconds": {name: float(value) for name, value in self.seconds.items()},
            "rows": [row.to_json() for row in self.rows],
            "skipped": dict(self.skipped),
            "figures": {name: float(value) for name, value in self.figures.items()},
            "cached": self.cached,
        }


def hash_row(key: bytes, *texts: object) -> str:
    """``hmac-sha256:<hex>`` of what a row says, under ``key``; the texts are told apart, not run together."""
    _require_key(key)
    said = json.dumps(texts, ensure_ascii=True, separators=(",", ":")).encode()
    return f"hmac-sha256:{hmac.new(key, b'efface row 1 ' + said, hashlib.sha256).hexdigest()}"


def key_name(key: bytes) -> str:
    """A name of ``key`` that does not give it away: hashes of two runs compare only under one key."""
    _require_key(key)
    return hmac.new(key, b"efface row key name 1", hashlib.sha256).hexdigest()[:16]


def _require_key(key: bytes) -> None:
    if len(key) < 16:
        raise RecordError(f"row hash: expected a key of at least 16 random bytes, got {len(key)}")
