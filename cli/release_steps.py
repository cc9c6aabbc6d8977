"""`efface release approve | activate | withdraw | protect | diff | push`: what needs no model."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import (
    InvalidInput,
    Registry,
    Release,
    activate_release,
    active_release,
    approve_release,
    diff_releases,
    get_adapter,
    get_channel,
    rule_channel,
    withdraw_release,
)
from .adapter_transfer import BaseNameOption, LicenseOption, PublicOption, SignOption, SingleOption
from .card_facts import card_facts
from .lookups import requests_of
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    ChannelArgument,
    Format,
    FormatOption,
    ReasonOption,
    RegistryOption,
    VersionArgument,
)
from .output import emit
from .record_acts import PushRecord
from .records import DiffRecord, channel_json, diff_json, release_json
from .release_transfer import EvidenceOption, release_files
from .targets import HELP, packed, parse_target, send

APPROVE_EXAMPLE = "Example: efface release approve prod 2 --audit 1f0c8a"
ACTIVATE_EXAMPLE = "Example: efface release activate prod 2"
WITHDRAW_EXAMPLE = "Example: efface release withdraw prod 2 --reason 'superseded by a retraining'"
PROTECT_EXAMPLE = "Example: efface release protect prod --two-person --reason 'four eyes from 2026-12'"
DIFF_EXAMPLE = "Example: efface release diff prod 1 2"
PUSH_EXAMPLE = "Example: efface release push prod hub://org/stack@main --license apache-2.0"


def approve(
    channel: ChannelArgument,
    version: VersionArgument,
    audit: Annotated[str, typer.Option("--audit", help="The audit that carries it: a digest or prefix.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Approve a candidate on a passing audit of its composition and precision. It is not served yet."""
    with Registry.open(registry) as reg:
        _say(reg, approve_release(reg, channel, version, audit=audit, approved_by=actor), format)


def activate(
    channel: ChannelArgument,
    version: VersionArgument,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Make an approved release the one that the channel serves; the one before is superseded."""
    with Registry.open(registry) as reg:
        _say(reg, activate_release(reg, channel, version, approved_by=actor), format)


def withdraw(
    channel: ChannelArgument,
    version: VersionArgument,
    reason: ReasonOption,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Give up a candidate or an approved release, for good. An active one is rolled back instead."""
    with Registry.open(registry) as reg:
        _say(reg, withdraw_release(reg, channel, version, reason=reason, actor=actor), format)


def protect(
    channel: ChannelArgument,
    two_person: Annotated[
        bool | None,
        typer.Option("--two-person/--no-two-person", help="Ask for it, or no longer; without either, show."),
    ] = None,
    reason: ReasonOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Ask for two people: a release is approved by somebody else than who created it, or never served.

    `release create` and `release rollback` then leave a candidate. Giving the rule up takes a --reason too, and both
    stay in the ledger. It goes by what --actor says, and by nothing else.
    """
    if two_person is not None and not reason:
        raise typer.BadParameter("a rule needs --reason: it is written into the ledger")
    with Registry.open(registry) as reg:
        if two_person is None:
            found = get_channel(reg, channel)
        else:
            found = rule_channel(reg, channel, two_person=two_person, reason=reason, actor=actor)
    record = channel_json(found)
    rule = "somebody else approves what one creates" if found.two_person else "one person may do it all"
    emit(record, format, f"{found.name}: {rule}")


def diff(
    channel: ChannelArgument,
    old: Annotated[int, typer.Argument(metavar="OLD", min=1, help="A version.")],
    new: Annotated[int, typer.Argument(metavar="NEW", min=1, help="Another.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Show what changed between two versions of a channel: requests, adapters, weights, the base."""
    with Registry.open(registry) as reg:
        record = diff_json(diff_releases(reg, channel, old, new))
    emit(record, format, "\n".join(_changes(record)) or "no difference")


def push(
    channel: ChannelArgument,
    target: Annotated[str, typer.Argument(metavar="TARGET", help=HELP)],
    single_request: SingleOption = False,
    license: LicenseOption = None,
    base_name: BaseNameOption = None,
    public: PublicOption = False,
    evidence: EvidenceOption = None,
    model_signing_key: SignOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Write or push what a channel serves: its rendered adapter, with a card of the audit that carries it.

    In a folder and on the Hub a release file goes along, for `efface release pull`; --evidence lets others check it.
    """
    where = parse_target(target)
    with Registry.open(registry) as reg:
        release = active_release(reg, channel)
        if release.rendered is None:
            came = f"{channel}@{release.version}, which has none"
            then = "It serves the bare base, or its adapters live: export those with `efface adapter export`."
            raise InvalidInput("a release with a rendered adapter", came, then)
        adapter = get_adapter(reg, release.rendered)
        facts = card_facts(reg, adapter, base_name=base_name, license=license, release=release)
        made = packed(reg, adapter)
    along = release_files(release, made, facts.audit, evidence, where)
    address = send(
        made,
        where,
        facts,
        single_request=single_request,
        public=public,
        along=along,
        signing_key=model_signing_key,
    )
    record: PushRecord = {
        "adapter": adapter.digest,
        "kind": where.kind,
        "target": target,
        "address": address,
        "audit": facts.audit.digest if facts.audit else None,
        "release": {"channel": channel, "version": release.version},
    }
    emit(record, format, f"{channel}@{release.version}\n{adapter.digest}\n{address}")


def _say(reg: Registry, release: Release, format: Format) -> None:
    record = release_json(release, requests_of(reg, release.composition.adapters))
    emit(record, format, f"{release.channel}@{release.version} {release.state}\n{release.composition.digest}")


def _changes(record: DiffRecord) -> list[str]:
    lines = [f"+ {name}" for name in (*record["requests_added"], *record["adapters_added"])]
    lines += [f"- {name}" for name in (*record["requests_removed"], *record["adapters_removed"])]
    lines += [f"~ {one['adapter']}  {one['before']} → {one['after']}" for one in record["reweighted"]]
    return [*lines, "~ the base or its quantization"] if record["base_changed"] else lines
