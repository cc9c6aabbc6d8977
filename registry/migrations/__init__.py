"""Schema migrations, run by Alembic: one module of `versions` each, applied in the order of their names."""

from pathlib import Path

REVISIONS = ("0001_ledger", "0002_projections", "0003_requests_and_rules", "0004_gates")
"""Every revision, oldest first: opening a registry compares against the last one without importing Alembic."""

POSTGRES_SCHEMA = Path(__file__).parent / "postgres.jsonl"
"""What they make of an empty Postgres database, for `verify`: a name and its description a line."""
