"""Names on the Hugging Face Hub, taken strictly: they end up in URLs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InvalidInput

_REPO = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?/[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?",
    re.ASCII,
)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)
_SCHEME = "hub://"


@dataclass(frozen=True, slots=True)
class HubName:
    """A model repository, and a branch, tag or commit of it; None is its main branch."""

    repo_id: str
    revision: str | None


def parse_hub(text: str) -> HubName:
    """`hub://org/name` or `hub://org/name@revision`. Raises InvalidInput."""
    if not text.startswith(_SCHEME):
        raise InvalidInput("hub://org/name@revision", "another form", "Write hub://org/name.")
    repo_id, at, revision = text.removeprefix(_SCHEME).partition("@")
    return HubName(check_repo_id(repo_id), check_revision(revision) if at else None)


def check_repo_id(text: str) -> str:
    """`org/name` as the Hub allows it. Raises InvalidInput."""
    if not _REPO.fullmatch(text) or "--" in text or ".." in text or text.endswith(".git"):
        raise InvalidInput("a repository org/name", "another name", "Use letters, digits and single . _ -")
    return text


def check_revision(text: str) -> str:
    """A branch, tag or commit that git allows and a URL holds. Raises InvalidInput."""
    if len(text) > 200 or not _REVISION.fullmatch(text) or ".." in text or text.endswith((".", ".lock")):
        raise InvalidInput("a branch, tag or commit", "another name", "Use letters, digits and . _ - /")
    return text
