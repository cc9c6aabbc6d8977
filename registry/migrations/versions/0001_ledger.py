"""The ledger. On SQLite also its projections as efface 0.1.0 had them, which the next version replaces."""

from pathlib import Path

from alembic import op

revision = "0001_ledger"
down_revision = None

_POSTGRES = """
CREATE TABLE event (
  seq          BIGINT PRIMARY KEY,
  v            BIGINT NOT NULL,
  at           TEXT COLLATE "C" NOT NULL,
  kind         TEXT COLLATE "C" NOT NULL,
  actor        TEXT COLLATE "C" NOT NULL,
  subject_kind TEXT COLLATE "C" NOT NULL,
  subject_id   TEXT COLLATE "C" NOT NULL,
  body         TEXT COLLATE "C" NOT NULL,
  prev_hash    TEXT COLLATE "C" NOT NULL,
  hash         TEXT COLLATE "C" NOT NULL UNIQUE
);
CREATE FUNCTION event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'event is append-only'; END $$;
CREATE TRIGGER event_is_never_changed BEFORE UPDATE OR DELETE ON event
  FOR EACH ROW EXECUTE FUNCTION event_is_append_only();
CREATE TRIGGER event_is_never_emptied BEFORE TRUNCATE ON event
  FOR EACH STATEMENT EXECUTE FUNCTION event_is_append_only();
CREATE FUNCTION event_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.seq IS DISTINCT FROM (SELECT coalesce(max(seq), 0) + 1 FROM event)
    OR (NEW.seq > 1 AND NEW.prev_hash IS DISTINCT FROM (SELECT hash FROM event WHERE seq = NEW.seq - 1))
  THEN RAISE EXCEPTION 'event does not follow the last one'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER event_follows_the_last BEFORE INSERT ON event
  FOR EACH ROW EXECUTE FUNCTION event_follows();
"""


def upgrade() -> None:
    """Create the ledger, append-only by trigger."""
    if op.get_context().dialect.name == "sqlite":
        for statement in statements(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")):
            op.get_bind().exec_driver_sql(statement)
        return
    op.get_bind().exec_driver_sql(_POSTGRES)


def statements(script: str) -> list[str]:
    """The statements of an SQL script: SQLite's driver takes one at a time."""
    import sqlite3

    found, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending.strip().removesuffix(";"))
            pending = ""
    return found
