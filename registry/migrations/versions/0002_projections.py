"""Projections with keys, attestations, evidence and channels; the head of the chain; signed checkpoints.

Projections hold nothing that the events do not: the old ones are dropped, and whoever runs the migrations replays
the ledger into the new ones in the same transaction.
"""

from pathlib import Path

from alembic import op

revision = "0002_projections"
down_revision = "0001_ledger"

_OLD = (
    "release",
    "audit",
    "composition_part",
    "composition",
    "adapter_request",
    "adapter",
    "forget_request",
    "blob",
    "base",
)


def upgrade() -> None:
    """Replace the projections of 0.1.0, and add what is new."""
    bind = op.get_bind()
    on_sqlite = bind.dialect.name == "sqlite"
    if on_sqlite:
        for table in _OLD:
            bind.exec_driver_sql(f"DROP TABLE {table}")
    script = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    for statement in script.split(";\n"):
        if lines := "\n".join(line for line in statement.splitlines() if not line.startswith("--")).strip():
            bind.exec_driver_sql(lines if on_sqlite else postgres(lines))
    if on_sqlite:
        # What efface 0.1.0 reads to find that a file is too new for it.
        bind.exec_driver_sql("PRAGMA user_version=2")


def postgres(statement: str) -> str:
    """The statement in Postgres's types; text compares by bytes, as in SQLite."""
    return statement.replace(" STRICT", "").replace("INTEGER", "BIGINT").replace(" TEXT", ' TEXT COLLATE "C"')
