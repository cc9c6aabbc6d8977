"""Unlearning objectives: pure functions of log-probabilities, logits or hidden states.

A step minimises ``gamma * forget + alpha * retain``. Read `table.py` first (every objective; `objective.py` says
what each needs), then `preference.py` (whole answers), `tokens.py` (token log-probabilities), `logits.py` (what
needs the whole distribution, on `fused.py`), `hidden.py` (RMU), `retain.py`, and `dual.py` (PDU's constraint).

No function here runs a model, keeps a state or draws from a global generator. Bad arguments raise
:class:`efface.adapters.ObjectiveError`.
"""

from .document import document
from .dual import Dual
from .hidden import control_vector, layer_module, rmu, rmu_retain
from .logits import bst, ce_u, ihl, pdu, skip_first, undial
from .objective import Objective
from .preference import altpo, dpo, ipo, kto_undesirable, npo, simnpo
from .retain import retain_kl, retain_nll
from .table import OBJECTIVES
from .tokens import grad_ascent, idk_nll, satimp, wga

__all__ = [
    "OBJECTIVES",
    "Dual",
    "Objective",
    "altpo",
    "bst",
    "ce_u",
    "control_vector",
    "document",
    "dpo",
    "grad_ascent",
    "idk_nll",
    "ihl",
    "ipo",
    "kto_undesirable",
    "layer_module",
    "npo",
    "pdu",
    "retain_kl",
    "retain_nll",
    "rmu",
    "rmu_retain",
    "satimp",
    "simnpo",
    "skip_first",
    "undial",
    "wga",
]
