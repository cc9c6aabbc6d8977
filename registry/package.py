"""An adapter as it leaves one registry or enters another: its two files, and the manifest that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from . import checks, peft_folder
from .canon import Digest, canonical, digest_bytes, parse, weight
from .errors import Conflict, InvalidInput

MANIFEST_LIMIT = 2**20

_THEN = "Take the adapter from the registry or the image that sealed it."
_KEYS = frozenset({"v", "kind", "base", "quantization", "files", "requests", "trained_on", "facts"})
_OPTIONAL = frozenset({"error_bound"})
"""Only a compressed adapter's manifest has it (see `adapters`)."""


@dataclass(frozen=True, slots=True)
class Package:
    """A sealed adapter outside a registry. Make it with `package`, which checks all of it.

    `manifest` is the canonical JSON whose digest is the adapter's id; `files` has the bytes of the two files
    that it names.
    """

    manifest: bytes
    files: Mapping[str, bytes]

    @property
    def digest(self) -> Digest:
        """The adapter's id."""
        return digest_bytes(self.manifest)

    @property
    def record(self) -> Mapping[str, Any]:
        """The manifest, parsed."""
        return cast("Mapping[str, Any]", parse(self.manifest))


def package(manifest: bytes, files: Mapping[str, bytes]) -> Package:
    """The adapter of this manifest and these files. Raises InvalidInput unless both are whole and agree."""
    peft_folder.check(files)
    record = _record(manifest)
    if record["files"] != {name: digest_bytes(data) for name, data in files.items()}:
        raise InvalidInput("the files that the manifest names", "others", _THEN)
    return Package(manifest, dict(files))


def check_publishable(made: Package, *, single_request: bool) -> None:
    """Raise Conflict for an adapter that answers one request alone, unless `single_request` says it may go out.

    Whoever has the base and such an adapter sees where the two answer differently: that points at what one
    person asked to have forgotten. In a stack of several requests it cannot be told which difference is whose.
    """
    if len(made.record["requests"]) == 1 and not single_request:
        expected = "an adapter of several requests (a stack)"
        then = (
            "Its difference from the base points at what one request had forgotten: publish the rendered stack of "
            "a release, or pass single_request (--single-request)."
        )
        raise Conflict(expected, "one that answers a single request", then)


def _record(manifest: bytes) -> Mapping[str, Any]:
    """The manifest in the form that `seal_adapter` writes: what is read of it later is safe in a card."""
    value = parse(manifest.decode("utf-8", "replace")) if len(manifest) <= MANIFEST_LIMIT else None
    if not isinstance(value, Mapping) or canonical(value) != manifest:
        raise InvalidInput("a manifest in canonical JSON", "other bytes", _THEN)
    record = cast("Mapping[str, Any]", value)
    requests = record.get("requests")
    if (
        frozenset(record) - _OPTIONAL != _KEYS
        or record["v"] != 1
        or not isinstance(requests, list)
        or not requests
    ):
        raise InvalidInput("the manifest of an adapter, version 1", "another", _THEN)
    _check_names(record)
    return record


def _check_names(record: Mapping[str, Any]) -> None:
    checks.token(record["kind"], "kind")
    checks.token(record["base"], "base", 200)
    checks.token(record["quantization"], "quantization")
    for request in record["requests"]:
        checks.token(request, "request")
    if record["trained_on"] is not None:
        checks.digest(record["trained_on"], "trained_on")
    if (bound := record.get("error_bound")) is not None and weight(bound) != bound:
        raise InvalidInput("an error bound as a canonical decimal", "another spelling", _THEN)
