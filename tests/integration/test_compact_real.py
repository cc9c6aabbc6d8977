"""Compaction on the real model: two trained requests as one adapter of half their rank still forget both."""

from dataclasses import replace
from pathlib import Path

import pytest

from efface.adapters.distil import DistilSettings
from efface.recipes import (
    Bench,
    Recipe,
    RequestData,
    load_recipe,
    open_bench,
    shipped_request,
    to_payload,
    unlearn,
)
from efface.recipes.compact import compact
from efface.registry import Registry, open_request

# Two short trainings, a distillation and small audits: 167 s of one core's time.
pytestmark = pytest.mark.slow

WHO = {"actor": "ana"}
SHORT = ("steps=16", "rounds=1", "rank=8", "lora_alpha=16", "audit_retain_rows=6", "max_new_tokens=12")


def few(name: str) -> RequestData:
    """A tenth of a shipped request."""
    data = shipped_request(name)
    forget = tuple(row.model_copy(update={"paraphrases": row.paraphrases[:1]}) for row in data.forget[:4])
    return replace(data, forget=forget, retain=data.retain[:24], neighbours=data.neighbours[:6])


def trained(reg: Registry, bench: Bench, recipe: Recipe, name: str) -> str:
    data = few(name)
    request = open_request(reg, basis="test", payload=to_payload(data), n_items=len(data.forget), **WHO)
    unlearn(reg, request.id, bench, recipe, **WHO)
    return request.id


def test_half_the_rank_still_forgets_both(smollm: Path, tmp_path: Path) -> None:
    recipe = load_recipe("simnpo", SHORT)
    bench = open_bench(smollm, recipe)
    with Registry.open(tmp_path / "registry", create=True) as reg:
        requests = [trained(reg, bench, recipe, name) for name in ("shakespeare", "harry_potter")]
        settings = DistilSettings(steps=24, batch=8)
        done = compact(reg, bench, recipe, requests=requests, rank=8, settings=settings, **WHO)
    best = done.candidates[0]
    assert best.rank == 8
    assert done.adapter.facts["rank_before"] == 16
    base, stack, *_ = done.report.evaluations
    for request in requests:
        before, stacked, after = (
            _mean(evaluation.rows, request) for evaluation in (base, stack, best.evaluation)
        )
        # Measured: 0.66 and 0.14 of the base; of what the stack suppresses, 0.96 and 0.99 kept (distilled: 0.79, 0.96).
        assert stacked < 0.8 * before
        assert after < before - 0.7 * (before - stacked)


def _mean(rows: object, request: str) -> float:
    found = [row.probability for row in rows if (row.request, row.group) == (request, "forget")]  # type: ignore[attr-defined]
    return sum(found) / len(found)
