"""Where a registry is: a folder with everything, or a Postgres server with blobs and a folder beside it.

    ./.efface                                             a folder (SQLite, local blobs)
    sqlite:////var/lib/efface?blobs=s3://bucket/prefix    a folder whose blobs are elsewhere (three slashes: relative)
    postgresql://user@host/db?blobs=s3://bucket/prefix&root=/var/lib/efface

`blobs` is a folder or any fsspec URL, `root` the folder of the vault, the caches and interrupted work; the
environment's EFFACE_BLOBS and EFFACE_ROOT stand in for them. Other parameters of a Postgres URL are libpq's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from .errors import InvalidInput

_SERVERS = ("postgresql", "postgres")
_OURS = ("blobs", "root")


@dataclass(frozen=True, slots=True)
class Location:
    """`server` is a Postgres URL, or None when the database is a file in `root`; `blobs` a folder or a URL."""

    root: Path
    server: str | None
    blobs: str


def locate(url: str | Path) -> Location:
    """The location that a registry's URL or folder names. Raises InvalidInput without repeating the URL."""
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if isinstance(url, Path) or not separator:
        return _beside(Path(text), None, {})
    if scheme == "sqlite":
        path, _, query = rest.partition("?")
        options = _options(query, known_only=True)
        if path.startswith("/") and len(path) > 1:
            return _beside(Path(path[1:]), None, options)
    if scheme in _SERVERS:
        parts = _split(text)
        options = _options(parts.query, known_only=False)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        kept = urlencode([pair for pair in pairs if pair[0] not in _OURS])
        # Not urlunsplit: it writes postgresql:/db where there is no host (a local socket).
        server = f"postgresql://{parts.netloc}{parts.path}" + (f"?{kept}" if kept else "")
        root = options.get("root") or os.environ.get("EFFACE_ROOT") or ".efface"
        return _beside(Path(root), server, options)
    expected = "a folder, sqlite:///folder or postgresql://user@host/database"
    raise InvalidInput(expected, "another URL", "Use one of these as --registry.")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its text quotes the URL
        then = "Check its spelling; write special characters of a password as %XX."
        raise InvalidInput("postgresql://user@host/database", "another URL", then) from None


def _beside(root: Path, server: str | None, options: dict[str, str]) -> Location:
    blobs = options.get("blobs") or os.environ.get("EFFACE_BLOBS") or str(root / "blobs")
    return Location(root, server, blobs)


def _options(query: str, *, known_only: bool) -> dict[str, str]:
    pairs = parse_qsl(query)
    if known_only and {name for name, _ in pairs} - {"blobs"}:
        raise InvalidInput("the parameter blobs=…", "others", "Leave them out.")
    return {name: value for name, value in pairs if name in _OURS}
