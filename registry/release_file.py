"""What a pushed release says of itself: `efface-release.json`, beside the PEFT folder of its rendered adapter.

    {"format":"efface-release","v":1,"channel":…,"version":…,"composition":{…},"adapter":…,"files":{…},"audit":{…}}

`composition` and `audit` are the records whose digests name them, `adapter` the digest of the rendered adapter's
manifest, `files` the digests of its two files. Nothing of any request is in it. By itself it is the word of whoever
made the folder; the evidence bundle that may lie beside it (`EVIDENCE`) proves it, see `release_pull`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from . import bundle_zip, checks, compositions, peft_folder
from .canon import JSON, Digest, canonical, digest_bytes, digest_json, parse
from .errors import InvalidInput, RegistryError
from .package import Package
from .types import Audit, Composition, Release

FORMAT = "efface-release"
VERSION = 1
NAME = "efface-release.json"
EVIDENCE = "evidence.efface.zip"
"""An evidence bundle about the channel."""
SIGNATURE = "model.sig"
"""See `model_signing`."""
LIMITS: Mapping[str, int] = {NAME: 2**22, EVIDENCE: bundle_zip.LARGEST_ARCHIVE, SIGNATURE: 2**20}
"""What may go along with a release, and the most bytes of each."""
_FIELDS = {"format", "v", "channel", "version", "composition", "adapter", "files", "audit"}
_AUDIT = ("composition", "precision", "suite", "seed", "verdict", "report", "environment")
_THEN = "Push the release again: efface release push CHANNEL TARGET"


@dataclass(frozen=True, slots=True)
class Stated:
    """A parsed release file: consistent in itself, and nobody's word but its maker's."""

    channel: str
    version: int
    composition: Composition
    adapter: Digest
    files: Mapping[str, Digest]
    audit: Digest | None


def describe(release: Release, made: Package, audit: Audit | None) -> bytes:
    """The release file of a release whose rendered adapter is `made`."""
    record: dict[str, JSON] = {
        "format": FORMAT,
        "v": VERSION,
        "channel": release.channel,
        "version": release.version,
        "composition": release.composition.record(),
        "adapter": made.digest,
        "files": {name: digest_bytes(data) for name, data in made.files.items()},
        "audit": None if audit is None else {"v": 1, **{name: getattr(audit, name) for name in _AUDIT}},
    }
    return canonical(record)


def read(data: bytes) -> Stated:
    """The release in the bytes of a file that may come from anyone. Raises InvalidInput."""
    try:
        value = parse(data.decode("utf-8", "replace")) if len(data) <= LIMITS[NAME] else None
        if isinstance(value, Mapping) and canonical(value) == data:
            return _stated(cast(Mapping[str, Any], value))
    except (RegistryError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _bad("other values") from error
    raise _bad("other bytes")


def _stated(record: Mapping[str, Any]) -> Stated:
    if set(record) != _FIELDS or (record["format"], record["v"]) != (FORMAT, VERSION):
        raise _bad("another object")
    composition = compositions.of_record(record["composition"])
    files = {name: checks.digest(record["files"][name], name) for name in peft_folder.LIMITS}
    if composition.record() != record["composition"] or set(record["files"]) != set(files):
        raise _bad("another spelling")
    return Stated(
        channel=checks.channel(record["channel"]),
        version=checks.count(record["version"], "version", 1),
        composition=composition,
        adapter=checks.digest(record["adapter"], "adapter"),
        files=files,
        audit=None if record["audit"] is None else _audit(record["audit"], composition),
    )


def _audit(record: Mapping[str, Any], composition: Composition) -> Digest:
    """A release is served on an audit that passed, of its composition, at the precision it is served in."""
    served = (composition.digest, composition.quantization, "pass")
    if (record["composition"], record["precision"], record["verdict"]) != served:
        raise _bad("the audit of something else, or one that failed")
    return digest_json(record)


def _bad(came: str) -> InvalidInput:
    return InvalidInput(f"a release as efface pushed it ({NAME})", came, _THEN)
