"""Audits of what efface did not make: an adapter folder, or a checkpoint against the one it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..audits import AuditReport, Claim
    from ..recipes.data import RequestData
    from ..recipes.plan import Plan
    from ..recipes.progress import Progress
    from ..recipes.recipe import Recipe
    from ..recipes.row_cache import RowMemory

GIVEN_ROWS = "given rows"
ClaimOption = Annotated[
    str | None,
    typer.Option("--claim", help="With --against: suppressed, consolidated (by default) or erased."),
]
EvidenceOption = Annotated[
    list[str],
    typer.Option(
        "--evidence",
        metavar="TEXT",
        help="With --against: what the claim rests on, without personal data; quoted as stated, not checked. "
        "Repeatable.",
    ),
]


def audit_folder(
    model: str,
    recipe: Recipe,
    adapter: Path,
    data: RequestData,
    memory: RowMemory,
    plan: Plan,
    bars: Progress,
) -> AuditReport:
    """The adapter in a PEFT folder on the base ``model``."""
    from ..adapters import read_adapter
    from ..recipes.audit import audit_composition
    from ..recipes.bench import open_bench
    from ..registry import compose

    digest = read_adapter(adapter).digest
    bars.phase("Loading the base")
    bench = open_bench(model, recipe, memory=memory, plan=plan)
    composition = compose(bench.base.fingerprint.digest, recipe.quantization, [(digest, "1")])
    return audit_composition(
        bench,
        composition,
        adapter,
        {GIVEN_ROWS: data},
        active=[GIVEN_ROWS],
        recipe=recipe,
        label=label_of(adapter),
        progress=bars,
    )


def label_of(path: Path) -> str:
    """What a report calls the audited model: its folder's name, told apart from those of the other side."""
    name = path.name or path.resolve().name or "audited"
    return f"{name} (audited)" if name in ("base", "before") else name


def audit_model(
    model: str,
    against: str,
    recipe: Recipe,
    data: RequestData,
    memory: RowMemory,
    plan: Plan,
    bars: Progress,
    *,
    claim: Claim,
    evidence: Sequence[str],
) -> AuditReport:
    """The checkpoint ``model`` against the one it was made from."""
    from ..recipes.bench import open_bench
    from ..recipes.checkpoint import audit_checkpoint

    bars.phase("Loading both models")
    known = open_bench(against, recipe, memory=memory, plan=plan)
    made = open_bench(model, recipe, memory=memory, plan=plan)
    return audit_checkpoint(
        known,
        made,
        {GIVEN_ROWS: data},
        recipe=recipe,
        label=label_of(Path(model)),
        claim=claim,
        claim_evidence=evidence,
        progress=bars,
    )


def claimed(claim: str | None, evidence: Sequence[str], against: str | None) -> Claim:
    """The claim of a checkpoint as asked for, *consolidated* by default. Raises typer's `BadParameter`."""
    from ..audits.claim import CLAIMS

    if against is None and (claim is not None or evidence):
        raise typer.BadParameter(
            "--claim and --evidence go with --against: what an adapter does is suppress, and a request's claim is "
            "recorded with `efface request evidence`"
        )
    known: dict[str, Claim] = {one: one for one in CLAIMS}
    found = known.get(claim or "consolidated")
    if found is None:
        raise typer.BadParameter(f"expected --claim {', '.join(CLAIMS)}, got {claim!r}")
    if found == "erased" and not any(text.strip() for text in evidence):
        raise typer.BadParameter(
            "--claim erased needs --evidence TEXT: how it was trained without the rows, or its shard made again; "
            "no figure shows that"
        )
    return found
