"""Where adapters go and come from: `DIR`, `oci:DIR` or `hub://org/name@revision`, and sending one there."""

from __future__ import annotations

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


def send(made: Package, target: Target, facts: CardFacts, *, single_request: bool, public: bool) -> str:
    """Write or push the adapter; returns where it is: the folder, the image's digest or the commit's page.

    Raises Conflict for an adapter of a single request without `single_request`, before anything leaves.
    """
    from ..registry import exports, oci

    check_publishable(made, single_request=single_request)
    if target.kind == "oci":
        return oci.write_layout(made, target.folder, single_request=single_request)
    if target.hub is None:
        return str(exports.export_folder(made, target.folder, facts, single_request=single_request))
    from ..registry import hub

    named = replace(facts, repo_id=target.hub.repo_id)
    with TemporaryDirectory(prefix="efface-push-") as scratch:
        folder = exports.export_folder(made, Path(scratch) / "adapter", named, single_request=single_request)
        pushed = hub.push(
            folder,
            target.hub.repo_id,
            revision=target.hub.revision,
            private=not public,
            message=f"efface adapter {made.digest}",
        )
    return pushed.url
