"""What a run does about the adapters that its own will stand beside: penalty, company, and a frozen A."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import Tensor

from .apart import Apart, kept_apart, read_others
from .checkpoint import trained_weights
from .company import Company, gathered, in_company
from .errors import TrainingError
from .settings import Stacking, TrainSettings


@dataclass(frozen=True, slots=True)
class Beside:
    """The penalty and the company of one run, if it has them, and whether its A learns."""

    apart: Apart | None = None
    company: Company | None = None
    freeze_a: bool = False

    def step(self, number: int) -> None:
        """Optimisation step ``number`` (the first is 0) begins, or goes on: its company is on."""
        if self.company is not None:
            self.company.come(number)

    def rest(self) -> None:
        """A step is over: whoever looks at the model now finds it alone."""
        if self.company is not None:
            self.company.leave()

    def added_to(self, loss: Tensor) -> Tensor:
        """``loss`` and the penalty."""
        return loss if self.apart is None else loss + self.apart.penalty().to(loss.device)


def beside(
    model: PeftModel, settings: TrainSettings, apart_from: Sequence[Path], company: Sequence[Path]
) -> Beside:
    """Read the other adapters that ``settings.stacking`` uses. Raises :class:`TrainingError` for some that it does
    not, and what `read_others` raises."""
    chosen, base = settings.stacking, model.get_base_model()
    _require_used(chosen, apart_from, company)
    return Beside(
        kept_apart(
            model,
            read_others(base, apart_from),
            inputs=chosen.orthogonal,
            outputs=chosen.orthogonal_outputs,
        ),
        gathered(
            model,
            read_others(base, company),
            seed=settings.seed,
            share=chosen.company,
            every=chosen.company_every,
        ),
        chosen.freeze_a,
    )


@contextmanager
def standing(model: PeftModel, others: Beside) -> Generator[None]:
    """Train ``model`` beside ``others`` inside the block."""
    frozen = [p for name, p in trained_weights(model).items() if others.freeze_a and ".lora_A." in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with in_company(model, others.company):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _require_used(chosen: Stacking, apart_from: Sequence[Path], company: Sequence[Path]) -> None:
    problems: list[str] = []
    if apart_from and not (chosen.orthogonal or chosen.orthogonal_outputs):
        problems.append(
            f"apart_from names {len(apart_from)} adapters: expected stacking.orthogonal or "
            "stacking.orthogonal_outputs above 0, got 0"
        )
    if company and not chosen.company:
        problems.append(
            f"company names {len(company)} adapters: expected stacking.company above 0, got {chosen.company:g}"
        )
    if problems:
        raise TrainingError("\n".join(problems))
