-- Written once for both databases: 0002_projections.py puts Postgres's types in. Columns as in ../../tables.py.

CREATE TABLE head (
  id   INTEGER PRIMARY KEY CHECK (id = 1),
  seq  INTEGER NOT NULL,
  hash TEXT NOT NULL
) STRICT;

INSERT INTO head (id, seq, hash)
SELECT 1, 0, 'sha256:0000000000000000000000000000000000000000000000000000000000000000';

UPDATE head SET
  hash = coalesce((SELECT e.hash FROM event e ORDER BY e.seq DESC LIMIT 1), hash),
  seq = (SELECT coalesce(max(e.seq), 0) FROM event e);

CREATE INDEX event_subject ON event (subject_id);

CREATE TABLE checkpoint (
  tree_size INTEGER PRIMARY KEY,
  root      TEXT NOT NULL,
  at        TEXT NOT NULL,
  frontier  TEXT NOT NULL,
  envelope  TEXT NOT NULL,
  note      TEXT NOT NULL
) STRICT;

CREATE TABLE signing_key (
  key_id         TEXT PRIMARY KEY,
  name           TEXT NOT NULL,
  public         TEXT NOT NULL,
  roles          TEXT NOT NULL,
  valid_from     TEXT NOT NULL,
  valid_until    TEXT,
  revoked_at     TEXT,
  revoked_reason TEXT
) STRICT;

CREATE TABLE base (
  digest       TEXT NOT NULL,
  quantization TEXT NOT NULL,
  PRIMARY KEY (digest, quantization)
) STRICT;

-- `uses`: how many adapters, audits and attestations that are not purged hold it; at 0 its bytes may go.
CREATE TABLE blob (
  digest     TEXT PRIMARY KEY,
  size       INTEGER NOT NULL,
  media_type TEXT NOT NULL,
  uses       INTEGER NOT NULL
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
  extended_to TEXT,
  claim_level TEXT,
  shredding_at TEXT,
  shredded_at TEXT,
  updated_at  TEXT NOT NULL
) STRICT;

CREATE INDEX forget_request_state ON forget_request (state, seq);

CREATE INDEX forget_request_subject ON forget_request (subject_ref);

CREATE TABLE adapter (
  digest       TEXT PRIMARY KEY,
  seq          INTEGER NOT NULL UNIQUE,
  kind         TEXT NOT NULL,
  base         TEXT NOT NULL,
  quantization TEXT NOT NULL,
  trained_on   TEXT,
  error_bound  TEXT,
  manifest     TEXT NOT NULL,
  state        TEXT NOT NULL,
  sealed_at    TEXT NOT NULL,
  FOREIGN KEY (base, quantization) REFERENCES base (digest, quantization)
) STRICT;

CREATE INDEX adapter_trained_on ON adapter (trained_on);

CREATE INDEX adapter_state ON adapter (state, seq);

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

CREATE INDEX audit_composition ON audit (composition, seq);

CREATE TABLE evidence (
  digest  TEXT PRIMARY KEY,
  seq     INTEGER NOT NULL UNIQUE,
  request TEXT NOT NULL REFERENCES forget_request (id),
  level   TEXT NOT NULL,
  record  TEXT NOT NULL,
  at      TEXT NOT NULL
) STRICT;

CREATE INDEX evidence_request ON evidence (request);

CREATE TABLE attestation (
  digest     TEXT PRIMARY KEY,
  seq        INTEGER NOT NULL UNIQUE,
  about_kind TEXT NOT NULL,
  about_id   TEXT NOT NULL,
  predicate  TEXT NOT NULL,
  keys       TEXT NOT NULL,
  at         TEXT NOT NULL
) STRICT;

CREATE INDEX attestation_about ON attestation (about_kind, about_id);

CREATE TABLE channel (
  channel  TEXT PRIMARY KEY,
  versions INTEGER NOT NULL,
  active   INTEGER
) STRICT;

CREATE TABLE release (
  channel      TEXT NOT NULL REFERENCES channel (channel),
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

CREATE INDEX release_state ON release (state);

CREATE INDEX release_composition ON release (composition);
