"""Audits: was it forgotten, does the rest still stand? Measured, gated, reported.

Read `metrics.py` (pure figures with their papers), then `types.py` (the records), `run.py` (one pass over a
model), `gates.py` (what is accepted) and `report.py` (what a person reads). Audits never import the registry:
an auditor cannot edit the book that an audit is written into.
"""

from .aggregate import aggregate
from .attack import AttackKind, AttackResult, Point
from .document import SCHEMA, AuditReport
from .drift import Drift, mean_drift, probability_drift, row_kl, token_kl
from .errors import AuditError, IncomparableError, MetricError, MissingReference, OutOfMemory, RecordError
from .gates import Thresholds, check
from .membership import (
    auc,
    auc_ci,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    priv_leak,
    reference_score,
    s_mia,
    zlib_score,
)
from .metrics import (
    answer_probability,
    bootstrap_ci,
    exact_memorization,
    extraction_strength,
    mentions,
    ngram_entropy,
    perplexity,
    repetition,
    rouge_l_recall,
)
from .report import render_html
from .run import Method, Probe, answer_rows, evaluate, question_ids
from .tables import Table
from .types import Aggregate, Evaluation, Finding, Group, Interval, RowScore, verdict_of

__all__ = [
    "SCHEMA",
    "Aggregate",
    "AttackKind",
    "AttackResult",
    "AuditError",
    "AuditReport",
    "Drift",
    "Evaluation",
    "Finding",
    "Group",
    "IncomparableError",
    "Interval",
    "Method",
    "MetricError",
    "MissingReference",
    "OutOfMemory",
    "Point",
    "Probe",
    "RecordError",
    "RowScore",
    "Table",
    "Thresholds",
    "aggregate",
    "answer_probability",
    "answer_rows",
    "auc",
    "auc_ci",
    "bootstrap_ci",
    "check",
    "evaluate",
    "exact_memorization",
    "extraction_strength",
    "loss_score",
    "mean_drift",
    "mentions",
    "min_k_plus_plus_score",
    "min_k_score",
    "ngram_entropy",
    "perplexity",
    "priv_leak",
    "probability_drift",
    "question_ids",
    "reference_score",
    "render_html",
    "repetition",
    "rouge_l_recall",
    "row_kl",
    "s_mia",
    "token_kl",
    "verdict_of",
    "zlib_score",
]
