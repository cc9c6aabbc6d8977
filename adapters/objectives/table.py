"""Every objective, as data: the trainer's dispatch and `docs/objectives.md` read it from here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from . import hidden, logits, preference, retain, tokens
from .objective import Objective

_ROWS = (
    Objective("npo", "preference", preference.npo, "sequence", "2404.05868", "fades once the answer is gone"),
    Objective(
        "simnpo",
        "preference",
        preference.simnpo,
        "sequence",
        "2410.07163",
        "length-normalised NPO",
        gamma=0.1375,
    ),
    Objective("dpo", "preference", preference.dpo, "sequence", "2401.06121", "DPO/IDK: prefer a refusal"),
    Objective(
        "altpo", "preference", preference.altpo, "sequence", "2409.13474", "prefer plausible alternates"
    ),
    Objective(
        "ipo", "preference", preference.ipo, "sequence", "2310.12036", "stops at a set margin", proven=False
    ),
    Objective(
        "kto_undesirable",
        "preference",
        preference.kto_undesirable,
        "sequence",
        "2402.01306",
        "bounded on both sides",
        proven=False,
    ),
    Objective("ihl", "bounded", logits.ihl, "token", "2408.06621", "LoKU: mass to the runner-up, in [0, 2]"),
    Objective(
        "ce_u",
        "bounded",
        logits.ce_u,
        "token",
        "2503.01224",
        "itself without the target; `skip_first`",
        alpha=0.0,
    ),
    Objective(
        "undial",
        "bounded",
        logits.undial,
        "token",
        "2402.10052",
        "the reference with the target lowered",
        alpha=0.0,
    ),
    Objective(
        "pdu", "bounded", logits.pdu, "token", "2506.05314", "flat logits; made for `Dual`, its weight 50"
    ),
    Objective("wga", "weighted", tokens.wga, "token", "2502.19301", "ascent weighted by p"),
    Objective(
        "satimp",
        "weighted",
        tokens.satimp,
        "token",
        "2505.11953",
        "ascent weighted by p and 1 - p",
        alpha=0.1,
    ),
    Objective(
        "bst", "weighted", logits.bst, "token", "2510.19422", "ascent on the target and the top beliefs"
    ),
    Objective("grad_ascent", "baseline", tokens.grad_ascent, "token", "2401.06121", "unbounded", alpha=0.0),
    Objective(
        "grad_diff", "baseline", tokens.grad_ascent, "token", "2401.06121", "GradAscent and a retain term"
    ),
    Objective("idk_nll", "baseline", tokens.idk_nll, "token", "2401.06121", "fine-tunes on refusals"),
    Objective(
        "rmu", "baseline", hidden.rmu, "token", "2403.03218", "with `rmu_retain`; `layer_module` finds it"
    ),
    Objective(
        "retain_nll", "retain", retain.retain_nll, "token", "2401.06121", "one token of the distribution"
    ),
    Objective("retain_kl", "retain", retain.retain_kl, "token", "2401.06121", "the whole distribution"),
    Objective(
        "rmu_retain", "retain", hidden.rmu_retain, "token", "2403.03218", "RMU's own, hidden states kept"
    ),
)

OBJECTIVES: Mapping[str, Objective] = MappingProxyType({row.name: row for row in _ROWS})
"""Every objective by its name."""
