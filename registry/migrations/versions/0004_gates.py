"""Channels may have gates, and audits say which gates decided their verdict.

The ledger is replayed into the new columns in the same transaction, as after every migration.
"""

from alembic import op

revision = "0004_gates"
down_revision = "0003_requests_and_rules"


def upgrade() -> None:
    """Add the columns. They are null for what was recorded before."""
    bind = op.get_bind()
    text = "TEXT" if bind.dialect.name == "sqlite" else 'TEXT COLLATE "C"'
    bind.exec_driver_sql(f"ALTER TABLE audit ADD COLUMN gates {text}")
    bind.exec_driver_sql(f"ALTER TABLE channel ADD COLUMN gates {text}")
