"""Reading a bundle that may come from anyone: bounded, whole, and only what the format knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bundle_members, bundle_zip, checks
from .bundle_members import canonical_value, mapping, records
from .errors import InvalidInput, NotFound

_FIX = "Pass a bundle as `efface bundle export` wrote it."


@dataclass(frozen=True, slots=True)
class Bundle:
    """The members of a bundle, parsed; their digests are those of the manifest, and nothing else is checked yet."""

    kind: str
    id: str
    members: Mapping[str, bytes]
    facts: Mapping[str, Any]
    ledger: Mapping[str, Any]
    checkpoints: list[Mapping[str, Any]]
    keys: list[Mapping[str, Any]]

    @property
    def about(self) -> dict[str, str]:
        """What it is about, as the manifest says it."""
        return {"kind": self.kind, "id": self.id}


def parse_bundle(data: bytes) -> Bundle:
    """The bundle in these bytes. Raises InvalidInput for something else, GateFailed for one that was changed."""
    manifest, members = bundle_members.opened(data)
    about = mapping(manifest["about"], "about")
    if set(about) != {"kind", "id"} or about["kind"] not in ("request", "channel"):
        raise InvalidInput("a bundle about a request or a channel", "one about something else", _FIX)
    value = {name: canonical_value(members[name], name) for name in bundle_members.ONE_OF if name[-1] == "n"}
    return Bundle(
        kind=about["kind"],
        id=checks.text(about["id"], "what the bundle is about", 200),
        members=members,
        facts=mapping(value["facts.json"], "facts"),
        ledger=mapping(value["ledger.json"], "ledger"),
        checkpoints=records(value["checkpoints.json"], "checkpoints"),
        keys=records(value["keys.json"], "keys"),
    )


def read_bytes(path: Path) -> bytes:
    """What is in the file, one byte beyond the limit at most. Raises NotFound, InvalidInput."""
    try:
        if not path.is_file():
            raise NotFound("the file of a bundle", "none", "Name the file that was exported.")
        with path.open("rb") as file:
            return file.read(bundle_zip.LARGEST_ARCHIVE + 1)
    except OSError as error:
        raise InvalidInput("a file that can be read", type(error).__name__, _FIX) from error
