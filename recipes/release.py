"""Releases: compose the adapters of requests, render them as one LoRA, audit, and activate if the gates pass."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from pathlib import Path

from ..adapters import read_adapter
from ..audits import AuditReport
from ..registry import (
    Adapter,
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
    get_request,
    list_adapters,
    parse_render,
    plan_compaction,
    plan_removal,
    plan_without,
    rendered_as,
    seal_adapter,
    states,
)
from ..registry.compactions import everything
from ..serving.render import Rendered, folder_parts, render, slot_rank
from . import unmeasured
from .attest import Signer, signer
from .audit import audit_composition, audit_rows, environment, record
from .bench import Bench, encode_probes
from .canary import canary
from .errors import RequestError
from .given import check_given
from .held import held_to
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
    with registry.read() as db:
        held = everything(db, now.adapters) if now else set[str]()
    for request, adapter in zip(requests, adapters, strict=True):
        if (adapter.base, adapter.quantization) != (base, quantization):
            raise RequestError(
                f"expected adapters on base {base} at {quantization}, but that of {request} is on {adapter.base} at "
                f"{adapter.quantization}: an adapter works on its own base only, so train it again on this one"
            )
    twice = [request for request, adapter in zip(requests, adapters, strict=True) if adapter.digest in held]
    if twice:
        raise RequestError(
            f"{', '.join(twice)} is in the active release of {channel} already: nothing to add"
        )
    parts = [*(now.parts if now else ()), *((adapter.digest, "1") for adapter in adapters)]
    composition = compose(base, quantization, parts, render or (now.render if now and now.parts else "cat"))
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
    drop_repairs: bool = False,
    render: str | None = None,
    max_rank: int | None = None,
) -> Released:
    """Roll ``requests`` back: a new version whose composition is as if they had never been added.

    Out of a compaction a request leaves by going back to the originals of the others. ``drop_repairs``: also take off
    the repairs that were trained on what goes. ``render``: that of the active release by default; originals may have
    more rank together than ``max_rank``, what the server holds, where their compaction had less.
    """
    composition = plan_removal(registry, channel, requests, drop_repairs=drop_repairs, render=render)
    return release_composition(
        registry, channel, composition, bench, recipe, reason, actor, progress or Silent(), max_rank=max_rank
    )


def render_release(
    registry: Registry,
    channel: str,
    render: str,
    bench: Bench,
    recipe: Recipe,
    *,
    reason: str,
    actor: str,
    progress: Progress | None = None,
    activate: bool = True,
    max_rank: int | None = None,
) -> Released:
    """Release what is active on ``channel`` with another render: another composition, audited as it will be served."""
    now = active_release(registry, channel).composition
    composition = rendered_as(now, render)
    if composition == now:
        came = f"{render}, as it is" if now.parts else "the bare base, of which there is nothing to render"
        raise RequestError(f"expected another render for {channel}, got {came}: there is nothing to do")
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
        max_rank=max_rank,
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
    render: str | None = None,
    max_rank: int | None = None,
) -> Released:
    """Release a compaction in place of the adapters that it was made from, audited as it will be served.

    ``render``: as the active release by default; ``max_rank``: what the server holds.
    """
    composition = rendered_as(plan_compaction(registry, channel, adapter), render)
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
        max_rank=max_rank,
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
    render: str | None = None,
    max_rank: int | None = None,
) -> Released:
    """Roll back to the composition of an earlier version: a new version with the same digest.

    With another ``render`` than that version's it is another composition of the same adapters. ``max_rank``: what the
    server holds.
    """
    composition = rendered_as(get_release(registry, channel, version).composition, render)
    return release_composition(
        registry, channel, composition, bench, recipe, reason, actor, progress or Silent(), max_rank=max_rank
    )


def composition_without(
    registry: Registry,
    composition: Composition,
    requests: Sequence[str],
    *,
    drop_repairs: bool = False,
    render: str | None = None,
) -> Composition:
    """What removing ``requests`` would leave, whether or not it may be released yet: for an audit of that.

    ``drop_repairs`` and ``render`` are what they are for `remove_requests`. Raises `RequestError` for a request that is
    not in it, that shares an adapter with one that stays, or when nothing would be left to measure.
    """
    try:
        wanted = rendered_as(composition, render)
        left = plan_without(registry, wanted, requests, drop_repairs=drop_repairs).composition
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
    """``composition`` as one LoRA folder: the sealed one where it is approximate, else a new one at ``out``.

    What an approximation is depends on the machine that made it: what is served is what was sealed. A new one is to
    measure or to train on: it may have more rank than a server's slot. Raises for the bare base.
    """
    sealed = None if parse_render(composition.render).exact else sealed_rendering(registry, composition)
    if sealed is not None:
        return adapter_folder(registry, sealed.digest)
    return render(folder_parts(registry, composition), out, how=composition.render, for_server=False).path


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


def require_in_force(registry: Registry, requests: Sequence[str]) -> None:
    """Raise `RequestError` for requests that were refused or withdrawn: no release holds their adapters."""
    ended = [
        (name, state) for name in requests if (state := get_request(registry, name).state) in states.ENDED
    ]
    if ended:
        raise RequestError(
            f"{', '.join(f'{name} is {state}' for name, state in ended)}: expected requests in force; "
            "leave the adapters of those out"
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
    max_rank: int | None = None,
) -> Released:
    """Render, register, audit and (where it passes and ``activate`` says so) serve ``composition`` on ``channel``."""
    checks.actor(actor)
    checks.reason(reason)
    require_base(bench, composition)
    active = requests_in(registry, composition)
    asked = _Asked(
        registry, channel, composition, active, reason, actor, signer(registry, actor), activate, max_rank
    )
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
    max_rank: int | None


def _measured(
    asked: _Asked, watched: Sequence[str], bench: Bench, recipe: Recipe, scratch: Path, progress: Progress
) -> Released:
    """A version with an audit of its own."""
    registry, composition = asked.registry, asked.composition
    known = audit_rows(registry, asked.active, watched)
    check_given(bench.plan, known.requests, known.active)
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
        parts=folder_parts(registry, composition),
        held=held_to(registry, asked.channel, composition.quantization, recipe.gates, composition),
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
        answers = canary(bench, bench.base.model, composition).to_json()
        audit = unmeasured.record_bare(registry, composition, environment(bench), asked.actor, answers)
    return Released(_let_through(asked, release, audit), None, audit, note)


def _candidate(asked: _Asked, scratch: Path, progress: Progress) -> tuple[Release, Path | None]:
    """Render, seal and put it on the channel; the folder of the rendering, None for the bare base."""
    registry, composition = asked.registry, asked.composition
    progress.phase("Rendering")
    folder, served = None, None
    if (kept := _kept(asked)) is not None:
        return _put(asked, kept.digest), adapter_folder(registry, kept.digest)
    if composition.parts:
        parts, how = folder_parts(registry, composition), composition.render
        made = render(parts, scratch / "rendered", how=how, max_rank=asked.max_rank)
        folder = made.path
        if composition.render != "live":
            rendered = _sealed(registry, composition, made, asked.active, asked.actor)
            asked.signs.adapter(registry, rendered)
            served = rendered.digest
    return _put(asked, served), folder


def _kept(asked: _Asked) -> Adapter | None:
    """The sealed rendering, where rendering again could give another: it is the one that was audited."""
    if parse_render(asked.composition.render).exact:
        return None
    kept = sealed_rendering(asked.registry, asked.composition)
    if kept is not None:
        slot_rank(read_adapter(adapter_folder(asked.registry, kept.digest)).rank, max_rank=asked.max_rank)
    return kept


def _put(asked: _Asked, rendered: str | None) -> Release:
    return create_release(
        asked.registry,
        asked.channel,
        asked.composition,
        rendered=rendered,
        reason=asked.reason,
        actor=asked.actor,
    )


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
