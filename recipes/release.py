"""Releases: compose the adapters of requests, render them as one LoRA, audit, and activate if the gates pass."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters import Part as FolderPart
from ..audits import AuditReport
from ..registry import (
    Audit,
    Composition,
    InvalidInput,
    NotFound,
    Registry,
    Release,
    activate_release,
    active_release,
    adapter_folder,
    adapter_for_request,
    checks,
    compose,
    create_release,
    get_adapter,
    get_channel,
    get_release,
    plan_compaction,
    plan_removal,
    plan_without,
    seal_adapter,
)
from ..registry.compactions import everything
from ..serving import render
from . import unmeasured
from .attest import Signer, signer
from .audit import audit_composition, audit_rows, environment, record
from .bench import Bench, encode_probes
from .errors import RequestError
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Released:
    """A new version and the audit that decided on it: ACTIVE when the gates passed (and it was to be, and the channel
    asks for nobody else), else still CANDIDATE.

    ``report``: None where nothing was left to measure with; ``note`` says what ``audit`` is then.
    """

    release: Release
    report: AuditReport | None
    audit: Audit
    note: str = ""


def add_requests(
    registry: Registry,
    channel: str,
    requests: Sequence[str],
    bench: Bench,
    recipe: Recipe,
    *,
    reason: str,
    actor: str,
    progress: Progress | None = None,
    activate: bool = True,
) -> Released:
    """Stack the adapters of ``requests`` onto what is active on ``channel`` and release the result.

    Without ``activate`` the version stays a candidate, with its audit recorded: two people then approve and activate.
    """
    adapters = [adapter_for_request(registry, request) for request in requests]
    if not adapters:
        raise RequestError("expected at least one request to add, got none: name one with --add")
    if repeated := sorted({request for request in requests if requests.count(request) > 1}):
        raise RequestError(f"{', '.join(repeated)} is named twice: name each request once")
    now = active_composition(registry, channel)
    base, quantization = (now.base, now.quantization) if now else (adapters[0].base, adapters[0].quantization)
    with registry.read() as db:
        held = everything(db, now.adapters) if now else set[str]()
    twice = [request for request, adapter in zip(requests, adapters, strict=True) if adapter.digest in held]
    if twice:
        raise RequestError(
            f"{', '.join(twice)} is in the active release of {channel} already: nothing to add"
        )
    parts = [*(now.parts if now else ()), *((adapter.digest, "1") for adapter in adapters)]
    composition = compose(base, quantization, parts)
    return release_composition(
        registry,
        channel,
        composition,
        bench,
        recipe,
        reason,
        actor,
        progress or Silent(),
        activate=activate,
    )


def remove_requests(
    registry: Registry,
    channel: str,
    requests: Sequence[str],
    bench: Bench,
    recipe: Recipe,
    *,
    reason: str,
    actor: str,
    progress: Progress | None = None,
    drop_repairs: bool = False,
) -> Released:
    """Roll ``requests`` back: a new version whose composition is as if they had never been added.

    Out of a compaction a request leaves by going back to the originals of the others. ``drop_repairs``: also take off
    the repairs that were trained on what goes.
    """
    composition = plan_removal(registry, channel, requests, drop_repairs=drop_repairs)
    return release_composition(
        registry, channel, composition, bench, recipe, reason, actor, progress or Silent()
    )


def serve_compaction(
    registry: Registry,
    channel: str,
    adapter: str,
    bench: Bench,
    recipe: Recipe,
    *,
    reason: str,
    actor: str,
    progress: Progress | None = None,
    activate: bool = True,
) -> Released:
    """Release a compaction in place of the adapters that it was made from, audited as it will be served."""
    composition = plan_compaction(registry, channel, adapter)
    return release_composition(
        registry, channel, composition, bench, recipe, reason, actor, progress or Silent(), activate=activate
    )


def return_to(
    registry: Registry,
    channel: str,
    version: int,
    bench: Bench,
    recipe: Recipe,
    *,
    reason: str,
    actor: str,
    progress: Progress | None = None,
) -> Released:
    """Roll back to the composition of an earlier version: a new version with the same digest."""
    composition = get_release(registry, channel, version).composition
    return release_composition(
        registry, channel, composition, bench, recipe, reason, actor, progress or Silent()
    )


def composition_without(registry: Registry, composition: Composition, requests: Sequence[str]) -> Composition:
    """What removing ``requests`` would leave, whether or not it may be released yet: for an audit of that.

    Raises `RequestError` for a request that is not in it, that shares an adapter with one that stays, or when
    nothing would be left to measure.
    """
    try:
        left = plan_without(registry, composition, requests).composition
    except InvalidInput as error:
        raise RequestError(str(error)) from None
    if not left.parts:
        raise RequestError("nothing would be left but the bare base: there is nothing to audit")
    return left


def active_composition(registry: Registry, channel: str) -> Composition | None:
    """What is active on ``channel``; None before its first release."""
    try:
        return active_release(registry, channel).composition
    except NotFound:
        return None


def requests_in(registry: Registry, composition: Composition) -> list[str]:
    """The requests that ``composition`` suppresses, sorted."""
    return sorted({r for part in composition.parts for r in get_adapter(registry, part.adapter).requests})


def render_composition(registry: Registry, composition: Composition, out: Path) -> Path:
    """Write ``composition`` as one LoRA folder at ``out`` (a new path). Raises for the bare base."""
    parts = [FolderPart(adapter_folder(registry, p.adapter), p.weight) for p in composition.parts]
    return render(parts, out).path


def require_base(bench: Bench, composition: Composition) -> None:
    """Raise `RequestError` when the bench's base or precision is not the composition's."""
    wanted = (composition.base, composition.quantization)
    came = (bench.base.fingerprint.digest, bench.base.quantization)
    if wanted != came:
        raise RequestError(
            f"the adapters were made for base {wanted[0]} at {wanted[1]}, but {bench.base.path} at {came[1]} "
            f"is {came[0]}: give the base they were trained on, at that precision"
        )


def release_composition(
    registry: Registry,
    channel: str,
    composition: Composition,
    bench: Bench,
    recipe: Recipe,
    reason: str,
    actor: str,
    progress: Progress,
    *,
    activate: bool = True,
) -> Released:
    """Render, register, audit and (where it passes and ``activate`` says so) serve ``composition`` on ``channel``."""
    checks.actor(actor)
    checks.reason(reason)
    require_base(bench, composition)
    active = requests_in(registry, composition)
    asked = _Asked(registry, channel, composition, active, reason, actor, signer(registry, actor), activate)
    before = active_composition(registry, channel)
    watched = sorted({*active, *(requests_in(registry, before) if before else ())})
    with tempfile.TemporaryDirectory(prefix="efface-release-") as name:
        scratch = Path(name)
        if not unmeasured.rows_left(registry, watched):
            return _carried(asked, bench, scratch, progress)
        return _measured(asked, watched, bench, recipe, scratch, progress)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A release to make: ``active`` are the requests that its composition suppresses."""

    registry: Registry
    channel: str
    composition: Composition
    active: Sequence[str]
    reason: str
    actor: str
    signs: Signer
    activate: bool


def _measured(
    asked: _Asked, watched: Sequence[str], bench: Bench, recipe: Recipe, scratch: Path, progress: Progress
) -> Released:
    """A version with an audit of its own."""
    registry, composition = asked.registry, asked.composition
    known = audit_rows(registry, asked.active, watched)
    rows = probes(bench, known.requests, recipe, progress=progress)
    encode_probes(bench, rows)
    release, folder = _candidate(asked, scratch, progress)
    report = audit_composition(
        bench,
        composition,
        folder,
        known.requests,
        active=known.active,
        shredded=known.shredded,
        recipe=recipe,
        label=f"{release.channel}@{release.version}",
        progress=progress,
        rows=rows,
    )
    audit = record(registry, composition, report, recipe, asked.actor, measured=known.active)
    asked.signs.audit(registry, audit, report)
    return Released(_let_through(asked, release, audit), report, audit)


def _carried(asked: _Asked, bench: Bench, scratch: Path, progress: Progress) -> Released:
    """A version of which nothing is left to measure (see `unmeasured`)."""
    registry, composition = asked.registry, asked.composition
    audit = unmeasured.audit_of_before(registry, asked.channel, composition)
    release, _ = _candidate(asked, scratch, progress)
    note = unmeasured.SAID_BARE if audit is None else unmeasured.SAID_BEFORE
    if audit is None:
        audit = unmeasured.record_bare(registry, composition, environment(bench), asked.actor)
    return Released(_let_through(asked, release, audit), None, audit, note)


def _candidate(asked: _Asked, scratch: Path, progress: Progress) -> tuple[Release, Path | None]:
    """Render, seal and put it on the channel; the folder of the rendering, None for the bare base."""
    registry, composition = asked.registry, asked.composition
    progress.phase("Rendering")
    folder, served = None, None
    if composition.parts:
        folder = render_composition(registry, composition, scratch / "rendered")
        rendered = seal_adapter(
            registry,
            folder,
            kind="rendered",
            base=composition.base,
            quantization=composition.quantization,
            request_ids=asked.active,
            facts={"composition": composition.digest},
            actor=asked.actor,
        )
        asked.signs.adapter(registry, rendered)
        served = rendered.digest
    release = create_release(
        registry, asked.channel, composition, rendered=served, reason=asked.reason, actor=asked.actor
    )
    return release, folder


def _let_through(asked: _Asked, release: Release, audit: Audit) -> Release:
    """Activate it if the audit passed, unless it was to stay a candidate or the channel asks for somebody else."""
    registry = asked.registry
    if not asked.activate or audit.verdict != "pass" or get_channel(registry, asked.channel).two_person:
        return release
    release = activate_release(
        registry, asked.channel, release.version, audit=audit.digest, approved_by=asked.actor
    )
    asked.signs.release(registry, release)
    return release
