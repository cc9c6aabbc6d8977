"""What the registry wants served on a channel: the adapter of its active release, and its audit's canary prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..registry import (
    Adapter,
    Composition,
    NotFound,
    Registry,
    Release,
    active_release,
    adapter_folder,
    get_adapter,
    get_audit,
    get_release,
    history,
    list_audits,
    peft_folder,
)
from .errors import ProbeFailed, ServingError
from .folders import BadAdapter, fill, zero
from .names import parse_name, served_name
from .probe import ProbeSet, from_report


@dataclass(frozen=True, slots=True)
class Target:
    """A release as a server gets it.

    ``adapter``: digest of the sealed rendering, or where none is sealed (a live or a bare composition, rendered by the
    controller) of the composition. ``files``: digests of its files, where sealed.
    """

    channel: str
    version: int
    name: str
    composition: Composition
    adapter: str
    files: Mapping[str, str] | None
    audit: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """A channel of a registry, read only."""

    registry: Registry
    channel: str

    def active(self) -> Target | None:
        """The active release; None when the channel has none. Raises what the registry raises."""
        try:
            return self._target(active_release(self.registry, self.channel))
        except NotFound:
            return None

    def named(self, name: str) -> Target:
        """The release that is served under ``name``. Raises `ServingError` for a name that no release has."""
        found = parse_name(name)
        if found is not None and found.channel == self.channel:
            target = self._target(get_release(self.registry, self.channel, found.version))
            if target.name == name:
                return target
        raise ServingError(
            f"expected the name of a release of {self.channel}, got another; look at release history"
        )

    def write(self, target: Target, folder: Path) -> None:
        """Write the adapter of ``target`` into the empty ``folder``. Raises what registry and rendering raise."""
        if target.files is not None:
            sealed = adapter_folder(self.registry, target.adapter)
            fill(folder, {name: sealed / name for name in target.files})
        elif target.composition.parts:
            self._render(target.composition, folder)
        else:
            fill(folder, zero(self._any_adapter(target.composition), target.composition.base))

    def probes(self, target: Target) -> ProbeSet:
        """The canary prompts of the audit that the release stands on, else of the newest one like it that passed.

        Raises `ProbeFailed` where none has any: what cannot be checked is not served.
        """
        digest, precision = target.composition.digest, target.composition.quantization
        first = [] if target.audit is None else [get_audit(self.registry, target.audit)]
        others = [one for one in reversed(list_audits(self.registry, digest)) if one.verdict == "pass"]
        for audit in (*first, *others):
            if (audit.composition, audit.precision) == (digest, precision):
                found = from_report(self.registry.blobs.read(audit.report))
                if found is not None and (found.composition, found.precision) == (digest, precision):
                    return found
        raise ProbeFailed(
            f"expected canary prompts in the audit of {target.channel}@{target.version}, got none: an older efface "
            f"made it. Audit the release again: efface audit run --release {target.channel} --model BASE"
        )

    def _target(self, release: Release) -> Target:
        sealed: Adapter | None = get_adapter(self.registry, release.rendered) if release.rendered else None
        digest = sealed.digest if sealed else release.composition.digest
        return Target(
            release.channel,
            release.version,
            served_name(release.channel, release.version, digest),
            release.composition,
            digest,
            None if sealed is None else sealed.files,
            release.audit,
        )

    def _render(self, composition: Composition, folder: Path) -> None:
        """A live composition as one LoRA: the same function (`efface.registry.renders`). Needs torch."""
        from ..adapters import AdapterError
        from .render import folder_parts, render

        try:
            made = render(folder_parts(self.registry, composition), folder / "rendered", how="live").path
        except AdapterError as error:
            raise BadAdapter(f"a live release that cannot be rendered: {error}") from error
        for file in sorted(made.iterdir()):
            file.rename(folder / file.name)
        made.rmdir()

    def _any_adapter(self, composition: Composition) -> dict[str, bytes]:
        """The files of some adapter on the same base: it knows a module and its shape."""
        for release in reversed(history(self.registry, self.channel)):
            if release.composition.base == composition.base:
                for digest in (*filter(None, [release.rendered]), *release.composition.adapters):
                    return peft_folder.read(adapter_folder(self.registry, digest))
        raise BadAdapter(
            "expected an earlier release with an adapter on this base, got none: a bare base is served under the shape "
            "of one; release an adapter first"
        )
