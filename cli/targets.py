"""Where adapters go and come from: `DIR`, `oci:DIR` or `hub://org/name@revision`, and sending one there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from ..registry import Adapter, Conflict, InvalidInput, Registry
from ..registry.card import CardFacts
from ..registry.hub_names import HubName, parse_hub
from ..registry.package import Package, check_publishable, package

HELP = "DIR, oci:DIR or hub://org/name@revision."


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed target: `hub` for the Hub, else `folder`."""

    text: str
    kind: Literal["folder", "oci", "hub"]
    folder: Path
    hub: HubName | None


def parse_target(text: str) -> Target:
    """The target that a word on the command line names. Raises InvalidInput."""
    if text.startswith("hub:"):
        return Target(text, "hub", Path(), parse_hub(text))
    kind, path = ("oci", text.removeprefix("oci:")) if text.startswith("oci:") else ("folder", text)
    if not path or "://" in path:
        raise InvalidInput("DIR, oci:DIR or hub://org/name@revision", "another form", "Write one of these.")
    return Target(text, kind, Path(path).expanduser(), None)


def packed(reg: Registry, adapter: Adapter) -> Package:
    """The adapter's manifest and files out of the registry, checked. Conflict for a purged one."""
    if adapter.state == "PURGED":
        then = "Its bytes were given up; another registry or an export may have them."
        raise Conflict(f"adapter {adapter.digest} with its bytes", "PURGED", then)
    files = {name: reg.blobs.read(digest) for name, digest in adapter.files.items()}
    return package(reg.blobs.read(adapter.digest), files)


def send(
    made: Package,
    target: Target,
    facts: CardFacts,
    *,
    single_request: bool,
    public: bool,
    along: Mapping[str, bytes] | None = None,
    signing_key: Path | None = None,
) -> str:
    """Write or push the adapter; returns where it is: the folder, the image's digest or the commit's page.

    `along` are the files of a release; `signing_key` signs all of the folder (`model_signing`). An image takes neither.
    Raises Conflict for an adapter of a single request without `single_request`, before anything leaves.
    """
    from ..registry import exports, oci

    check_publishable(made, single_request=single_request)
    if target.kind == "oci":
        if signing_key is not None:
            then = "Sign images with the tools of their registry (cosign, notation)."
            raise InvalidInput("a folder or the Hub to sign", "an image", then)
        return oci.write_layout(made, target.folder, single_request=single_request)
    named = replace(facts, repo_id=target.hub.repo_id) if target.hub else facts
    along = _signed(made, named, dict(along or {}), signing_key)
    if target.hub is None:
        return str(
            exports.export_folder(made, target.folder, named, single_request=single_request, along=along)
        )
    from ..registry import hub

    with TemporaryDirectory(prefix="efface-push-") as scratch:
        folder = exports.export_folder(
            made, Path(scratch) / "adapter", named, single_request=single_request, along=along
        )
        pushed = hub.push(
            folder,
            target.hub.repo_id,
            revision=target.hub.revision,
            private=not public,
            message=f"efface adapter {made.digest}",
        )
    return pushed.url


def _signed(made: Package, facts: CardFacts, along: dict[str, bytes], key: Path | None) -> dict[str, bytes]:
    """`along` with the signature of the whole folder, made on a copy: what leaves is signed or nothing leaves."""
    if key is None:
        return along
    from ..registry import exports, model_signing

    secret = os.environ.get(model_signing.PASSPHRASE)
    with TemporaryDirectory(prefix="efface-sign-") as scratch:
        folder = exports.export_folder(
            made, Path(scratch) / "adapter", facts, single_request=True, along=along
        )
        signature = model_signing.sign_folder(folder, key, None if secret is None else secret.encode())
        return {**along, model_signing.SIGNATURE: signature.read_bytes()}
