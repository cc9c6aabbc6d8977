"""Reversibility of what is served: the bytes that a server has are those that the ledger says.

A server that loaded a folder has it under a name (`prod@3`). What is compared is the folder, byte by byte, against the
digests that were sealed; of a server by URL also the name, and that no other version of the channel is still there.
"""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from ..registry import Adapter, Registry, Release, get_adapter
from .errors import RequestError
from .reversible_record import PathFinding, differing_files, listed

CHECK = "served"
SECONDS = 10.0
_MOST_BYTES = 4 * 1024 * 1024
_AGAIN = "Load what the ledger names: export the rendered adapter again, under a new path and name."


def served_findings(
    registry: Registry, release: Release, *, folder: Path | None, url: str | None, name: str | None = None
) -> list[PathFinding]:
    """What is in `folder`, and what the vLLM at `url` says it has under `name` (by default CHANNEL@VERSION).

    Raises RequestError for a URL that is not http(s), and where there is no rendering to compare with.
    """
    if folder is None and url is None:
        return []
    if release.rendered is None:
        raise RequestError(
            f"{release.channel}@{release.version} has no rendered adapter, so no folder can be compared with it: "
            "leave out --served and --url, or release it with --render cat"
        )
    adapter = get_adapter(registry, release.rendered)
    found = [] if folder is None else [folder_finding(adapter, folder, f"folder {folder.name}")]
    if url is None:
        return found
    return [*found, *_server(adapter, release, url, name or f"{release.channel}@{release.version}")]


def folder_finding(adapter: Adapter, folder: Path, path: str) -> PathFinding:
    """The adapter's files in `folder` against the ledger's digests. Other files there are left alone."""
    try:
        found = {name: _digest(folder / name) for name in adapter.files if (folder / name).is_file()}
    except OSError as error:
        text = (
            f"expected to read the folder, got {type(error).__name__}. Run this where the server's files are."
        )
        return PathFinding(CHECK, path, "failed", text)
    if different := differing_files(adapter.files, found):
        return PathFinding(CHECK, path, "failed", f"{listed(different)}. {_AGAIN}")
    return PathFinding(CHECK, path, "passed", f"every byte is that of {adapter.digest}")


def _server(adapter: Adapter, release: Release, url: str, name: str) -> list[PathFinding]:
    path = f"server, name {name}"
    try:
        models = _models(url)
    except (OSError, ValueError) as error:
        text = (
            f"expected the list of its models, got {type(error).__name__}. Check the URL and that it answers."
        )
        return [PathFinding(CHECK, path, "failed", text)]
    others = sorted(one for one in models if one.startswith(f"{release.channel}@") and one != name)
    return [_loaded(adapter, models, name, path), _alone(release, others, name)]


def _loaded(adapter: Adapter, models: Mapping[str, str | None], name: str, path: str) -> PathFinding:
    if name not in models:
        names = ", ".join(sorted(models)[:5]) or "nothing"
        return PathFinding(CHECK, path, "failed", f"expected {name!r} among its models, got {names[:300]}")
    root = models[name]
    if not root or not Path(root).is_dir():
        text = "expected its folder to be readable here, got none: run this on its host, or name it with --served"
        return PathFinding(CHECK, path, "failed", text)
    return folder_finding(adapter, Path(root), path)


def _alone(release: Release, others: list[str], name: str) -> PathFinding:
    path = "server, other versions"
    if others:
        text = f"expected {name} alone of {release.channel}, got {', '.join(others)[:300]} too: drain and unload it"
        return PathFinding(CHECK, path, "failed", text)
    return PathFinding(CHECK, path, "passed", f"no other version of {release.channel} is loaded")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Where a server sends us on, somebody else would answer."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _models(url: str) -> dict[str, str | None]:
    """The models of a server, by id: the folder each came from. Raises OSError, ValueError, RequestError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise RequestError("expected --url such as http://localhost:8000, without a user, got another form")
    asked = f"{parts.scheme}://{parts.netloc}/v1/models"
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    with opener.open(asked, timeout=SECONDS) as answer:
        data = answer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError("a list of models that is too long")
    listing: Any = json.loads(data)
    if not isinstance(listing, dict) or not isinstance(listing.get("data"), list):
        raise ValueError("a list of models in another form")
    found: dict[str, str | None] = {}
    for one in cast("list[Any]", listing["data"]):
        if isinstance(one, dict) and isinstance(one.get("id"), str):
            root = one.get("root")
            found[one["id"]] = root if isinstance(root, str) else None
    return found


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
