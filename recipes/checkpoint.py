"""Audit a checkpoint that somebody made of another one: fine-tuned, merged, unlearned with other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..audits import AuditReport, Claim
from .audit import report_of
from .bench import Bench, measure
from .data import RequestData
from .errors import RequestError
from .given import check_given
from .parts import Seen
from .plan import quick
from .prepare import probes
from .progress import Progress, Silent
from .recipe import Recipe
from .sources import require_tokenizer
from .suite import run_suite

_WORD = "is the word of whoever made it: no audit can see that."
_OWN: Mapping[Claim, str] = {
    "suppressed": f"It is a checkpoint of its own, without an adapter. How it was made {_WORD}",
    "consolidated": "It is a checkpoint of its own, without an adapter. How it was made, and that the model before is "
    f"withdrawn, {_WORD}",
    "erased": f"It is a checkpoint of its own. That it was trained without the rows {_WORD} The figures are compatible "
    "with it, or not; they do not prove it.",
}
_STATED = "As stated by whoever had it audited, and not checked: "


def audit_checkpoint(
    known: Bench,
    made: Bench,
    requests: Mapping[str, RequestData],
    *,
    recipe: Recipe,
    label: str,
    claim: Claim = "consolidated",
    claim_evidence: Sequence[str] = (),
    progress: Progress | None = None,
) -> AuditReport:
    """Measure ``made`` and the checkpoint before it, ``known``, on the rows of ``requests``, all taken as forgotten.

    Each judges the perplexity of its own answers: there is no adapter that could be switched off. Attacks that need
    one are noted as such. ``claim`` is what is claimed of it, ``claim_evidence`` what is known of how it was made: the
    figures cannot tell a merge from a retraining, so a claim of *erased* is refused without any. Raises `RequestError`
    for that, `AuditError` for models with different tokenizers.
    """
    stated = _stated(claim, claim_evidence)
    progress = progress or Silent()
    require_tokenizer(made.base, known.base, "model")
    check_given(made.plan, requests, tuple(requests))
    # One method for both, or they would not be asked the same.
    made = replace(made, method=known.method)
    rows = probes(known, requests, recipe, progress=progress)
    before = measure(known, known.base.model, known.bare, rows, label="before", active=(), progress=progress)
    after = measure(
        made, made.base.model, made.bare, rows, label=label, active=tuple(requests), progress=progress
    )
    plan = made.plan or quick()
    seen = Seen(
        made, known, made.bare, None, requests, rows, before, after, plan.sources, plan.suite.seed, progress
    )
    return report_of(
        made,
        before,
        after,
        recipe,
        title=f"Audit of {label}",
        active=tuple(requests),
        claim=claim,
        claim_evidence=(*stated, _OWN[claim]),
        extras=run_suite(seen, plan.suite),
    )


def _stated(claim: Claim, evidence: Sequence[str]) -> list[str]:
    """The evidence as the report quotes it."""
    told = [text.strip() for text in evidence if text.strip()]
    if claim == "erased" and not told:
        raise RequestError(
            "expected evidence for a claim of erased, got none: say how the model was trained without the rows "
            "(--evidence), or claim consolidated"
        )
    return [_STATED + text for text in told]
