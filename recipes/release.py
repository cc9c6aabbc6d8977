"""Releases: compose the adapters of requests, render them as one LoRA, audit, and activate if the gates pass."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from pathlib import Path

from ..adapters import Part as FolderPart
from ..audits import AuditReport
from ..registry import (
    Adapter,
    Audit,
    Composition,
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
    get_release,
    list_adapters,
    parse_render,
    plan_removal,
    seal_adapter,
    without,
)
from ..serving import Rendered, render
from .attest import signer
from .audit import audit_composition, audit_rows, record
from .bench import Bench, encode_probes
from .errors import RequestError
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Released:
    """A new version and the audit that decided on it: ACTIVE when the gates passed (and it was to be), else still
    CANDIDATE."""

    release: Release
    report: AuditReport
    audit: Audit


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
    render: str | None = None,
    max_rank: int | None = None,
) -> Released:
    """Stack the adapters of ``requests`` onto what is active on ``channel`` and release the result.

    ``render`` (see `efface.registry.renders`): as the active release by default, or `cat`; ``max_rank``: what the
    server holds. An approximate one is audited, and served, as it is rendered, with its error sealed beside it.
    Without ``activate`` the version stays a candidate, with its audit recorded: two people then approve and activate.
    """
    adapters = [adapter_for_request(registry, request) for request in requests]
    if not adapters:
        raise RequestError("expected at least one request to add, got none: name one with --add")
    if repeated := sorted({request for request in requests if requests.count(request) > 1}):
        raise RequestError(f"{', '.join(repeated)} is named twice: name each request once")
    now = active_composition(registry, channel)
    base, quantization = (now.base, now.quantization) if now else (adapters[0].base, adapters[0].quantization)
    for request, adapter in zip(requests, adapters, strict=True):
        if (adapter.base, adapter.quantization) != (base, quantization):
            raise RequestError(
                f"expected adapters on base {base} at {quantization}, but that of {request} is on {adapter.base} at "
                f"{adapter.quantization}: an adapter works on its own base only, so train it again on this one"
            )
    held = {part.adapter for part in now.parts} if now else set[str]()
    twice = [request for request, adapter in zip(requests, adapters, strict=True) if adapter.digest in held]
    if twice:
        raise RequestError(
            f"{', '.join(twice)} is in the active release of {channel} already: nothing to add"
        )
    parts = [*(now.parts if now else ()), *((adapter.digest, "1") for adapter in adapters)]
    composition = compose(base, quantization, parts, render or (now.render if now and now.parts else "cat"))
    return _release(
        registry,
        channel,
        composition,
        bench,
        recipe,
        reason,
        actor,
        progress or Silent(),
        activate=activate,
        max_rank=max_rank,
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
) -> Released:
    """Roll ``requests`` back: a new version whose composition is as if they had never been added."""
    composition = plan_removal(registry, channel, requests)
    return _release(registry, channel, composition, bench, recipe, reason, actor, progress or Silent())


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
    return _release(registry, channel, composition, bench, recipe, reason, actor, progress or Silent())


def composition_without(registry: Registry, composition: Composition, requests: Sequence[str]) -> Composition:
    """What removing ``requests`` would leave, whether or not it may be released yet: for an audit of that.

    Raises `RequestError` for a request that is not in it, that shares an adapter with one that stays, or when
    nothing would be left to measure.
    """
    going = set(requests)
    members = {digest: set(get_adapter(registry, digest).requests) for digest in composition.adapters}
    held = {request for found in members.values() for request in found}
    if not going or going - held:
        raise RequestError(
            f"expected requests of the release ({', '.join(sorted(held))}), got {', '.join(sorted(going - held))}"
        )
    leaving = {digest for digest, found in members.items() if found & going}
    if shared := sorted({request for digest in leaving for request in members[digest]} - going):
        raise RequestError(f"its adapter also forgets {', '.join(shared)}: name those requests too")
    if len(leaving) == len(members):
        raise RequestError("nothing would be left but the bare base: there is nothing to audit")
    return without(composition, leaving)


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
    """``composition`` as one LoRA folder: the sealed one where it is approximate, else a new one at ``out``.

    What an approximation is depends on the machine that made it: what is served is what was sealed. Raises for the
    bare base.
    """
    sealed = None if parse_render(composition.render).exact else sealed_rendering(registry, composition)
    return adapter_folder(registry, sealed.digest) if sealed else _rendered(registry, composition, out).path


def sealed_rendering(registry: Registry, composition: Composition) -> Adapter | None:
    """The newest adapter in use that was rendered from ``composition``; None before it was released."""
    some = requests_in(registry, composition)[:1]
    found = [
        adapter
        for adapter in (list_adapters(registry, some[0]) if some else [])
        if adapter.kind == "rendered"
        and adapter.state in ("SEALED", "QUALIFIED")
        and adapter.facts.get("composition") == composition.digest
    ]
    return found[-1] if found else None


def _rendered(
    registry: Registry, composition: Composition, out: Path, max_rank: int | None = None
) -> Rendered:
    parts = [FolderPart(adapter_folder(registry, p.adapter), p.weight) for p in composition.parts]
    return render(parts, out, how=composition.render, max_rank=max_rank)


def _sealed(
    registry: Registry, composition: Composition, made: Rendered, requests: Sequence[str], actor: str
) -> Adapter:
    """The bound is the error measured, rounded up."""
    bound = None if made.error is None else Decimal(made.error).quantize(Decimal("1e-9"), ROUND_UP)
    return seal_adapter(
        registry,
        made.path,
        kind="rendered",
        base=composition.base,
        quantization=composition.quantization,
        request_ids=requests,
        facts={"composition": composition.digest},
        error_bound=None if bound is None else format(bound, "f"),
        actor=actor,
    )


def require_base(bench: Bench, composition: Composition) -> None:
    """Raise `RequestError` when the bench's base or precision is not the composition's."""
    wanted = (composition.base, composition.quantization)
    came = (bench.base.fingerprint.digest, bench.base.quantization)
    if wanted != came:
        raise RequestError(
            f"the adapters were made for base {wanted[0]} at {wanted[1]}, but {bench.base.path} at {came[1]} "
            f"is {came[0]}: give the base they were trained on, at that precision"
        )


def _release(
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
    max_rank: int | None = None,
) -> Released:
    checks.actor(actor)
    checks.reason(reason)
    require_base(bench, composition)
    signs = signer(registry, actor)
    active = requests_in(registry, composition)
    before = active_composition(registry, channel)
    watched = sorted({*active, *(requests_in(registry, before) if before else ())})
    known = audit_rows(registry, active, watched)
    rows = probes(bench, known.requests, recipe, progress=progress)
    encode_probes(bench, rows)
    with tempfile.TemporaryDirectory(prefix="efface-release-") as scratch:
        progress.phase("Rendering")
        folder, rendered = None, None
        if composition.parts:
            made = _rendered(registry, composition, Path(scratch) / "rendered", max_rank)
            folder = made.path
            if composition.render != "live":
                rendered = _sealed(registry, composition, made, active, actor)
                signs.adapter(registry, rendered)
        served = rendered.digest if rendered else None
        release = create_release(registry, channel, composition, rendered=served, reason=reason, actor=actor)
        report = audit_composition(
            bench,
            composition,
            folder,
            known.requests,
            active=known.active,
            shredded=known.shredded,
            recipe=recipe,
            label=f"{channel}@{release.version}",
            progress=progress,
            rows=rows,
        )
    audit = record(registry, composition, report, recipe, actor)
    signs.audit(registry, audit, report)
    if activate and audit.verdict == "pass":
        release = activate_release(registry, channel, release.version, audit=audit.digest, approved_by=actor)
        signs.release(registry, release)
    return Released(release, report, audit)
