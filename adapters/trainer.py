"""Train one unlearning adapter: a thin :class:`transformers.Trainer` around our pure losses.

Each step sees ``forget_batch`` forget rows and ``retain_batch`` retain rows in one forward. The reference policy is the
same model with its adapters disabled; its log-probabilities are computed once, before the first step.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .encode import Batch, Encoded, collate
from .errors import TrainingError
from .logprobs import AnswerLogprobs, answer_hidden, answer_logprobs, token_logprobs, unflatten
from .lora import disabled
from .objectives import npo, retain_kl, retain_nll, simnpo


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Everything that decides the weights besides data and base. The loss is ``gamma*forget + alpha*retain``."""

    objective: str = "simnpo"
    retain_term: str = "nll"
    beta: float = 2.5
    delta: float = 0.0
    gamma: float = 1.0
    alpha: float = 1.0
    learning_rate: float = 5e-4
    warmup_steps: int = 0
    steps: int = 40
    forget_batch: int = 8
    retain_batch: int = 8
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimisation step as it was measured on its own batch, before the update.

    ``forget_probability`` and ``retain_probability`` are exp(mean answer log-probability), averaged over rows.
    """

    step: int
    loss: float
    forget_loss: float
    retain_loss: float
    forget_probability: float
    retain_probability: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run leaves behind besides the weights in the model."""

    steps: tuple[StepReport, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """The rows of one optimisation step."""

    forget: tuple[Encoded, ...]
    retain: tuple[Encoded, ...]


ForgetLoss = Callable[[TrainSettings, AnswerLogprobs, Tensor], Tensor]
"""(settings, forget rows under the model, reference sums [B]) -> scalar."""

FORGET_LOSSES: dict[str, ForgetLoss] = {
    "simnpo": lambda s, rows, _ref: simnpo(rows.sums, rows.lengths, beta=s.beta, delta=s.delta),
    "npo": lambda s, rows, ref: npo(rows.sums, ref, beta=s.beta),
}
NEEDS_REFERENCE = frozenset({"npo"})
RETAIN_TERMS = ("nll", "kl")


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference policy, asked once before training; empty where the losses do not need it.

    ``sums``: sequence log-probability of each forget row. ``hidden``: last hidden states [|y|, H] of each
    retain row; the base's output head is frozen, so they stand for its logits at a hundredth of the size.
    """

    sums: Mapping[Encoded, float]
    hidden: Mapping[Encoded, Tensor]


def train(
    model: PeftModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    settings: TrainSettings,
    *,
    pad_id: int,
    reference: Reference | None = None,
    report_to: str = "none",
    on_step: Callable[[StepReport], None] = lambda _report: None,
) -> TrainResult:
    """Train the active adapter of ``model`` in place; the base stays frozen. Deterministic for a seed on CPU.

    ``reference``: what is known already of this model's reference policy (from an earlier round, say); the
    rows that it lacks are asked. Raises :class:`TrainingError` for empty data, an unknown objective, a loss that
    is not finite (naming the rows), or a first step whose gradients do not reach the LoRA weights.
    """
    if not forget or not retain:
        raise TrainingError(f"expected forget and retain rows, got {len(forget)} and {len(retain)}")
    if settings.objective not in FORGET_LOSSES:
        raise TrainingError(f"unknown objective {settings.objective!r}: {', '.join(FORGET_LOSSES)} exist")
    if settings.retain_term not in RETAIN_TERMS:
        raise TrainingError(f"unknown retain term {settings.retain_term!r}: {', '.join(RETAIN_TERMS)} exist")
    if min(settings.steps, settings.forget_batch, settings.retain_batch) < 1:
        raise TrainingError(
            f"expected at least one step of at least one row a side, got steps={settings.steps}, "
            f"forget_batch={settings.forget_batch}, retain_batch={settings.retain_batch}"
        )
    reference = ask_reference(model, forget, retain, settings, pad_id=pad_id, known=reference)
    rows = Steps(forget, retain, settings)
    started = time.monotonic()
    reports: list[StepReport] = []

    def keep(report: StepReport) -> None:
        reports.append(report)
        on_step(report)

    with tempfile.TemporaryDirectory(prefix="efface-train-") as scratch:
        trainer = UnlearnTrainer(
            model=model,
            args=_arguments(settings, scratch, report_to),
            train_dataset=rows,
            data_collator=lambda steps: {"step": steps[0]},
            callbacks=[GradientsReachAdapter()],
        )
        trainer.plan(settings, reference, pad_id, keep)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            trainer.train()
        finally:
            model.eval()
    return TrainResult(tuple(reports), time.monotonic() - started)


@torch.no_grad()
def ask_reference(
    model: PeftModel,
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    settings: TrainSettings,
    *,
    pad_id: int,
    known: Reference | None = None,
) -> Reference:
    """Run the reference policy (adapters disabled) over the rows that the losses of ``settings`` compare with.

    Rows in ``known`` are not run again; the result holds them too.
    """
    model.eval()
    sums, hidden = (dict(known.sums), dict(known.hidden)) if known else ({}, {})
    # Rows come several times where a leak is repeated.
    asked_sums = [
        row for row in dict.fromkeys(forget) if settings.objective in NEEDS_REFERENCE and row not in sums
    ]
    asked_hidden = [
        row for row in dict.fromkeys(retain) if settings.retain_term == "kl" and row not in hidden
    ]
    with disabled(model):
        for rows in chunks(asked_sums, 16):
            found = answer_logprobs(model, collate(rows, pad_id).to(model.device)).sums.tolist()
            sums.update(zip(rows, found, strict=True))
        for rows in chunks(asked_hidden, 16):
            states, _, _ = answer_hidden(model, collate(rows, pad_id).to(model.device))
            sizes = [sum(row.counted) if row.counted else len(row.answer) for row in rows]
            hidden.update(zip(rows, states.split(sizes), strict=True))
    return Reference(sums, hidden)


def chunks(rows: Sequence[Encoded], size: int) -> Iterator[Sequence[Encoded]]:
    """Consecutive slices of ``rows`` of at most ``size``."""
    return (rows[i : i + size] for i in range(0, len(rows), size))


class Steps(Dataset[Step]):
    """The rows of each step, dealt in advance: both sides are reshuffled whenever they run out."""

    def __init__(self, forget: Sequence[Encoded], retain: Sequence[Encoded], settings: TrainSettings) -> None:
        draw = torch.Generator().manual_seed(settings.seed)
        forget_hands = _deal(forget, settings.steps, settings.forget_batch, draw)
        retain_hands = _deal(retain, settings.steps, settings.retain_batch, draw)
        self._steps = [Step(f, r) for f, r in zip(forget_hands, retain_hands, strict=True)]

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Step:
        """The rows of step ``index``."""
        return self._steps[index]


class UnlearnTrainer(Trainer):
    """`transformers.Trainer` whose loss is ``gamma * forget + alpha * retain``."""

    def plan(
        self,
        settings: TrainSettings,
        reference: Reference,
        pad_id: int,
        on_step: Callable[[StepReport], None],
    ) -> None:
        """Give the trainer what `compute_loss` needs; call it once, before `train`."""
        self._settings, self._reference, self._pad_id, self._on_step = settings, reference, pad_id, on_step
        # Our loss is a mean over the batch already: accumulation must average it, not renormalise by tokens.
        self.model_accepts_loss_kwargs = False

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Any, inputs: dict[str, Step], **_: object
    ) -> Tensor:
        """One forward over forget and retain rows together, then the pure losses."""
        forget, retain = inputs["step"].forget, inputs["step"].retain
        batch: Batch = collate([*forget, *retain], self._pad_id).to(self.args.device)
        hidden, targets, head = answer_hidden(model, batch)
        lengths, half = batch.answer_mask.sum(-1), len(forget)
        cut = int(lengths[:half].sum())
        f = unflatten(token_logprobs(head(hidden[:cut]), targets[:cut]), lengths[:half])
        retain_logits = head(hidden[cut:])
        ref = torch.tensor([self._reference.sums.get(row, math.nan) for row in forget], device=hidden.device)
        s = self._settings
        forget_loss = FORGET_LOSSES[s.objective](s, f, ref)
        # With KL the log-probabilities of retain rows are reported only: no gradient, no second softmax kept.
        with torch.set_grad_enabled(s.retain_term == "nll"):
            r = unflatten(token_logprobs(retain_logits, targets[cut:]), lengths[half:])
        if s.retain_term == "kl":
            frozen = head.base_layer if isinstance(head, LoraLayer) else head
            theirs = frozen(torch.cat([self._reference.hidden[row] for row in retain]))
            retain_loss = retain_kl(retain_logits, theirs)
        else:
            retain_loss = retain_nll(r.logps, r.mask)
        loss = s.gamma * forget_loss + s.alpha * retain_loss
        step = self.state.global_step + 1
        if not torch.isfinite(loss):
            names = ", ".join(row.id for row in (*forget, *retain))
            raise TrainingError(
                f"the loss is {loss.item()} at step {step}: lower the learning rate, or look at {names}"
            )
        self._on_step(
            StepReport(
                step, loss.item(), forget_loss.item(), retain_loss.item(), _probability(f), _probability(r)
            )
        )
        return loss


class GradientsReachAdapter(TrainerCallback):
    """Fails a run by its first step when no gradient reaches the LoRA weights (it would silently do nothing)."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Look at the gradients of every lora_B (lora_A's are zero while B is)."""
        if state.global_step > 0:
            return
        grads = [p.grad for name, p in kwargs["model"].named_parameters() if "lora_B" in name]
        if not any(g is not None and bool(g.abs().sum() > 0) for g in grads):
            raise TrainingError(
                "no gradient reached the LoRA weights in the first step: the run would change nothing. "
                "Check the target modules, and enable_input_require_grads with gradient checkpointing"
            )


def _probability(rows: AnswerLogprobs) -> float:
    return float((rows.sums.detach() / rows.lengths).exp().mean())


def _deal(rows: Sequence[Encoded], hands: int, size: int, draw: torch.Generator) -> list[tuple[Encoded, ...]]:
    dealt: list[Encoded] = []
    while len(dealt) < hands * size:
        dealt += [rows[i] for i in torch.randperm(len(rows), generator=draw).tolist()]
    return [tuple(dealt[i * size : (i + 1) * size]) for i in range(hands)]


def _arguments(settings: TrainSettings, scratch: str, report_to: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        max_grad_norm=settings.max_grad_norm,
        lr_scheduler_type="linear",
        seed=settings.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no" if report_to == "none" else "steps",
        logging_steps=1,
        report_to=report_to,
        disable_tqdm=True,
    )
