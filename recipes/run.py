"""One forget request, top to bottom: rows → training → audit → sealed adapter → ledger.

Supports: one LoRA on the linear layers of an nf4, int8, bf16 or fp32 base, alone or on top of a released
composition; every objective of `efface.adapters.OBJECTIVES`. Assumes: the request is open in the registry. Nothing
is registered until training is done; a process killed at any moment leaves a registry that verifies, and the same
call can be made again, going on from the last checkpoint with ``resume``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from transformers import TrainerCallback

from ..adapters import TrainResult
from ..audits import AuditReport
from ..registry import (
    JSON,
    Adapter,
    Audit,
    Composition,
    ForgetRequest,
    Part,
    Registry,
    checks,
    compose,
    get_request,
    list_requests,
    seal_adapter,
    step_request,
)
from ..registry.requests import check_accepted
from .attest import Signer, signer
from .audit import audit_composition, audit_rows, record, request_data
from .bench import Bench, encode_probes
from .beside import Beside, registered
from .beside import facts as beside_facts
from .data import RequestData
from .errors import RequestError
from .given import check_given
from .prepare import TrainingRows, probes, training_rows
from .progress import Progress, Silent
from .recipe import Recipe
from .release import render_composition, requests_in, require_base
from .rounds import Stacked, Workplace, joined, train_adapter

TRAINABLE = ("RECEIVED", "VERIFIED", "ACCEPTED", "TRAINED", "AUDITED", "REOPENED")
ENDED = ("REFUSED", "WITHDRAWN", "SHREDDED", "CLOSED")


@dataclass(frozen=True, slots=True)
class Unlearned:
    """What `unlearn` made: the sealed adapter on what it was trained on as ``composition``, and its audit.

    ``rounds``: one training result a round; ``training``: all of them as one.
    """

    adapter: Adapter
    composition: Composition
    audit: Audit
    report: AuditReport
    training: TrainResult
    rounds: tuple[TrainResult, ...]


def unlearn(
    registry: Registry,
    request_id: str,
    bench: Bench,
    recipe: Recipe,
    *,
    actor: str,
    on: Composition | None = None,
    resume: bool = False,
    report_to: str = "none",
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress | None = None,
) -> Unlearned:
    """Train, audit, seal and register the adapter of one request. The audit may fail; see ``report.verdict``.

    ``on``: train on top of this composition of a release; it is the reference policy then, and the adapter is
    recorded as trained on it. ``resume``: go on from the checkpoints that an interrupted call left in the
    registry's ``work`` folder (to the same adapter, bit for bit, on a CPU); without it they are dropped.

    Raises, before anything is trained, `RequestError` for a request that cannot be trained now and `Conflict` for one
    on a legal basis that nobody has verified and accepted (`efface.registry.requests.check_accepted`); and what
    reading the rows, training and the registry raise. In each case nothing is registered.
    """
    checks.actor(actor)
    _require_trainable(get_request(registry, request_id))
    signs = signer(registry, actor)
    work = Workplace(registry.root / "work" / request_id, resume)
    with _alone(work.folder):
        if not resume:
            shutil.rmtree(work.folder, ignore_errors=True)
        made = _unlearn(
            registry,
            request_id,
            bench,
            recipe,
            work,
            signs,
            actor=actor,
            on=on,
            report_to=report_to,
            callbacks=callbacks,
            progress=progress or Silent(),
        )
        shutil.rmtree(work.folder, ignore_errors=True)
    return made


@contextmanager
def _alone(work: Path) -> Generator[None]:
    """One training of a request at a time: two would write the same checkpoints."""
    work.parent.mkdir(mode=0o700, exist_ok=True)
    path = work.with_name(f"{work.name}.lock")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RequestError(
            f"{work.name} is being trained by another process: wait for it, or end it"
        ) from None
    try:
        yield
    finally:
        # Nobody waits for it, and a call that is refused leaves nothing behind.
        path.unlink(missing_ok=True)
        lock.release()
        for folder in (*work.glob("*"), work, work.parent):
            with suppress(OSError):  # checkpoints are in it, or another request's
                folder.rmdir()


def _unlearn(
    registry: Registry,
    request_id: str,
    bench: Bench,
    recipe: Recipe,
    work: Workplace,
    signs: Signer,
    *,
    actor: str,
    on: Composition | None,
    report_to: str,
    callbacks: Sequence[TrainerCallback],
    progress: Progress,
) -> Unlearned:
    if on is not None:
        require_base(bench, on)
    active = sorted({request_id, *(requests_in(registry, on) if on else ())})
    known = audit_rows(registry, active)
    check_given(bench.plan, known.requests, known.active)
    asked, data = known.requests, known.requests[request_id]
    others = _others(registry, request_id)
    beside = registered(registry, request_id, bench, recipe, on)
    rows = training_rows(
        bench,
        data,
        recipe,
        others=tuple(others.values()),
        progress=progress,
        alternates=recipe.train_settings().needs_alternates,
        truncation=recipe.truncation,
    )
    looked_at = probes(bench, asked, recipe, progress=progress)
    encode_probes(bench, looked_at)
    with tempfile.TemporaryDirectory(prefix="efface-unlearn-") as name:
        scratch = Path(name)
        rounds = train_adapter(
            bench,
            data,
            rows,
            recipe,
            scratch / "adapter",
            progress,
            stacked=_stacked(registry, on, scratch / "below"),
            beside=beside,
            work=work,
            report_to=report_to,
            callbacks=callbacks,
        )
        progress.phase("Sealing")
        adapter = seal_adapter(
            registry,
            scratch / "adapter",
            kind="trained",
            base=bench.base.fingerprint.digest,
            quantization=recipe.quantization,
            request_ids=[request_id],
            facts=_facts(recipe, rows, rounds, tuple(others), beside),
            trained_on=on.digest if on else None,
            actor=actor,
        )
        signs.adapter(registry, adapter)
        below = on.parts if on else ()
        composition = compose(adapter.base, adapter.quantization, [*below, Part(adapter.digest, "1")])
        folder = scratch / "adapter"
        if on is not None:
            folder = render_composition(registry, composition, scratch / "rendered")
        report = audit_composition(
            bench,
            composition,
            folder,
            asked,
            active=known.active,
            shredded=known.shredded,
            recipe=recipe,
            label=f"{request_id} alone" if on is None else f"{request_id} on {len(below)} adapters",
            progress=progress,
            rows=looked_at,
        )
    audit = record(registry, composition, report, recipe, actor, measured=known.active)
    signs.audit(registry, audit, report)
    if audit.verdict == "pass" and get_request(registry, request_id).state == "TRAINED":
        step_request(registry, request_id, "AUDITED", actor=actor, reason=f"audit {audit.digest} passed")
    return Unlearned(adapter, composition, audit, report, joined(rounds), rounds)


def _stacked(registry: Registry, on: Composition | None, out: Path) -> Stacked | None:
    """``on`` as one LoRA folder; the bare base is nothing to stack on."""
    if on is None or not on.parts:
        return None
    return Stacked(on.digest, render_composition(registry, on, out))


def live_requests(registry: Registry) -> dict[str, RequestData]:
    """The rows of every request that is still to be forgotten, by id."""
    live = [
        request.id
        for request in list_requests(registry)
        if request.state not in ENDED and request.shredding_at is None
    ]
    return request_data(registry, live)


def _require_trainable(request: ForgetRequest) -> None:
    check_accepted(request)
    if request.shredding_at is not None:
        raise RequestError(
            f"the rows of {request.id} are shredded: expected a request with rows. Open it anew"
        )
    if request.state not in TRAINABLE:
        raise RequestError(
            f"{request.id} is {request.state}: expected one of {', '.join(TRAINABLE)}. "
            "A released request is rolled back first (`efface release rollback`), an ended one is opened anew"
        )


def _facts(
    recipe: Recipe,
    rows: TrainingRows,
    rounds: Sequence[TrainResult],
    others: Sequence[str],
    beside: Beside,
) -> dict[str, JSON]:
    """What the manifest says of the training; no text of any row.

    ``others``: the live requests whose scope was kept out of the retain rows. Those that ended are not among them:
    their rows may be gone.
    """
    steps = joined(rounds).steps
    return {
        "objective": recipe.objective,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "rank": recipe.rank,
        "settings": recipe.values(),
        "rounds": recipe.rounds,
        "steps": len(steps),
        "stopped": [result.stopped for result in rounds],
        "kept_steps": [result.kept for result in rounds],
        "forget_rows": len(rows.forget),
        "own_answers": rows.own,
        "retain_rows": len(rows.retain),
        "retain_rows_in_scope_left_out": list(rows.excluded),
        "retain_rows_without_an_answer_left_out": list(rows.unanswered),
        "scope_kept_out_of": list(others),
        "last_step": {key: round(value, 6) for key, value in asdict(steps[-1]).items()},
        **beside_facts(beside, recipe),
    }


def _others(registry: Registry, request_id: str) -> dict[str, RequestData]:
    return {other: data for other, data in live_requests(registry).items() if other != request_id}
