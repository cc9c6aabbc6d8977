"""`efface request shred | evidence | close`: the end of a request, and what is claimed of it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import (
    Registry,
    close_request,
    get_request,
    plan_shredding,
    record_evidence,
    shred_request,
)
from ..registry.claims import LEVELS, METHODS
from ..registry.shred import ShredPlan
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    Format,
    FormatOption,
    RegistryOption,
    RequestArgument,
    YesOption,
)
from .output import emit, talk
from .record_acts import ShredPlanRecord, ShredRecord
from .records import evidence_json, request_json

SHRED_EXAMPLE = "Example: efface request shred req-000001 --yes"
CLOSE_EXAMPLE = "Example: efface request close req-000001 --claim suppressed"
EVIDENCE_EXAMPLE = (
    "Example: efface request evidence req-000001 --method merge --artefact sha256:5d1f --audit 1f0c8a "
    "--base-withdrawn --statement 'merged into base 2026-11; the one before is deleted'"
)


def shred(
    request_id: RequestArgument,
    yes: YesOption = False,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Destroy a request's rows for good: its vault entry with its key, and what training left of them.

    For a request that is released, refused or withdrawn. The ledger still verifies; nothing can be trained on or
    measured with these rows after it. A backup that holds both the entry and the master key still has them.
    """
    with Registry.open(registry) as reg:
        planned = _plan(reg, plan_shredding(reg, request_id))
        before = get_request(reg, request_id)
        request = shred_request(reg, request_id, actor=actor) if yes else get_request(reg, request_id)
        record: ShredRecord = {
            "done": yes,
            "plan": planned,
            "request": request_json(request, reg.clock()),
        }
    emit(record, format, "\n".join([*_lines(planned), f"{request.id}  {request.state}"]))
    if before.shredded_at is not None:
        talk.print(_again(planned, before.shredded_at, done=yes), soft_wrap=True)
    if not yes:
        talk.print("Nothing was destroyed. Do it with --yes; there is no way back.")


def evidence(
    request_id: RequestArgument,
    method: Annotated[str, typer.Option("--method", help=f"{', '.join(METHODS)}.")],
    artefact: Annotated[
        str, typer.Option("--artefact", help="Digest of the base that came of it (`efface model show`).")
    ],
    audit: Annotated[str, typer.Option("--audit", help="A passing audit of that base without adapters.")],
    statement: Annotated[str, typer.Option("--statement", help="What was done, in words. No personal data.")],
    base_withdrawn: Annotated[
        bool, typer.Option("--base-withdrawn", help="The base before is served and handed out by no one.")
    ] = False,
    replaces: Annotated[
        str | None,
        typer.Option("--replaces", help="The base before; by default the one its adapters are on."),
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Record that a base was merged (consolidates) or retrained (erases) for a request.

    Who says so stands in the ledger; efface checks the audit, not the statement. The audit has to have measured this
    request. If it was shredded before, nobody can measure it any more: it is suppressed at most, whatever was done.
    """
    with Registry.open(registry) as reg:
        made = record_evidence(
            reg,
            request_id,
            method=method,
            artefact=artefact,
            audit=audit,
            base_withdrawn=base_withdrawn,
            replaces=replaces,
            statement=statement,
            actor=actor,
        )
    if made.level != METHODS[made.method]:
        came = "Its rows were shredded before the audit, which could not measure it: suppressed at most."
        talk.print(came, soft_wrap=True)
    emit(evidence_json([made])[0], format, f"{made.digest}\n{made.request}: {made.level} by {made.method}")


def close(
    request_id: RequestArgument,
    claim: Annotated[
        str | None,
        typer.Option("--claim", help=f"{', '.join(LEVELS)}; by default the most that its evidence shows."),
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Close a shredded request with what is claimed of it. Exit 1 for a claim beyond its evidence.

    Of a closed one the claim is raised, where new evidence shows more. It is never lowered.
    """
    with Registry.open(registry) as reg:
        request = close_request(reg, request_id, claim=claim, actor=actor)
        record = request_json(request, reg.clock())
    emit(record, format, f"{request.id}  {request.state}: {request.claim_level}")


def _plan(reg: Registry, plan: ShredPlan) -> ShredPlanRecord:
    return {
        "vault_entry": reg.vault.has(plan.request_id),
        "files": [{"path": file.path, "size": file.size} for file in plan.files],
        "folders": list(plan.folders),
    }


def _again(plan: ShredPlanRecord, first: str, *, done: bool) -> str:
    """Of rows that were shredded before: a restored backup brings them back, and nothing else shows it."""
    if not (plan["vault_entry"] or plan["files"] or plan["folders"]):
        return f"It was shredded at {first}, and nothing of it is here."
    came = f"It was shredded at {first}, and the above has come back since, as from a backup:"
    return f"{came} {'destroyed again' if done else '--yes destroys it again'}."


def _lines(plan: ShredPlanRecord) -> list[str]:
    entry = "its rows in the vault, and their key" if plan["vault_entry"] else "no vault entry: it is gone"
    files = [f"{file['path']}  {file['size']} bytes" for file in plan["files"]]
    return [entry, *files, *(f"{folder}/" for folder in plan["folders"])]
