"""Audits: was it forgotten, does the rest still stand? Measured, gated, reported.

Read `metrics.py` (pure figures with their papers), then `types.py` (the records), `run.py` (one pass over a
model), `gates.py` (what is accepted) and `report.py` (what a person reads). Audits never import the registry:
an auditor cannot edit the book that an audit is written into.
"""

from .aggregate import aggregate
from .attack import AttackKind, AttackResult, Point
from .document import SCHEMA, AuditReport
from .errors import AttackError, AuditError, IncomparableError, MetricError, OutOfMemory, RecordError
from .gates import Thresholds, check
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
from .types import (
    FORGET_SIDE,
    KEEP_SIDE,
    Aggregate,
    Evaluation,
    Finding,
    Group,
    Interval,
    RowScore,
    verdict_of,
)

__all__ = [
    "FORGET_SIDE",
    "KEEP_SIDE",
    "SCHEMA",
    "Aggregate",
    "AttackError",
    "AttackKind",
    "AttackResult",
    "AuditError",
    "AuditReport",
    "Evaluation",
    "Finding",
    "Group",
    "IncomparableError",
    "Interval",
    "Method",
    "MetricError",
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
    "bootstrap_ci",
    "check",
    "evaluate",
    "exact_memorization",
    "extraction_strength",
    "mentions",
    "ngram_entropy",
    "perplexity",
    "question_ids",
    "render_html",
    "repetition",
    "rouge_l_recall",
    "verdict_of",
]
