"""`efface release pull`, and what `release push` sends along: a release, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ..registry import Audit, InvalidInput, Registry, Release, get_request, release_file, seal_adapter
from ..registry.package import Package
from ..registry.release_pull import CheckedRelease, check, check_evidence
from ..registry.requests import check_accepted
from .adapter_transfer import checked_base
from .files import public_key
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    ModelOption,
    RegistryOption,
)
from .output import emit, talk
from .record_acts import EvidenceWord, PullRecord
from .records import adapter_json
from .targets import Target, parse_target

PULL_EXAMPLE = (
    "Example: efface release pull hub://org/stack --request req-000001 --model ./base --key publisher.pub"
)
EvidenceOption = Annotated[
    Path | None,
    typer.Option(
        "--evidence", metavar="FILE", help="A bundle of `efface bundle export CHANNEL` to publish along."
    ),
]


def release_files(
    release: Release, made: Package, audit: Audit | None, evidence: Path | None, target: Target
) -> dict[str, bytes]:
    """The release file and its evidence, checked against each other; an image has room for neither."""
    if target.kind == "oci":
        if evidence is not None:
            then = "Push to a folder or the Hub, or hand the bundle over beside the image."
            raise InvalidInput("a folder or the Hub for --evidence", "an image", then)
        return {}
    described = release_file.describe(release, made, audit)
    if evidence is None:
        return {release_file.NAME: described}
    from ..registry import bundle_read

    data = bundle_read.read_bytes(evidence)
    check_evidence(data, release_file.read(described))
    return {release_file.NAME: described, release_file.EVIDENCE: data}


def pull(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="What `release push` wrote: DIR or hub://org/name@revision."),
    ],
    request: Annotated[
        list[str], typer.Option("--request", help="A request here that the release answers. Repeatable.")
    ],
    model: ModelOption,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            "--key",
            metavar="PEM",
            help="The publisher's log key, as you were given it: its evidence must be signed by one. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Keep all that was pulled in this new folder.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Fetch a pushed release, check it, and seal its stack as one adapter for requests of this registry.

    Checked: both files against the digests of the release, all of it against the evidence bundle where there is one,
    and with --key who signed that. The adapter is SEALED, of the kind trained, and says where it is from. No channel
    serves it before `efface release create` has audited it here. An error leaves nothing in the registry.
    """
    trusted = [public_key(path) for path in key] if key else None
    where = parse_target(source)
    with Registry.open(registry) as reg, TemporaryDirectory(prefix="efface-pull-") as scratch:
        for request_id in request:
            check_accepted(get_request(reg, request_id))
        origin, files = _fetch(where)
        found = check(files, trusted_keys=trusted)
        folder = Path(scratch) / "adapter"
        _write(folder, found.adapter)
        composition = found.stated.composition
        base = checked_base(folder, model, composition.quantization, composition.base)
        if out is not None:
            _write(out, found.files)
        adapter = seal_adapter(
            reg,
            folder,
            kind="trained",
            base=base,
            quantization=composition.quantization,
            request_ids=request,
            facts={"imported_from": origin, "objective": "unknown", "published": found.provenance()},
            actor=actor,
        )
    record: PullRecord = {
        "adapter": adapter_json(adapter),
        "release": {"channel": found.stated.channel, "version": found.stated.version},
        "composition": composition.digest,
        "audit": found.stated.audit,
        "evidence": _evidence(found),
        "signed_by": list(found.signed_by),
    }
    said = f"evidence {record['evidence']}"
    emit(record, format, f"{adapter.digest}\n{found.stated.channel}@{found.stated.version}  {said}")
    then = f"efface release create CHANNEL --add {' --add '.join(request)} --model {model}"
    talk.print(f"Sealed, served nowhere. To audit and serve it here: {then}", soft_wrap=True)


def _fetch(source: Target) -> tuple[str, dict[str, bytes]]:
    """Where it is from (no path of this machine), and its files by name."""
    from ..registry import hub, peft_folder

    if source.hub is not None:
        commit, files = hub.pull_release(source.hub.repo_id, revision=source.hub.revision)
        return f"hub://{source.hub.repo_id}@{commit}", files
    if source.kind == "oci":
        then = "Import its adapter: efface adapter import oci:DIR --request REQUEST --model BASE"
        raise InvalidInput("a folder or hub://org/name@revision", "an image, which holds no release", then)
    return "folder", {**peft_folder.read(source.folder), **hub.along_with(source.folder)}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    from ..registry import plain_files

    plain_files.write_folder(folder, files)


def _evidence(found: CheckedRelease) -> EvidenceWord:
    """`none`, `unsigned` (nobody signed all its events), `unknown-key`, or `trusted-key` (one that --key named)."""
    if found.evidence is None:
        return "none"
    if found.vouched:
        return "trusted-key"
    whole = found.evidence.signed_size == found.evidence.tree_size
    return "unknown-key" if whole else "unsigned"
