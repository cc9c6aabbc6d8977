"""`efface release gate`: bounds that every release of a channel is audited by."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Channel, InvalidInput, Registry, gate_channel, get_channel
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    ChannelArgument,
    Format,
    FormatOption,
    ReasonOption,
    RegistryOption,
)
from .output import emit
from .records import ChannelRecord, channel_json

GATE_EXAMPLE = (
    "Example: efface release gate prod --set max_extraction_strength_forget=0.2 --set max_recovered.prompt=0.3 "
    "--reason 'policy 7'"
)


def gate(
    channel: ChannelArgument,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="GATE=BOUND", help="A bound, such as max_rebound=0.1. Repeatable."),
    ] = [],  # noqa: B006 - typer's way to a repeatable option
    unset: Annotated[
        list[str], typer.Option("--unset", metavar="GATE", help="Take a gate off. Repeatable.")
    ] = [],  # noqa: B006
    reason: ReasonOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Set gates of a channel, or show them: what a release must be audited by, besides its recipe.

    Where both have a bound the stricter counts, and what a channel asks for must be measured: an audit without it has
    failed. An audit that was not judged by a gate carries no release, nor one that was approved before. Setting and
    taking off take a --reason; both stay in the ledger.
    """
    if (set_ or unset) and not reason:
        raise typer.BadParameter("a gate needs --reason: it is written into the ledger")
    changes = _changes(set_, unset)
    with Registry.open(registry) as reg:
        if not changes:
            found = get_channel(reg, channel)
        else:
            _require_held(reg, channel, unset)
            found = gate_channel(reg, channel, changes, reason=reason, actor=actor)
    record: ChannelRecord = channel_json(found)
    emit(record, format, f"{found.name}: {gates_text(found)}")


def gates_text(channel: Channel) -> str:
    """The gates on one line."""
    return ", ".join(f"{name}={bound}" for name, bound in channel.gates.items()) or "no gates"


def _changes(given: list[str], unset: list[str]) -> dict[str, str | None]:
    from pydantic import ValidationError

    from ..audits import Thresholds
    from ..audits.gates import nested

    found: dict[str, str | None] = dict.fromkeys(unset)
    bounds: dict[str, float] = {}
    problems: list[str] = []
    for one in given:
        name, _, text = one.partition("=")
        try:
            bounds[name], found[name] = float(text), text
        except ValueError:
            problems.append(f"--set {one!r}: expected GATE=NUMBER")
    try:
        Thresholds.model_validate(nested(bounds))
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            problems.append(_problem(detail))
    if problems:
        raise typer.BadParameter("; ".join(problems))
    return found


def _problem(detail: object) -> str:
    import difflib

    from ..audits import Thresholds

    found: dict = detail  # type: ignore[assignment]
    place = ".".join(map(str, found["loc"]))
    if found["type"] != "extra_forbidden":
        return f"{place}: {found['msg']}"
    near = difflib.get_close_matches(place, Thresholds.model_fields, 1, 0.4)
    return f"{place!r} is no gate" + (f"; did you mean {near[0]!r}?" if near else "")


def _require_held(reg: Registry, channel: str, unset: list[str]) -> None:
    held = get_channel(reg, channel).gates if unset else {}
    if unknown := [name for name in unset if name not in held]:
        raise InvalidInput(
            f"gates of {channel} to take off",
            f"{', '.join(unknown)}, which it does not have",
            "Leave them out.",
        )
