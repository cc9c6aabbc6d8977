"""`efface adapter reject | retire | purge`: the end of adapters, each with its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..registry import (
    Adapter,
    Registry,
    channels,
    get_adapter,
    history,
    purge_adapter,
    reject_adapter,
    retire_adapter,
)
from ..registry.adapter_life import check_end, needed_by, trained_on_it
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    AdapterArgument,
    Format,
    FormatOption,
    ReasonOption,
    RegistryOption,
    YesOption,
)
from .output import emit, talk
from .record_acts import AdapterEndRecord, AdapterPlanRecord
from .records import adapter_json

REJECT_EXAMPLE = "Example: efface adapter reject 1f0c8a --reason 'audit failed' --yes"
RETIRE_EXAMPLE = "Example: efface adapter retire 1f0c8a --reason 'trained again' --yes"
PURGE_EXAMPLE = "Example: efface adapter purge 1f0c8a --reason 'retention period over' --yes"
End = Literal["REJECTED", "RETIRED", "PURGED"]
_VERBS: dict[End, Callable[..., Adapter]] = {
    "REJECTED": reject_adapter,
    "RETIRED": retire_adapter,
    "PURGED": purge_adapter,
}


def reject(
    reference: AdapterArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Record that a sealed adapter is not to be released, for good."""
    _end(registry, reference, "REJECTED", reason, yes, actor, format)


def retire(
    reference: AdapterArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Take an adapter out of use for good. It can still be read and exported."""
    _end(registry, reference, "RETIRED", reason, yes, actor, format)


def purge(
    reference: AdapterArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Give up the bytes of a retired adapter: the next `efface gc` deletes them. Its record stays."""
    _end(registry, reference, "PURGED", reason, yes, actor, format)


def _end(
    registry: str, reference: str, becomes: End, reason: str, yes: bool, actor: str, format: Format
) -> None:
    """The plan; with `yes` also the deed. A plan that cannot be carried out is printed, and refused."""
    with Registry.open(registry) as reg:
        adapter = get_adapter(reg, reference)
        planned = _plan(reg, adapter, becomes)
        if yes:
            adapter = _VERBS[becomes](reg, adapter.digest, reason=reason, actor=actor)
    record: AdapterEndRecord = {"done": yes, "plan": planned, "adapter": adapter_json(adapter)}
    emit(record, format, "\n".join([f"{adapter.digest}  {adapter.state}", *_lines(planned, yes)]))
    if not yes:
        with Registry.open(registry) as reg, reg.read() as db:
            check_end(db, adapter, becomes)
        talk.print("Nothing was changed. Do it with --yes; there is no way back.")


def _plan(reg: Registry, adapter: Adapter, becomes: End) -> AdapterPlanRecord:
    with reg.read() as db:
        holding, above = needed_by(db, adapter), trained_on_it(db, adapter)
    past = [
        f"{release.channel}@{release.version}"
        for channel in channels(reg)
        for release in history(reg, channel)
        if release.state == "SUPERSEDED" and adapter.digest in release.composition.adapters
    ]
    sizes = [reg.blobs.size(digest) or 0 for digest in adapter.files.values()]
    return {
        "becomes": becomes,
        "needed_by": holding,
        "trained_on_it": above,
        "cannot_be_returned_to": past,
        "bytes_given_up": sum(sizes) if becomes == "PURGED" else 0,
    }


def _lines(plan: AdapterPlanRecord, done: bool) -> list[str]:
    lines = [f"needed by {name}, which forbids it" for name in plan["needed_by"]]
    lines += [f"{digest} was trained on it, which forbids it" for digest in plan["trained_on_it"]]
    if not lines and not done:
        lines = [f"becomes {plan['becomes']}"]
    if plan["becomes"] != "REJECTED":
        lines += [f"{name} cannot be returned to any more" for name in plan["cannot_be_returned_to"]]
    if plan["bytes_given_up"]:
        lines.append(f"gives up {plan['bytes_given_up']} bytes, unless another adapter has the same")
    return lines
