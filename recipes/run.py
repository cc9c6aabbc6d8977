"""One forget request, top to bottom: rows → training → audit → sealed adapter → ledger.

Supports: one LoRA on all linear layers of an nf4, int8, bf16 or fp32 base; SimNPO and NPO with an NLL or KL
retain term. Assumes: the request is open in the registry. Nothing is written until training is done; a
process killed at any moment leaves a registry that verifies, and the same call can be made again.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ..adapters import TrainResult, attach, detach, save, train
from ..audits import AuditReport
from ..registry import (
    JSON,
    Adapter,
    Audit,
    Composition,
    ForgetRequest,
    Part,
    Registry,
    compose,
    get_request,
    list_requests,
    seal_adapter,
    step_request,
)
from .audit import audit_composition, record, request_data
from .bench import Bench
from .data import RequestData
from .errors import RequestError
from .prepare import TrainingRows, training_rows
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
    _require_trainable(get_request(registry, request_id))
    data = request_data(registry, [request_id])[request_id]
    rows = training_rows(bench, data, recipe, others=_others(registry, request_id), progress=progress)
    with tempfile.TemporaryDirectory(prefix="efface-unlearn-") as scratch:
        folder = Path(scratch) / "adapter"
        training = _train(bench, rows, recipe, folder, report_to, progress)
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
    bench: Bench, rows: TrainingRows, recipe: Recipe, folder: Path, report_to: str, progress: Progress
) -> TrainResult:
    """Train a fresh LoRA on the bench's base, write it to ``folder``, and leave the base bare."""
    model = attach(
        bench.base.model,
        rank=recipe.rank,
        alpha=recipe.lora_alpha,
        targets=recipe.target_modules
        if isinstance(recipe.target_modules, str)
        else list(recipe.target_modules),
        seed=recipe.seed,
    )
    progress.phase("Training", recipe.steps)
    try:
        result = train(
            model,
            rows.forget,
            rows.retain,
            recipe.train_settings(),
            pad_id=int(bench.base.tokenizer.pad_token_id),  # type: ignore[arg-type]
            report_to=report_to,
            on_step=lambda step: progress.advance(
                1, f"forget p {step.forget_probability:.2f} · retain p {step.retain_probability:.2f}"
            ),
        )
        save(model, folder, base=bench.base.fingerprint.digest)
    finally:
        detach(model)
    return result


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
        "forget_rows": len(rows.forget),
        "own_answers": rows.own,
        "retain_rows": len(rows.retain),
        "retain_rows_in_scope_left_out": len(rows.excluded),
        "last_step": {key: round(value, 6) for key, value in asdict(training.steps[-1]).items()},
    }


def _others(registry: Registry, request_id: str) -> list[RequestData]:
    return [data for other, data in live_requests(registry).items() if other != request_id]
