"""What happens between the steps of a run: what is recorded, what is checked, and when it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback

from .beside import Beside
from .checkpoint import (
    BEST,
    Checkpoints,
    put_weights,
    read_state,
    read_tensors,
    trained_weights,
    write_state,
    write_tensors,
)
from .errors import TrainingError
from .losses import Losses
from .objectives import Dual
from .probing import Prober, ProbeReport, Stopped, judge
from .reference import Reference
from .settings import TrainSettings
from .steps import Step


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimisation step as it was measured on its own batch, before the update.

    ``forget_probability`` and ``retain_probability`` are exp(mean answer log-probability), averaged over rows
    (0 for retain rows that no loss reads). ``dual``: the retain term's weight under a constraint, else alpha.
    """

    step: int
    loss: float
    forget_loss: float
    retain_loss: float
    forget_probability: float
    retain_probability: float
    dual: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run leaves behind besides the weights in the model.

    ``stopped``: why it ended; ``kept``: the step whose weights the model has (0: as before); ``probes``: what
    the stop rules saw, first before training; ``epsilon``: the constraint's bound. ``seconds``: of the process
    that ended it, reference and probes included.
    """

    steps: tuple[StepReport, ...]
    seconds: float
    stopped: Stopped = "steps"
    kept: int = 0
    probes: tuple[ProbeReport, ...] = ()
    epsilon: float | None = None


@dataclass(slots=True)
class Run:
    """The state of one run. It changes at step ends alone, so that a checkpoint of it is whole."""

    model: PeftModel
    settings: TrainSettings
    reference: Reference
    pad_id: int
    dual: Dual | None
    prober: Prober | None
    checkpoints: Checkpoints | None
    reports: list[StepReport] = field(default_factory=list)
    probes: list[ProbeReport] = field(default_factory=list)
    origin: ProbeReport | None = None
    others: Beside = field(default_factory=Beside)
    best: dict[str, Tensor] | None = None
    best_step: int = 0
    stopped: Stopped = "steps"
    interrupted: bool = False
    over: bool = False
    reached: bool = False
    forwards: list[Losses] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    @property
    def layer(self) -> int | None:
        """The decoder layer whose outputs the losses read."""
        reads = self.settings.objective == "rmu" or self.settings.retain_term == "hidden"
        return self.settings.layer if reads else None

    def weighed(self, loss: Tensor, number: int) -> Tensor:
        """``loss`` of a forward of step ``number`` (the first is 0), and what the run's company adds to it.

        A penalty has a gradient of its own, behind which a silent run could hide: in the first step the loss is asked
        for its own.
        """
        total = self.others.added_to(loss)
        if total is not loss and number == 0 and not self.reached:
            self.reached = reaches(loss, trained_weights(self.model).values())
        return total

    def measured(self, step: Step, found: Losses, number: int) -> None:
        """Take in one forward. Raises :class:`TrainingError` for a loss that is not finite, naming its rows."""
        self.seen += [row.id for row in (*step.forget, *step.retain)]
        if not torch.isfinite(found.total):
            raise TrainingError(
                f"the loss is {found.total.item()} at step {number}: lower the learning rate, or look at "
                + ", ".join(self.seen)
            )
        self.forwards.append(replace(found, total=found.total.detach()))

    def step_ended(self, number: int) -> StepReport:
        """The report of a whole step, its forwards averaged; moves the dual variable, ends its company."""
        self.others.rest()
        n, forwards = len(self.forwards), self.forwards
        report = StepReport(
            number,
            *(float(sum(float(getattr(one, name)) for one in forwards)) / n for name in _PARTS),
            dual=self.dual.weight if self.dual else self.settings.alpha,
        )
        self.reports.append(report)
        self.forwards, self.seen = [], []
        constraint = self.settings.constraint
        if self.dual is not None and constraint is not None and number > constraint.warmup_steps:
            self.dual = self.dual.update(report.retain_loss)
        return report

    def probe(self, number: int) -> bool:
        """Look at the model if the rules say so at this step; whether the run is over."""
        rules = self.settings.stop
        if rules is None or self.prober is None:
            return False
        if number and number % rules.every and number < self.settings.steps:
            return False
        self.probes.append(self.prober.look(self.model, number))
        verdict = judge(rules, self.probes, self.origin)
        if verdict.keep:
            self.best_step = number
            self.best = {name: value.detach().clone() for name, value in trained_weights(self.model).items()}
        self.stopped = verdict.stop or "steps"
        return verdict.stop is not None

    def restore_best(self, model: PeftModel) -> int:
        """Put the best step's weights on ``model`` and say which step it was."""
        if self.settings.stop is None:
            return len(self.reports)
        if self.best is None:
            first, last = self.origin or self.probes[0], self.probes[-1]
            raise TrainingError(
                f"no step stayed within the budgets of the stop rules: retain probability went from "
                f"{first.retain_probability:.3f} to {last.retain_probability:.3f}, distinct bigrams from "
                f"{first.distinct:.2f} to {last.distinct:.2f}; lower the learning rate, raise alpha, or allow more"
            )
        put_weights(model, self.best)
        return self.best_step

    def save(self, folder: Path) -> None:
        """Complete the checkpoint in ``folder``."""
        if self.checkpoints is None:
            return
        if self.best is not None:
            write_tensors({name: value.cpu() for name, value in self.best.items()}, folder / BEST)
        state = {
            "key": self.checkpoints.key,
            "reports": [asdict(report) for report in self.reports],
            "probes": [asdict(probe) for probe in self.probes],
            "best_step": self.best_step,
            "dual": None if self.dual is None else asdict(self.dual),
        }
        write_state(folder, state)

    def restore(self, folder: Path) -> None:
        """Be what `save` wrote."""
        state = read_state(folder)
        self.reports = [StepReport(**report) for report in state["reports"]]
        self.probes = [ProbeReport(**probe) for probe in state["probes"]]
        self.best_step = state["best_step"]
        self.best = read_tensors(folder / BEST) if (folder / BEST).is_file() else None
        self.dual = Dual(**state["dual"]) if state["dual"] else None


def reaches(loss: Tensor, weights: Iterable[Tensor]) -> bool:
    """Whether ``loss`` has a gradient at any of ``weights``; its graph stays for the backward pass."""
    learning = [weight for weight in weights if weight.requires_grad]
    if not loss.requires_grad or not learning:
        return False
    found: Any = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
    grads = [gradient for gradient in found if gradient is not None]  # None: the loss does not depend on it
    return bool(grads) and bool(torch.nn.utils.get_total_norm(grads) > 0)


_PARTS = ("total", "forget", "retain", "forget_probability", "retain_probability")


class Guard(TrainerCallback):
    """Fails a run whose gradients are not finite, before they reach the weights, and by its first step one in
    which no gradient reaches the LoRA weights (it would silently do nothing)."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Look at the gradients of the adapter in training (those of every A are zero while B is)."""
        grads = [p.grad for p in trained_weights(self._run.model).values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.zeros(())
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient is {norm.item()} at step {state.global_step + 1}: lower the learning rate, or look at "
                + ", ".join(self._run.seen)
            )
        reached = self._run.reached if self._run.others.apart is not None else bool(norm > 0)
        if state.global_step == 0 and not reached:
            raise TrainingError(
                "no gradient reached the LoRA weights in the first step: the run would change nothing. "
                "Check the target modules, and the weights gamma and alpha"
            )


class Watch(TrainerCallback):
    """Reports each step, probes, ends the run, and completes its checkpoints."""

    def __init__(self, run: Run, on_step: Callable[[StepReport], None]) -> None:
        self._run, self._on_step = run, on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """One optimisation step is done."""
        run = self._run
        self._on_step(run.step_ended(state.global_step))
        run.over = run.probe(state.global_step) or state.global_step >= state.max_steps
        if run.over or run.interrupted:
            control.should_training_stop = True
        # A checkpoint of the last step would be resumed into steps that an uninterrupted run does not make.
        control.should_save = not run.over and (run.interrupted or control.should_save)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The trainer wrote its part of a checkpoint."""
        self._run.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")


@contextmanager
def interruptible(run: Run) -> Generator[None]:
    """The first Ctrl-C ends the run after its step, with a checkpoint; the second one at once.

    Only where there is something to resume from, and in the main thread, which alone may handle signals.
    """
    if run.checkpoints is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(_signal: int, _frame: object) -> None:
        run.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
