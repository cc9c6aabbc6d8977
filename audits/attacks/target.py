"""What is attacked: a base, the adapters that forget on it, and the rows, with what the audit measured already."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from ...adapters.compose import Part
from ...adapters.encode import Item
from ...adapters.lora import detach, load
from ...adapters.model import Base
from ..errors import AttackError
from ..run import Method, Probe, evaluate
from ..types import Evaluation, Group, RowScore


@dataclass(frozen=True, slots=True)
class Target:
    """A model that is said to have forgotten.

    ``base`` is bare; ``folder`` is the PEFT folder that is on it (a rendered stack), None where ``base`` itself is the
    audited checkpoint. ``parts`` are the adapters that ``folder`` was composed of, where they are known. ``before``
    and ``after`` are the audit's evaluations of ``probes`` by ``method``: what the attacks are held against, so that
    nothing is measured twice.

    Raises `AttackError` for evaluations of other rows, no forget rows among them, or a base with adapters on it.
    """

    base: Base
    folder: Path | None
    probes: tuple[Probe, ...]
    before: Evaluation
    after: Evaluation
    method: Method = field(default_factory=Method)
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        asked = {key_of(probe) for probe in self.probes}
        for found in (self.before, self.after):
            if differing := asked ^ {row.key for row in found.rows}:
                raise AttackError(
                    f"expected {found.label!r} to have measured the {len(asked)} rows to attack with, got "
                    f"{len(differing)} in one only: evaluate these very probes"
                )
        if any(isinstance(module, LoraLayer) for module in self.base.model.modules()):
            raise AttackError(
                "expected a bare base, got one with adapters on it: detach them, or load it again"
            )
        if not any(probe.group == "forget" for probe in self.probes):
            raise AttackError("expected forget rows to attack, got none: give the rows of a request")

    def of(self, group: Group) -> tuple[Probe, ...]:
        """The probes of ``group``, in their order."""
        return tuple(probe for probe in self.probes if probe.group == group)

    @property
    def requests(self) -> Mapping[str | None, tuple[Probe, ...]]:
        """The forget rows of each request."""
        found: dict[str | None, list[Probe]] = {}
        for probe in self.of("forget"):
            found.setdefault(probe.request, []).append(probe)
        return {request: tuple(probes) for request, probes in found.items()}


def key_of(probe: Probe) -> tuple[str | None, Group, str]:
    """What `RowScore.key` is of its score."""
    return (probe.request, probe.group, probe.item.id)


def scores(found: Evaluation, probes: Sequence[Probe]) -> list[RowScore]:
    """The scores of ``probes`` in ``found``, in their order."""
    rows = {row.key: row for row in found.rows}
    return [rows[key_of(probe)] for probe in probes]


def items(probes: Sequence[Probe]) -> list[Item]:
    """The rows of ``probes``."""
    return [probe.item for probe in probes]


@contextmanager
def wearing(base: Base, folder: Path | None) -> Generator[PreTrainedModel | PeftModel]:
    """``base`` with the adapter in ``folder`` on (None: as it is), and bare again afterwards."""
    if folder is None:
        yield base.model
        return
    model = load(base.model, folder)
    try:
        yield model
    finally:
        detach(model)


def aim(
    base: Base,
    folder: Path | None,
    probes: Sequence[Probe],
    *,
    method: Method | None = None,
    parts: Sequence[Part] = (),
    before: Evaluation | None = None,
) -> Target:
    """A `Target`, measured here: the base bare (unless ``before`` is given) and with ``folder`` on.

    Raises what `evaluate` raises; `AttackError` for a checkpoint (no ``folder``) without ``before``: what the model
    knew before it forgot is then nowhere to be asked.
    """
    if folder is None and before is None:
        raise AttackError(
            "expected an evaluation of the model before it forgot, got a checkpoint alone: give `before`"
        )
    method = method or Method()
    fixed = {"composition": base.fingerprint.digest, "precision": base.quantization, "method": method}
    if before is None:
        before = evaluate(base.model, base.tokenizer, probes, label="base", **fixed)  # type: ignore[arg-type]
    with wearing(base, folder) as model:
        after = evaluate(model, base.tokenizer, probes, label="attacked", **fixed)  # type: ignore[arg-type]
    return Target(base, folder, tuple(probes), before, after, method, tuple(parts))
