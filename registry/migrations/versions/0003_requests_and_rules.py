"""Audits name the requests that they measured, and channels may have a rule about who lets a release through.

The ledger is replayed into the new columns in the same transaction, as after every migration.
"""

from alembic import op

revision = "0003_requests_and_rules"
down_revision = "0002_projections"


def upgrade() -> None:
    """Add the columns. They are null for what was recorded before."""
    bind = op.get_bind()
    text, number = ("TEXT", "INTEGER") if bind.dialect.name == "sqlite" else ('TEXT COLLATE "C"', "BIGINT")
    bind.exec_driver_sql(f"ALTER TABLE audit ADD COLUMN requests {text}")
    bind.exec_driver_sql(f"ALTER TABLE channel ADD COLUMN two_person {number}")
