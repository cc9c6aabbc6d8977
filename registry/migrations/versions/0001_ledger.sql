-- The ledger, and the tables that are projections of it (see projections.py).

CREATE TABLE event (
  seq          INTEGER PRIMARY KEY,
  v            INTEGER NOT NULL,
  at           TEXT NOT NULL,
  kind         TEXT NOT NULL,
  actor        TEXT NOT NULL,
  subject_kind TEXT NOT NULL,
  subject_id   TEXT NOT NULL,
  body         TEXT NOT NULL,
  prev_hash    TEXT NOT NULL,
  hash         TEXT NOT NULL UNIQUE
) STRICT;

CREATE TRIGGER event_is_never_updated BEFORE UPDATE ON event
BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;

CREATE TRIGGER event_is_never_deleted BEFORE DELETE ON event
BEGIN SELECT RAISE(ABORT, 'event is append-only'); END;

-- Also stops INSERT OR REPLACE, which would not fire the delete trigger.
CREATE TRIGGER event_follows_the_last BEFORE INSERT ON event
WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM event)
  OR (NEW.seq > 1 AND NEW.prev_hash IS NOT (SELECT hash FROM event WHERE seq = NEW.seq - 1))
BEGIN SELECT RAISE(ABORT, 'event does not follow the last one'); END;

CREATE TABLE base (
  digest       TEXT NOT NULL,
  quantization TEXT NOT NULL,
  PRIMARY KEY (digest, quantization)
) STRICT;

CREATE TABLE blob (
  digest     TEXT PRIMARY KEY,
  size       INTEGER NOT NULL,
  media_type TEXT NOT NULL
) STRICT;

CREATE TABLE forget_request (
  id          TEXT PRIMARY KEY,
  seq         INTEGER NOT NULL UNIQUE,
  basis       TEXT NOT NULL,
  state       TEXT NOT NULL,
  n_items     INTEGER NOT NULL,
  commitment  TEXT NOT NULL,
  subject_ref TEXT,
  received_at TEXT NOT NULL,
  due_at      TEXT,
  updated_at  TEXT NOT NULL
) STRICT;
CREATE INDEX forget_request_state ON forget_request (state);
CREATE INDEX forget_request_subject ON forget_request (subject_ref);

CREATE TABLE adapter (
  digest       TEXT PRIMARY KEY,
  seq          INTEGER NOT NULL UNIQUE,
  kind         TEXT NOT NULL,
  base         TEXT NOT NULL,
  quantization TEXT NOT NULL,
  trained_on   TEXT,
  manifest     TEXT NOT NULL,
  state        TEXT NOT NULL,
  sealed_at    TEXT NOT NULL,
  FOREIGN KEY (base, quantization) REFERENCES base (digest, quantization)
) STRICT;

CREATE TABLE adapter_request (
  adapter TEXT NOT NULL REFERENCES adapter (digest),
  request TEXT NOT NULL REFERENCES forget_request (id),
  PRIMARY KEY (adapter, request)
) STRICT;
CREATE INDEX adapter_request_request ON adapter_request (request);

CREATE TABLE composition (
  digest       TEXT PRIMARY KEY,
  base         TEXT NOT NULL,
  quantization TEXT NOT NULL,
  render       TEXT NOT NULL,
  FOREIGN KEY (base, quantization) REFERENCES base (digest, quantization)
) STRICT;

CREATE TABLE composition_part (
  composition TEXT NOT NULL REFERENCES composition (digest),
  adapter     TEXT NOT NULL REFERENCES adapter (digest),
  weight      TEXT NOT NULL,
  PRIMARY KEY (composition, adapter)
) STRICT;
CREATE INDEX composition_part_adapter ON composition_part (adapter);

-- An audit may be of a composition that no release holds (a candidate on paper), so there is no foreign key.
CREATE TABLE audit (
  digest      TEXT PRIMARY KEY,
  seq         INTEGER NOT NULL UNIQUE,
  composition TEXT NOT NULL,
  precision   TEXT NOT NULL,
  suite       TEXT NOT NULL,
  seed        INTEGER NOT NULL,
  verdict     TEXT NOT NULL,
  report      TEXT NOT NULL REFERENCES blob (digest),
  environment TEXT NOT NULL,
  at          TEXT NOT NULL
) STRICT;
CREATE INDEX audit_composition ON audit (composition, precision, suite);

CREATE TABLE release (
  channel      TEXT NOT NULL,
  version      INTEGER NOT NULL,
  composition  TEXT NOT NULL REFERENCES composition (digest),
  rendered     TEXT REFERENCES adapter (digest),
  state        TEXT NOT NULL,
  audit        TEXT REFERENCES audit (digest),
  reason       TEXT NOT NULL,
  created_by   TEXT NOT NULL,
  created_at   TEXT NOT NULL,
  approved_by  TEXT,
  activated_at TEXT,
  PRIMARY KEY (channel, version)
) STRICT;
CREATE UNIQUE INDEX release_one_active_per_channel ON release (channel) WHERE state = 'ACTIVE';
CREATE INDEX release_composition ON release (composition);
