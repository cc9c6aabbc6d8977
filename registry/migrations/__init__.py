"""Schema migrations, run by Alembic: one module of `versions` each, applied in the order of their names."""

REVISIONS = ("0001_ledger", "0002_projections")
"""Every revision, oldest first: opening a registry compares against the last one without importing Alembic."""
