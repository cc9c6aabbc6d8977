"""What the model card of an exported adapter says of its audit: the registry's figures, never a row's text."""

from __future__ import annotations

import json
import math
from typing import Any, cast

from ..registry import (
    Adapter,
    Audit,
    Composition,
    NotFound,
    Registry,
    Release,
    compose,
    get_audit,
    list_audits,
)
from ..registry.card import CardFacts
from ..registry.release_rows import composition as composition_with

FIGURES = (
    "probability",
    "rouge_l",
    "extraction_strength",
    "exact_memorization",
    "mention_rate",
    "fluency",
    "perplexity",
)


def card_facts(
    reg: Registry,
    adapter: Adapter,
    *,
    base_name: str | None,
    license: str | None,
    release: Release | None = None,
) -> CardFacts:
    """Composition, audit and its figures for `adapter`: the audit of `release`, or else the newest.

    Without one the card says that there is none.
    """
    served = release.composition if release else _composition(reg, adapter)
    if release is not None and release.audit is not None:
        audit = get_audit(reg, release.audit)
    else:
        audit = None if served is None else _newest(reg, served)
    figures = {} if audit is None else _figures(json.loads(reg.blobs.read(audit.report)))
    return CardFacts(base_name=base_name, license=license, composition=served, audit=audit, figures=figures)


def _composition(reg: Registry, adapter: Adapter) -> Composition | None:
    """What the adapter is served as: a rendered one's composition, or itself alone; None when none is known."""
    if adapter.kind != "rendered":
        return compose(adapter.base, adapter.quantization, [(adapter.digest, 1)])
    digest = adapter.facts.get("composition")
    try:
        with reg.read() as db:
            return composition_with(db, digest) if isinstance(digest, str) else None
    except NotFound:
        return None


def _newest(reg: Registry, served: Composition) -> Audit | None:
    found = [one for one in list_audits(reg, served.digest) if one.precision == served.quantization]
    return found[-1] if found else None


def _figures(report: Any) -> dict[str, float]:
    """Means over rows by group, for the evaluation that was judged. Requests are numbered, not named.

    A report may have been recorded by anyone: what is no number under a name that we know is left out.
    """
    found: dict[str, float] = {}
    for item, prefix in _aggregates(report):
        for name in FIGURES:
            value = item.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found[f"{prefix}.{name}"] = value
    return found


def _aggregates(report: Any) -> list[tuple[dict[str, Any], str]]:
    if not isinstance(report, dict) or report.get("schema") != "efface.audit/1":
        return []
    judged = [e for e in report["evaluations"] if e["label"] == report["after"]]
    items = cast("list[dict[str, Any]]", judged[0]["aggregates"] if judged else [])
    named = [item for item in items if item["group"] in ("forget", "paraphrase", "neighbour", "retain")]
    requests = sorted({item["request"] for item in named if item["request"]})
    return [(item, _prefix(item, requests)) for item in named]


def _prefix(item: dict[str, Any], requests: list[str]) -> str:
    if item["request"] is None or len(requests) < 2:
        return str(item["group"])
    return f"{requests.index(item['request']) + 1}.{item['group']}"
