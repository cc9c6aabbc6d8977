"""What can go wrong in an audit.

AuditError
├── OutOfMemory         too little memory to measure so many rows at once
├── MetricError         a figure cannot be computed from this input (also a ValueError)
│   └── MissingReference  it compares with a model that was not given; the message says how to get one
├── AttackError         an attack cannot be made on this target, with these rows or settings
├── RecordError         a record holds something no audit can have measured (also a ValueError)
└── IncomparableError   "before" and "after" did not measure the same thing

Messages name rows by id and never quote a prompt, a reference or an answer: exception texts end up in logs.
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of every error that `efface.audits` raises on purpose."""


class OutOfMemory(AuditError):
    """Too little memory for the forwards of a measurement; the message says what to lower."""


class MetricError(AuditError, ValueError):
    """The input of a metric is empty, not finite or of the wrong shape."""


class MissingReference(MetricError):
    """A figure that compares with another model was asked for without that model's figures."""


class AttackError(AuditError):
    """An attack that cannot be made: rows, adapters or keywords that it needs are not there."""


class RecordError(AuditError, ValueError):
    """A score, an evaluation, a finding or a report contradicts itself."""


class IncomparableError(AuditError):
    """Two evaluations differ in their rows or their precision, so their ratio would mean nothing."""
