"""Reversibility of a channel: every way back composes, from what is stored now, to what the ledger recorded.

The ways back are each active request removed alone, and each earlier version that was active. Everything is composed
again from the blobs of the adapters, into a scratch folder, and compared byte for byte; nothing is released.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from ..adapters.errors import AdapterError
from ..registry import (
    Adapter,
    Composition,
    Conflict,
    InvalidInput,
    Registry,
    RegistryError,
    Release,
    get_adapter,
    get_request,
    history,
    list_adapters,
    parse_render,
    plan_removal,
    plan_whole,
    plan_without,
    release_checks,
    states,
)
from ..serving.render import Rendered, folder_parts, render
from .release import requests_in
from .reversible_record import Outcome, PathFinding, differing_files, listed

CHECK = "rollback"
_USABLE = ("SEALED", "QUALIFIED")
_TRAIN = "Its bytes are not here any more: restore them from a copy of the registry, or train it again."


def path_findings(registry: Registry, release: Release, *, earlier: bool = True) -> list[PathFinding]:
    """A finding for what is active, for each request removed alone, and for each earlier version."""
    active = [_composed(registry, release.composition, f"active version {release.version}", release)]
    removed = [_removed(registry, release, one) for one in requests_in(registry, release.composition)]
    versions = [one for one in history(registry, release.channel) if one.activated_at is not None]
    back = [_back(registry, one) for one in versions if one.version != release.version] if earlier else []
    return [*active, *removed, *back]


def blob_problems(registry: Registry, adapters: Iterable[Adapter]) -> list[str]:
    """Files of these adapters whose bytes are missing or not those of the ledger: read, not looked up."""
    return [
        f"{name} of adapter {adapter.digest}: expected {digest}, got "
        + ("none" if registry.blobs.size(digest) is None else "other bytes")
        for adapter in adapters
        for name, digest in sorted(adapter.files.items())
        if not registry.blobs.intact(digest)
    ]


def _removed(registry: Registry, release: Release, request: str) -> PathFinding:
    path = f"remove {request}"
    try:
        plan = plan_removal(registry, release.channel, [request])
    except (Conflict, InvalidInput) as error:
        return _other_plan(registry, release, request, str(error))
    return _composed(registry, plan, path)


def _other_plan(registry: Registry, release: Release, request: str, reason: str) -> PathFinding:
    """Why one request does not leave alone, and what does: with its repairs, or with those trained on top of it."""
    path = f"remove {request}"
    try:
        whole = plan_whole(registry, release.composition, [request])
    except (Conflict, InvalidInput):
        return PathFinding(CHECK, path, "failed", f"refused: {reason} No other plan works")
    words = f"remove {', '.join(whole.requests)}"
    words += " together" * (len(whole.requests) > 1) + " with --drop-repairs" * whole.drop_repairs
    return _refused(path, reason, words, _composed(registry, whole.removal.composition, path))


def _back(registry: Registry, release: Release) -> PathFinding:
    path = f"to version {release.version}"
    try:
        with registry.read() as db:
            release_checks.parts(db, release.composition)
    except (Conflict, InvalidInput) as error:
        return _less_what_ended(registry, release, path, str(error))
    return _composed(registry, release.composition, path, release)


def _less_what_ended(registry: Registry, release: Release, path: str, reason: str) -> PathFinding:
    """A version with an adapter that nobody may serve any more: without it, the rest can come back."""
    held = [get_adapter(registry, part.adapter) for part in release.composition.parts]
    if damaged := blob_problems(registry, held):
        return PathFinding(CHECK, path, "failed", f"{listed(damaged)}. {_TRAIN}")
    ended = sorted({name for one in held if not _in_use(registry, one) for name in one.requests})
    try:
        left = plan_without(registry, release.composition, ended).composition
    except (Conflict, InvalidInput):
        return PathFinding(CHECK, path, "failed", f"refused: {reason} No other plan works")
    return _refused(
        path, reason, f"go back to it without {', '.join(ended)}", _composed(registry, left, path)
    )


def _in_use(registry: Registry, adapter: Adapter) -> bool:
    over = [name for name in adapter.requests if get_request(registry, name).state in states.ENDED]
    return adapter.state in _USABLE and not over


def _refused(path: str, reason: str, plan: str, tried: PathFinding) -> PathFinding:
    outcome: Outcome = "refused" if tried.outcome == "passed" else "failed"
    return PathFinding(CHECK, path, outcome, f"refused: {reason} Instead: {plan}; {tried.text}")


def _composed(
    registry: Registry, composition: Composition, path: str, release: Release | None = None
) -> PathFinding:
    """Compose it again and compare it with the rendering that was recorded, where one was."""
    if not composition.parts:
        text = f"the bare base, composition {composition.digest}: nothing to compose"
        return PathFinding(CHECK, path, "passed", text)
    held = [get_adapter(registry, part.adapter) for part in composition.parts]
    recorded = _recorded(registry, composition, release)
    if damaged := blob_problems(registry, [*held, *recorded]):
        return PathFinding(CHECK, path, "failed", f"{listed(damaged)}. {_TRAIN}")
    try:
        outcome, text = _compared(registry, composition, recorded)
    except (RegistryError, AdapterError) as error:
        outcome, text = "failed", str(error)
    return PathFinding(CHECK, path, outcome, text)


def _recorded(registry: Registry, composition: Composition, release: Release | None) -> list[Adapter]:
    """The renderings of this composition that are on record, the release's own first, those purged left out."""
    own = [] if release is None or release.rendered is None else [get_adapter(registry, release.rendered)]
    some = requests_in(registry, composition)[:1]
    found = [
        one
        for one in (list_adapters(registry, some[0]) if some else [])
        if one.kind == "rendered" and one.facts.get("composition") == composition.digest
    ]
    others = [one for one in found if one.state != "PURGED" and one.digest not in {x.digest for x in own}]
    return [*own, *others]


def _compared(registry: Registry, composition: Composition, recorded: list[Adapter]) -> tuple[Outcome, str]:
    said = f"composition {composition.digest}"
    with tempfile.TemporaryDirectory(prefix="efface-reversible-") as scratch:
        made = _render(registry, composition, Path(scratch) / "made")
        if not recorded:
            return _twice(registry, composition, made, Path(scratch), said)
    if not parse_render(composition.render).exact:
        return _within(made, recorded[0], said)
    for one in recorded:
        if different := differing_files(one.files, made.files):
            return "failed", f"{said} composes to other bytes than {one.digest}: {listed(different)}"
    return "passed", f"{said} composes to the bytes of {recorded[0].digest}, as recorded"


def _twice(
    registry: Registry, composition: Composition, made: Rendered, scratch: Path, said: str
) -> tuple[Outcome, str]:
    """Nothing was recorded of it: then it composes to the same bytes in the other order of its parts."""
    if not parse_render(composition.render).exact:
        return "passed", f"{said} composes; it was never released, and an approximation is sealed when it is"
    again = _render(registry, composition, scratch / "again", turned=True)
    if different := differing_files(made.files, again.files):
        return "failed", f"{said} composes to other bytes in another order: {listed(different)}"
    return "passed", f"{said} composes to the same bytes in any order; no release recorded a rendering of it"


def _within(made: Rendered, sealed: Adapter, said: str) -> tuple[Outcome, str]:
    """An approximation may differ from machine to machine: what is served is what was sealed."""
    error, bound = made.error or 0.0, float(sealed.error_bound or 0)
    if error > bound * (1 + 1e-6):
        return (
            "failed",
            f"{said} composes with an error of {error:g}, where {sealed.digest} recorded {bound:g}",
        )
    return "passed", f"{said}: sealed as {sealed.digest}, and composes within its error of {bound:g}"


def _render(registry: Registry, composition: Composition, out: Path, *, turned: bool = False) -> Rendered:
    parts = folder_parts(registry, composition)
    return render(parts[::-1] if turned else parts, out, how=composition.render, for_server=False)
