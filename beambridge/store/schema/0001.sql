-- Keys are compact blobs (16-byte IDs, binary peer IDs) and tables are their own primary-key index
-- (WITHOUT ROWID) wherever rows are small, so that a chunk costs few bytes of few pages.

-- Hot part of a job: rewritten with each change of state.
CREATE TABLE jobs (
  id BLOB NOT NULL PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,
  reason INTEGER NOT NULL, text TEXT NOT NULL, inputs INTEGER NOT NULL, chunk_size INTEGER NOT NULL, input_root BLOB,
  created INTEGER NOT NULL, started INTEGER NOT NULL, ended INTEGER NOT NULL, result BLOB, result_note TEXT NOT NULL,
  max_spend INTEGER NOT NULL, reserved INTEGER NOT NULL, spent INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_created ON jobs (created);
CREATE INDEX jobs_state ON jobs (state);

-- Cold part of a job: may be large, hardly ever changes.
CREATE TABLE job_bodies (id BLOB NOT NULL PRIMARY KEY, spec BLOB, terms BLOB, plan BLOB) STRICT;

CREATE TABLE chunks (
  job BLOB NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL, state TEXT NOT NULL, fence INTEGER NOT NULL,
  want INTEGER NOT NULL, winner BLOB, reason INTEGER NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (job, first)
) STRICT, WITHOUT ROWID;

-- Who held leases, as they were then: written once for the many leases that name them.
CREATE TABLE staff (
  n INTEGER PRIMARY KEY, node BLOB NOT NULL, grp TEXT NOT NULL, site TEXT NOT NULL, wallet TEXT NOT NULL,
  slots INTEGER NOT NULL, probation INTEGER NOT NULL,
  UNIQUE (node, grp, site, wallet, slots, probation)
) STRICT;

-- The key is where a lease belongs, not its random ID: leases of neighbouring chunks share pages.
CREATE TABLE leases (
  job BLOB NOT NULL, first INTEGER NOT NULL, fence INTEGER NOT NULL, id BLOB NOT NULL, end INTEGER NOT NULL,
  copy INTEGER NOT NULL, staff INTEGER NOT NULL, set_seq INTEGER NOT NULL, state TEXT NOT NULL, reason INTEGER NOT NULL,
  exit INTEGER NOT NULL, digest TEXT NOT NULL, text TEXT NOT NULL, granted INTEGER NOT NULL, ended INTEGER NOT NULL,
  run_us INTEGER NOT NULL, cpu_ms INTEGER NOT NULL, blocks_fetched INTEGER NOT NULL,
  PRIMARY KEY (job, first, fence)
) STRICT, WITHOUT ROWID;
-- Small whatever the number of leases: entries go when leases end.
CREATE UNIQUE INDEX leases_live ON leases (id) WHERE ended = 0;

-- The unique key of "counted once".
CREATE TABLE results (
  job BLOB NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL, lease BLOB NOT NULL, fence INTEGER NOT NULL,
  node BLOB NOT NULL, root BLOB, signed BLOB,
  PRIMARY KEY (job, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE members (
  job BLOB NOT NULL, node BLOB NOT NULL, grp TEXT NOT NULL, site TEXT NOT NULL, wallet TEXT NOT NULL,
  slots INTEGER NOT NULL, probation INTEGER NOT NULL, ask INTEGER NOT NULL, addrs TEXT NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (job, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_node ON members (node);

CREATE TABLE receipts (
  node BLOB NOT NULL, seq INTEGER NOT NULL, hash BLOB NOT NULL, prev BLOB NOT NULL, raw BLOB,
  countersign BLOB, at INTEGER NOT NULL,
  PRIMARY KEY (node, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
  job BLOB NOT NULL, node BLOB NOT NULL, working_ms INTEGER NOT NULL, preparing_ms INTEGER NOT NULL, gpu_ms INTEGER NOT NULL,
  billed_ms INTEGER NOT NULL, records INTEGER NOT NULL, chunks INTEGER NOT NULL, charged_uusd INTEGER NOT NULL, rate INTEGER NOT NULL,
  PRIMARY KEY (job, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE uptime (
  node BLOB NOT NULL, day TEXT NOT NULL, idle_ms INTEGER NOT NULL, preparing_ms INTEGER NOT NULL, working_ms INTEGER NOT NULL,
  PRIMARY KEY (node, day)
) STRICT, WITHOUT ROWID;

CREATE TABLE scores (node BLOB NOT NULL PRIMARY KEY, body BLOB) STRICT;

CREATE TABLE log_tails (
  job BLOB NOT NULL, first INTEGER NOT NULL, lease BLOB NOT NULL, node BLOB NOT NULL, text BLOB, at INTEGER NOT NULL,
  PRIMARY KEY (job, first, lease)
) STRICT;

CREATE TABLE paces (
  class TEXT NOT NULL, model TEXT NOT NULL, seconds REAL NOT NULL, samples INTEGER NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (class, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE volumes (
  name TEXT NOT NULL PRIMARY KEY, root BLOB NOT NULL, bytes INTEGER NOT NULL, blocks INTEGER NOT NULL, files INTEGER NOT NULL,
  created INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The money ledger is append-only: the triggers hold whoever opens the file with another tool to it.
CREATE TABLE transactions (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, epoch TEXT NOT NULL, at INTEGER NOT NULL,
  ref TEXT NOT NULL, prev_hash BLOB NOT NULL, hash BLOB NOT NULL
) STRICT;
CREATE TABLE postings (
  seq INTEGER NOT NULL, line INTEGER NOT NULL, account TEXT NOT NULL, currency TEXT NOT NULL, amount INTEGER NOT NULL,
  PRIMARY KEY (seq, line)
) STRICT, WITHOUT ROWID;
CREATE INDEX postings_account ON postings (account, currency, seq);
CREATE TABLE balances (
  account TEXT NOT NULL, currency TEXT NOT NULL, amount INTEGER NOT NULL,
  PRIMARY KEY (account, currency)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER transactions_keep BEFORE UPDATE ON transactions BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER transactions_hold BEFORE DELETE ON transactions BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER postings_keep BEFORE UPDATE ON postings BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER postings_hold BEFORE DELETE ON postings BEGIN SELECT raise(ABORT, 'the ledger is append-only'); END;

CREATE TABLE tokens (
  hash BLOB NOT NULL PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL, scopes TEXT NOT NULL, created INTEGER NOT NULL,
  revoked INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_user ON tokens (user);
