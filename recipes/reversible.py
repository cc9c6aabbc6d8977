"""Audit that a channel can be taken back: base untouched, every way back composes, what is served is on record.

Read `reversibility` first. It changes nothing and releases nothing. The report is not recorded as an audit event: a
passing audit event is what lets a composition be released, and this one measures no forgetting. Sign it instead
(`efface audit sign`).
"""

from __future__ import annotations

import platform
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ..adapters.errors import AdapterError
from ..adapters.model import resolve
from ..registry import Registry, RegistryError, Release, active_release, adapter_folder, get_adapter, verify
from .progress import Progress, Silent
from .release import render_composition
from .reversible_base import base_findings
from .reversible_paths import blob_problems, path_findings
from .reversible_record import PathFinding, Reversibility, listed
from .reversible_served import served_findings

_PACKAGES = ("efface", "torch", "transformers", "peft", "bitsandbytes")


def reversibility(
    registry: Registry,
    channel: str,
    model: str | Path,
    *,
    served: Path | None = None,
    url: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Reversibility:
    """Prove or refute, for what is active on `channel` on the base `model`:

    the ledger is whole; the base's files are those on record, before and after; its weights in memory and its logits
    are bit-equal with the adapter off and taken off; each request alone, and each earlier version, composes to what
    was recorded; and `served` (a folder) or `url` (a vLLM) has the bytes that the ledger names.

    What is damaged is a finding, not an error. Raises what the registry raises for an unknown channel, ModelError for
    a base that does not load, RequestError for a URL of another form.
    """
    progress = progress or Silent()
    release, path = active_release(registry, channel), resolve(model)
    progress.phase("Reading what is served")
    elsewhere = served_findings(registry, release, folder=served, url=url, name=name)
    progress.phase("Verifying the ledger")
    found = [_ledger(registry)]
    progress.phase("Composing every way back")
    found += path_findings(registry, release)
    progress.phase("Putting it on the base and taking it off")
    found += _base(registry, release, path)
    return Reversibility(
        channel=channel,
        version=release.version,
        base=release.composition.base,
        composition=release.composition.digest,
        precision=release.composition.quantization,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        findings=(*found, *elsewhere),
        environment=_environment(),
    )


def _ledger(registry: Registry) -> PathFinding:
    """Every path is compared with what the ledger says: so first, that nobody changed it."""
    checked = verify(registry)
    if checked.ok:
        return PathFinding("ledger", "all events", "passed", f"{checked.events} events, nothing was changed")
    said = [f"{p.kind} at {p.where}: expected {p.expected}, got {p.found}" for p in checked.problems]
    return PathFinding("ledger", "all events", "failed", f"{listed(said)}. Run `efface verify --deep`.")


def _base(registry: Registry, release: Release, path: Path) -> list[PathFinding]:
    composition = release.composition
    with tempfile.TemporaryDirectory(prefix="efface-reversible-") as scratch:
        try:
            rendered = _worn(registry, release, Path(scratch) / "rendered")
        except (RegistryError, AdapterError) as error:
            return [PathFinding("base weights", "adapter on", "failed", f"not checked: {error}")]
        return base_findings(path, composition.base, composition.quantization, rendered)


def _worn(registry: Registry, release: Release, out: Path) -> Path | None:
    """The folder that is served: the sealed one where there is one; None for the bare base."""
    if not release.composition.parts:
        return None
    if release.rendered is None:
        return render_composition(registry, release.composition, out)
    sealed = get_adapter(registry, release.rendered)
    if damaged := blob_problems(registry, [sealed]):
        raise AdapterError(listed(damaged))
    return adapter_folder(registry, sealed.digest)


def _environment() -> dict[str, str]:
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        name: version(name) for name in _PACKAGES
    }
