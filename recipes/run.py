"""One forget request, top to bottom: rows → training → audit → sealed adapter → ledger.

Supports: one LoRA on all linear layers of an nf4, int8, bf16 or fp32 base; SimNPO and NPO with an NLL or KL
retain term. Assumes: the request is open in the registry. Nothing is written until training is done; a
process killed at any moment leaves a registry that verifies, and the same call can be made again.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from peft import PeftModel

from ..adapters import Encoded, StepReport, TrainResult, attach, detach, prompt_ids, save, train
from ..adapters.encode import pad_id
from ..adapters.trainer import Reference, ask_reference
from ..audits import AuditReport, answer_rows
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
from .audit import audit_composition, record, request_data
from .bench import Bench, encode_probes
from .data import RequestData
from .errors import RequestError
from .prepare import TrainingRows, forget_rows, probes, telling, training_rows
from .progress import Progress, Silent
from .recipe import Recipe

TRAINABLE = ("RECEIVED", "VERIFIED", "ACCEPTED", "TRAINED", "AUDITED", "REOPENED")
ENDED = ("REFUSED", "WITHDRAWN", "SHREDDED", "CLOSED")


@dataclass(frozen=True, slots=True)
class Unlearned:
    """What `unlearn` made: the sealed adapter alone on the base as ``composition``, and its audit."""

    adapter: Adapter
    composition: Composition
    audit: Audit
    report: AuditReport
    training: TrainResult


def unlearn(
    registry: Registry,
    request_id: str,
    bench: Bench,
    recipe: Recipe,
    *,
    actor: str,
    report_to: str = "none",
    progress: Progress | None = None,
) -> Unlearned:
    """Train, audit, seal and register the adapter of one request. The audit may fail; see ``report.verdict``.

    Raises `RequestError` for a request that cannot be trained now, and what reading the rows, training and
    the registry raise. In each case nothing is registered.
    """
    progress = progress or Silent()
    checks.actor(actor)
    _require_trainable(get_request(registry, request_id))
    data = request_data(registry, [request_id])[request_id]
    rows = training_rows(bench, data, recipe, others=_others(registry, request_id), progress=progress)
    looked_at = probes(bench, {request_id: data}, recipe, progress=progress)
    encode_probes(bench, looked_at)
    with tempfile.TemporaryDirectory(prefix="efface-unlearn-") as scratch:
        folder = Path(scratch) / "adapter"
        training = _train(bench, data, rows, recipe, folder, report_to, progress)
        progress.phase("Sealing")
        adapter = seal_adapter(
            registry,
            folder,
            kind="trained",
            base=bench.base.fingerprint.digest,
            quantization=recipe.quantization,
            request_ids=[request_id],
            facts=_facts(recipe, rows, training),
            actor=actor,
        )
        composition = compose(adapter.base, adapter.quantization, [Part(adapter.digest, "1")])
        report = audit_composition(
            bench,
            composition,
            folder,
            {request_id: data},
            active=[request_id],
            recipe=recipe,
            label=f"{request_id} alone",
            progress=progress,
            rows=looked_at,
        )
    audit = record(registry, composition, report, recipe, actor)
    if audit.verdict == "pass" and get_request(registry, request_id).state == "TRAINED":
        step_request(registry, request_id, "AUDITED", actor=actor, reason=f"audit {audit.digest} passed")
    return Unlearned(adapter, composition, audit, report, training)


def live_requests(registry: Registry) -> dict[str, RequestData]:
    """The rows of every request that is still to be forgotten, by id."""
    live = [request.id for request in list_requests(registry) if request.state not in ENDED]
    return request_data(registry, live)


def _require_trainable(request: ForgetRequest) -> None:
    if request.state not in TRAINABLE:
        raise RequestError(
            f"{request.id} is {request.state}: expected one of {', '.join(TRAINABLE)}. "
            "A released request is rolled back first (`efface release rollback`), an ended one is opened anew"
        )


def _train(
    bench: Bench,
    data: RequestData,
    rows: TrainingRows,
    recipe: Recipe,
    folder: Path,
    report_to: str,
    progress: Progress,
) -> TrainResult:
    """Train a fresh LoRA on the bench's base, write it to ``folder``, and leave the base bare."""
    targets = recipe.target_modules
    model = attach(
        bench.base.model,
        rank=recipe.rank,
        alpha=recipe.lora_alpha,
        targets=targets if isinstance(targets, str) else list(targets),
        seed=recipe.seed,
    )
    progress.phase("Training", recipe.total_steps)
    try:
        result = _rounds(bench, model, data, rows, recipe, report_to, progress)
        save(model, folder, base=bench.base.fingerprint.digest)
    finally:
        detach(model)
    return result


def _rounds(
    bench: Bench,
    model: PeftModel,
    data: RequestData,
    rows: TrainingRows,
    recipe: Recipe,
    report_to: str,
    progress: Progress,
) -> TrainResult:
    """Train; then ask the adapted model what it was to forget, and train on what it still tells, if anything."""
    steps: list[StepReport] = []
    seconds, forget, pad = 0.0, rows.forget, pad_id(bench.base.tokenizer)
    reference: Reference | None = None

    def listen(step: StepReport) -> None:
        steps.append(replace(step, step=len(steps) + 1))
        note = f"forget p {step.forget_probability:.2f} · retain p {step.retain_probability:.2f}"
        progress.advance(1, note)

    for number in range(recipe.rounds):
        settings = recipe.train_settings(number)
        reference = ask_reference(model, forget, rows.retain, settings, pad_id=pad, known=reference)
        done = train(
            model,
            forget,
            rows.retain,
            settings,
            pad_id=pad,
            reference=reference,
            report_to=report_to,
            on_step=listen,
        )
        seconds += done.seconds
        if number + 1 < recipe.rounds:
            leaks = _leaks(bench, model, data, recipe, number + 1)
            if not leaks:
                break
            # Repeated until they are about a quarter of the rows.
            forget = rows.forget + leaks * max(1, len(rows.forget) // (3 * len(leaks)))
    return TrainResult(tuple(steps), seconds)


def _leaks(
    bench: Bench, model: PeftModel, data: RequestData, recipe: Recipe, number: int
) -> tuple[Encoded, ...]:
    """What ``model`` still tells when asked what it was to forget, as forget rows; empty when nothing."""
    items = [row.item() for row in data.forget if row.prompt]
    chat, tokenizer = bench.method.chat, bench.base.tokenizer
    prompts = [tuple(prompt_ids(tokenizer, item, chat=chat)) for item in items]
    answers = answer_rows(model, tokenizer, prompts, bench.method)
    texts = [str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip() for ids in answers]
    told = telling(items, dict(zip((item.id for item in items), texts, strict=True)), f"round-{number}")
    return forget_rows(bench, told, recipe)


def _facts(recipe: Recipe, rows: TrainingRows, training: TrainResult) -> dict[str, JSON]:
    """What the manifest says of the training; no text of any row."""
    settings: dict[str, JSON] = {
        key: value for key, value in asdict(recipe.train_settings()).items() if not isinstance(value, dict)
    }
    return {
        "objective": recipe.objective,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest,
        "rank": recipe.rank,
        "settings": settings,
        "rounds": recipe.rounds,
        "steps": len(training.steps),
        "forget_rows": len(rows.forget),
        "own_answers": rows.own,
        "retain_rows": len(rows.retain),
        "retain_rows_in_scope_left_out": len(rows.excluded),
        "last_step": {key: round(value, 6) for key, value in asdict(training.steps[-1]).items()},
    }


def _others(registry: Registry, request_id: str) -> list[RequestData]:
    return [data for other, data in live_requests(registry).items() if other != request_id]
