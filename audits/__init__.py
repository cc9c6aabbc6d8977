"""Audits: was it forgotten, does the rest still stand? Measured, gated, reported.

Read `metrics.py`, `truth.py`, `membership.py` and `drift.py` (pure figures with their papers), then `types.py` (the
records), `forced.py` (one forward for them all), `run.py` (one model measured), `patching.py` (where it was forgotten),
`gates.py` (what is accepted) and `report.py` (what a person reads). Audits never import the registry:
an auditor cannot edit the book that an audit is written into.
"""

from .aggregate import aggregate
from .attack import AttackKind, AttackResult, Point
from .claim import Claim
from .depth import Depth, depth_score, unlearning_depth
from .document import SCHEMA, AuditReport
from .drift import Drift, mean_drift, probability_drift, row_kl, token_kl
from .errors import (
    AttackError,
    AuditError,
    IncomparableError,
    MetricError,
    MissingReference,
    OutOfMemory,
    RecordError,
)
from .forced import Paired, Scored, paired, teacher_forced
from .gates import Thresholds, check
from .gibberish import is_gibberish
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
    rouge_l_f1,
    rouge_l_recall,
)
from .muse import knowledge_memorization, verbatim_memorization
from .patching import Patched, patched_drops
from .privacy import Attacked, membership_attacks
from .report import render_html
from .run import Method, Probe, answer_rows, evaluate, question_ids
from .scope import ScopeBounds, over_unlearned
from .suite_run import RowHash, SuiteRun, hash_row, key_name
from .tables import Table
from .truth import (
    ForgetQuality,
    choice_probabilities,
    forget_quality,
    forget_truth_ratio,
    model_utility,
    retain_truth_ratio,
    truth_ratios,
    truth_shares,
)
from .types import (
    FORGET_SIDE,
    KEEP_SIDE,
    Aggregate,
    Evaluation,
    Finding,
    Group,
    Interval,
    Membership,
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
    "Attacked",
    "AuditError",
    "AuditReport",
    "Claim",
    "Depth",
    "Drift",
    "Evaluation",
    "Finding",
    "ForgetQuality",
    "Group",
    "IncomparableError",
    "Interval",
    "Membership",
    "Method",
    "MetricError",
    "MissingReference",
    "OutOfMemory",
    "Paired",
    "Patched",
    "Point",
    "Probe",
    "RecordError",
    "RowHash",
    "RowScore",
    "ScopeBounds",
    "Scored",
    "SuiteRun",
    "Table",
    "Thresholds",
    "aggregate",
    "answer_probability",
    "answer_rows",
    "auc",
    "auc_ci",
    "bootstrap_ci",
    "check",
    "choice_probabilities",
    "depth_score",
    "evaluate",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "forget_truth_ratio",
    "hash_row",
    "is_gibberish",
    "key_name",
    "knowledge_memorization",
    "loss_score",
    "mean_drift",
    "membership_attacks",
    "mentions",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "ngram_entropy",
    "over_unlearned",
    "paired",
    "patched_drops",
    "perplexity",
    "priv_leak",
    "probability_drift",
    "question_ids",
    "reference_score",
    "render_html",
    "repetition",
    "retain_truth_ratio",
    "rouge_l_f1",
    "rouge_l_recall",
    "row_kl",
    "s_mia",
    "teacher_forced",
    "token_kl",
    "truth_ratios",
    "truth_shares",
    "unlearning_depth",
    "verbatim_memorization",
    "verdict_of",
    "zlib_score",
]
