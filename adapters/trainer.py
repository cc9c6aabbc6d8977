"""Train one unlearning adapter: a thin :class:`transformers.Trainer` around our pure losses.

Each step sees ``forget_batch`` forget rows and ``retain_batch`` retain rows in one forward (`steps.py` deals them,
`answers.py` runs them, `losses.py` weighs them). The reference policy is the same model with the adapter in training
switched off, asked once, before the first step (`reference.py`). `probing.py` has the stop rules, `checkpoint.py`
what a run resumes from, `watch.py` what happens between steps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .answers import answers
from .beside import beside, standing
from .checkpoint import (
    WEIGHTS,
    Checkpoints,
    clear,
    forget_finished,
    newest,
    put_weights,
    read_tensors,
    trained_weights,
    write_weights,
)
from .encode import Encoded
from .errors import Interrupted, TrainingError, is_out_of_memory
from .fast import fast
from .finished import finish, finished
from .losses import losses
from .objectives import Dual
from .probing import Prober
from .reference import ReferenceCache, ask_reference, chunks
from .settings import TrainSettings, check_settings
from .steps import Alternates, Rows, Step, Steps, counted_tokens
from .watch import Guard, Run, StepReport, TrainResult, Watch, interruptible


def train(
    model: PeftModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    settings: TrainSettings,
    *,
    pad_id: int,
    eos_id: int | None = None,
    alternates: Alternates | None = None,
    cache: ReferenceCache | None = None,
    after: TrainResult | None = None,
    apart_from: Sequence[Path] = (),
    company: Sequence[Path] = (),
    checkpoints: Checkpoints | None = None,
    report_to: str = "none",
    callbacks: Sequence[TrainerCallback] = (),
    on_step: Callable[[StepReport], None] = lambda _report: None,
) -> TrainResult:
    """Train the adapter that `attach` put on ``model``, in place; all else stays frozen. Deterministic for a seed
    on a CPU, also when it was interrupted and resumed.

    ``alternates``: other answers to each forget row, for the objectives that prefer one. ``cache``: what this
    model's reference policy was asked before. ``after``: the first of the runs that this one goes on from: budgets
    and the constraint's bound are held against where that one began. ``apart_from`` and ``company``: PEFT folders of
    the adapters that ``settings.stacking`` keeps this one apart from, and trains it beside. ``callbacks``: any of
    transformers'; ``on_step`` hears each step as it happens.

    Raises :class:`TrainingError` for data or settings that cannot be meant, before anything changes; for a loss
    or gradient that is not finite (naming the rows; the newest checkpoint is good), a first step whose gradients
    do not reach the LoRA weights, no step within the budgets of the stop rules, and too little memory.
    :class:`Interrupted`, a KeyboardInterrupt, after Ctrl-C, when a checkpoint is written.
    """
    check_settings(settings)
    _check_adapter(model)
    _check_tracker(report_to)
    _check_rows(forget, retain, alternates, settings)
    rows, others = _skipped(forget, alternates if settings.needs_alternates else None, settings.skip_first)
    with memory_named(settings):
        steps = Steps(rows, retain, settings, others)
        stack = beside(model, settings, apart_from, company)
    started = time.monotonic()
    if checkpoints is not None:
        if not checkpoints.resume:
            forget_finished(checkpoints)
            clear(checkpoints)
        elif (done := finished(model, checkpoints)) is not None:
            return done
    with tempfile.TemporaryDirectory(prefix="efface-train-") as scratch, _checkpointing(model, settings):
        folder = checkpoints.folder if checkpoints else Path(scratch)
        run = _prepare(model, steps, rows, tuple(retain), settings, pad_id, eos_id, cache, checkpoints, after)
        run.others = stack
        trainer = UnlearnTrainer(
            model=model,
            args=_arguments(settings, folder, report_to, checkpoints, model.device),
            train_dataset=steps,
            data_collator=_one_step,
            callbacks=[Guard(run), Watch(run, on_step), *callbacks],
        )
        trainer.plan(run)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        resumed = newest(checkpoints) if checkpoints and checkpoints.resume else None
        try:
            with interruptible(run), memory_named(settings), fast(model), standing(model, stack):
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        except TrainingError as error:
            raise _with_checkpoint(error, checkpoints) from error
        finally:
            model.eval()
    if run.interrupted and not run.over:
        raise Interrupted(len(run.reports), folder)
    kept = run.restore_best(model)
    result = TrainResult(
        tuple(run.reports),
        time.monotonic() - started,
        run.stopped,
        kept,
        tuple(run.probes),
        run.dual.epsilon if run.dual else None,
    )
    if checkpoints is not None:
        finish(model, checkpoints, result)
    if run.interrupted:  # in its last step: there is nothing left of it to do
        raise Interrupted(len(run.reports), folder)
    return result


class UnlearnTrainer(Trainer):
    """`transformers.Trainer` with our loss, and checkpoints of the adapter in training alone."""

    def plan(self, run: Run) -> None:
        """Give the trainer what `compute_loss` needs; call it once, before `train`."""
        self._run = run
        # Our loss is a mean over the batch already: accumulation must average it, not renormalise by tokens.
        self.model_accepts_loss_kwargs = False

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Any, inputs: dict[str, Step], **_: object
    ) -> Tensor:
        """One forward over forget, alternate and retain rows together, then the pure losses."""
        step, run = inputs["step"], self._run
        run.others.step(self.state.global_step)
        found = losses(
            answers(model, [*step.forget, *step.alternates, *step.retain], run.pad_id, layer=run.layer),
            step,
            run.reference,
            run.settings,
            run.dual,
        )
        found = replace(found, total=run.weighed(found.total, self.state.global_step))
        run.measured(step, found, self.state.global_step + 1)
        return found.total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trackers see the parts of the loss too."""
        if "loss" in logs and self._run.reports:
            shown = asdict(self._run.reports[-1])
            logs |= {key: value for key, value in shown.items() if key not in ("step", "loss")}
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self._run.model, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        path = Path(resume_from_checkpoint)
        put_weights(self._run.model, read_tensors(path / WEIGHTS))
        self._run.restore(path)


def _prepare(
    model: PeftModel,
    steps: Steps,
    forget: Rows,
    retain: Rows,
    settings: TrainSettings,
    pad_id: int,
    eos_id: int | None,
    cache: ReferenceCache | None,
    checkpoints: Checkpoints | None,
    after: TrainResult | None,
) -> Run:
    with memory_named(settings):
        reference = ask_reference(model, steps, settings, pad_id=pad_id, cache=cache)
        dual = _dual(model, steps, settings, pad_id, after)
        rules = settings.stop
        prober = Prober.of(forget, retain, rules, pad_id, eos_id) if rules else None
        origin = after.probes[0] if after and after.probes else None
        run = Run(model, settings, reference, pad_id, dual, prober, checkpoints, origin=origin)
        run.probe(0)
    return run


def _with_checkpoint(error: TrainingError, checkpoints: Checkpoints | None) -> TrainingError:
    """``error``, saying which weights before it are kept."""
    kept = newest(checkpoints) if checkpoints else None
    if kept is None:
        return error
    return TrainingError(f"{error}. The weights of step {kept.name.split('-')[1]} are kept in {kept}")


def _one_step(items: list[Step]) -> dict[str, Step]:
    (step,) = items
    return {"step": step}


def _check_adapter(model: PeftModel) -> None:
    if not any(parameter.requires_grad for parameter in trained_weights(model).values()):
        raise TrainingError(
            f"expected the trainable adapter that `attach` makes, got {', '.join(model.peft_config)}, loaded for "
            "inference: attach a fresh one (with stacked_on, to train on top of this one)"
        )


def _check_tracker(report_to: str) -> None:
    try:
        trackers = get_reporting_integration_callbacks([] if report_to == "none" else [report_to])
    except ValueError as error:
        raise TrainingError(f"report_to {report_to!r}: expected none or a tracker: {error}") from None
    for tracker in trackers:
        try:
            tracker()
        except (ImportError, RuntimeError) as error:
            raise TrainingError(f"report_to {report_to!r} cannot be used here: {error}") from None


def _check_rows(
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    alternates: Alternates | None,
    settings: TrainSettings,
) -> None:
    if not forget or (settings.reads_retain and not retain):
        raise TrainingError(f"expected forget and retain rows, got {len(forget)} and {len(retain)}")
    if settings.stop is not None and settings.stop.retain_drop is not None and not retain:
        raise TrainingError(
            "a retain_drop budget needs retain rows to look at: give some, or stop.retain_drop null"
        )
    if settings.needs_alternates:
        lacking = [row.id for row in forget if not (alternates or {}).get(row)]
        if lacking:
            raise TrainingError(
                f"{settings.objective} prefers another answer, and {len(lacking)} of {len(forget)} forget rows have "
                f"none: give `chosen` to {', '.join(lacking[:10])}{' …' if len(lacking) > 10 else ''}"
            )


def _skipped(
    forget: Sequence[Encoded], alternates: Alternates | None, count: int
) -> tuple[Rows, Alternates | None]:
    """Forget rows without the first ``count`` tokens they count; a row that counts no more than those keeps them."""
    if not count:
        return tuple(forget), alternates
    found: dict[Encoded, Encoded] = {}
    for row in forget:
        counted = list(row.counted) or [True] * len(row.answer)
        first = [i for i, is_counted in enumerate(counted) if is_counted][:count]
        if counted_tokens([row]) > count:
            counted = [is_counted and i not in first for i, is_counted in enumerate(counted)]
        found[row] = replace(row, counted=tuple(counted))
    others = None if alternates is None else {new: alternates[row] for row, new in found.items()}
    return tuple(found[row] for row in forget), others


@torch.no_grad()
def _dual(
    model: PeftModel, steps: Steps, settings: TrainSettings, pad_id: int, after: TrainResult | None
) -> Dual | None:
    """The constraint's state before training: epsilon from the retain NLL as it is."""
    constraint = settings.constraint
    if constraint is None:
        return None
    if after is not None and after.epsilon is not None:
        return Dual(constraint.weight, after.epsilon, constraint.step)
    total, tokens = 0.0, 0
    model.eval()
    for rows in chunks(steps.retain, 16):
        found = answers(model, rows, pad_id).logps
        total, tokens = total - float(found.sums.sum()), tokens + int(found.lengths.sum())
    return Dual(constraint.weight, constraint.slack * total / tokens, constraint.step)


@contextmanager
def _checkpointing(model: PeftModel, settings: TrainSettings) -> Generator[None]:
    """Activation checkpointing for as long as the block runs. Not re-entrant: that kind needs inputs that require
    gradients, and silently gives none to LoRA weights without them."""
    if not settings.gradient_checkpointing:
        yield
        return
    base: Any = model.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        base.activation_checkpointing_disable()


@contextmanager
def memory_named(settings: TrainSettings) -> Generator[None]:
    """Too little memory, and a step size beyond float32, are the user's to put right: say with what."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if "without overflow" in str(error):  # the optimizer's, of a step size
            raise TrainingError(
                f"the learning rate {settings.learning_rate:g} is beyond float32: lower the learning rate"
            ) from error
        if not is_out_of_memory(error):
            raise
        smaller = "" if settings.gradient_checkpointing else ", set gradient_checkpointing=true"
        raise TrainingError(
            f"out of memory with {settings.forget_batch} forget and {settings.retain_batch} retain rows a forward: "
            f"lower forget_batch and retain_batch and raise accumulation{smaller}, lower max_length, or take "
            f"quantization nf4 ({str(error).splitlines()[0] if str(error) else 'no memory left'})"
        ) from error


def _arguments(
    settings: TrainSettings,
    folder: Path,
    report_to: str,
    checkpoints: Checkpoints | None,
    device: torch.device,
) -> TrainingArguments:
    args = TrainingArguments(
        use_cpu=device.type == "cpu",
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type=settings.schedule,
        optim=settings.optimizer,
        seed=settings.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no" if checkpoints is None else "steps",
        save_steps=checkpoints.every if checkpoints else 500,
        save_total_limit=2,
        logging_strategy="no" if report_to == "none" else "steps",
        logging_steps=1,
        report_to=report_to,
        disable_tqdm=True,
    )
    if (args.device.type, args.device.index or 0) != (device.type, device.index or 0):
        raise TrainingError(
            f"the model is on {device}, transformers trains on {args.device}: load the base there, or choose the "
            "GPU with CUDA_VISIBLE_DEVICES"
        )
    # On several devices transformers would wrap the model and deal the batches of steps anew.
    args._n_gpu = 1  # pyright: ignore[reportPrivateUsage]
    return args
